"theta_fine elsewhere: Keras on the backend that was chosen, ONNX Runtime, and a first layer in the transform's place."

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sft_nb.data import Loader, load_split
from sft_nb.evaluation import predict
from sft_nb.exports import from_pixels, to_keras, to_onnx
from sft_nb.features import extract
from sft_nb.freezing import moved
from sft_nb.models import adapt, load_pretrained, normalise, snapshot
from sft_nb.sources import lite

F = nn.functional
HOME = tempfile.TemporaryDirectory()
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_HOME", HOME.name)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
try:
    import keras
except ImportError:
    keras = None
needs_keras = pytest.mark.skipif(keras is None, reason="needs keras")


def unsettled(net, seed=0):
    "A network whose BatchNorms have statistics of their own: fresh ones would hide a wrong order."
    g = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.copy_(0.3 * torch.randn(m.num_features, generator=g))
            m.running_var.copy_(0.5 + torch.rand(m.num_features, generator=g))
    return net.eval()


def torchvision(name):
    from torchvision.models import get_model

    return unsettled(get_model(name, weights=None, num_classes=7))


def array(t):
    return np.array(keras.ops.convert_to_numpy(t))


def agree(net, x, first=True, off=1e-5):
    "The Keras model, if it computes what torch computes; for other rows than those it was made from, too."
    made = to_keras(net, x[:2], first)
    with torch.no_grad():
        want = net(x).numpy()
    got = array(made((x if first else x.permute(0, 2, 3, 1)).numpy()))
    assert got.shape == want.shape and got.dtype == want.dtype
    assert np.linalg.norm(got - want) < off * np.linalg.norm(want)
    return made


NETWORKS = {  # one with padded pooling; depthwise kernels, gates and SiLU; TensorFlow's own padding at an odd size
    "resnet18": lambda: (torchvision("resnet18"), 40),
    "efficientnet_b0": lambda: (torchvision("efficientnet_b0"), 40),
    "lite": lambda: (unsettled(lite.architecture("efficientnet_lite0")[0]), 37),
}


@needs_keras
@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks_compute_the_same_in_keras(name):
    net, side = NETWORKS[name]()
    agree(net, torch.randn(3, 3, side, side))


@needs_keras
@pytest.mark.parametrize("first", [True, False])
def test_float64_to_its_own_digits_and_pictures_with_the_colours_last(first):
    net = adapt(load_pretrained("pocket"), 5).double()
    digits = 1e-13 if keras.backend.backend() == "tensorflow" else 1e-6  # on torch, Keras' means have float32's
    agree(net, torch.randn(4, 3, 32, 32).double(), first, digits)


class Odd(nn.Module):
    "Writes into its input and reads it again; pools negative numbers at the border; flattens places."

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 2, padding=(1, 0)), nn.Linear(4 * 2 * 2, 3, bias=False)
        self.negative = nn.Conv2d(4, 4, 1)
        nn.init.constant_(self.negative.weight, -0.1)
        nn.init.constant_(self.negative.bias, -1.0)

    def forward(self, x):
        x = self.conv(x)
        F.relu6(x, inplace=True)
        y = F.max_pool2d(self.negative(x), 3, stride=3, padding=1)
        return self.last(torch.flatten(F.dropout(y, 0.5, self.training), 1))


@needs_keras
def test_a_file_is_read_by_keras_alone(tmp_path):
    x = torch.randn(2, 3, 4, 6)
    made = agree(Odd().eval(), x)
    made.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert np.array_equal(array(again(x.numpy())), array(made(x.numpy())))
    assert all(type(layer).__module__.startswith("keras.") for layer in again.layers)


@needs_keras
def test_what_is_written_in_place_what_lies_below_zero_and_where_places_stand():
    agree(Odd().eval(), torch.randn(5, 3, 4, 6))


@needs_keras
@pytest.mark.parametrize(
    ("net", "word"),
    [
        (nn.Softplus(), "no layer for softplus"),
        (nn.MaxPool2d(3, ceil_mode=True), "rounds up"),
        (nn.AdaptiveAvgPool2d(3), "adaptive pooling"),
        (nn.Hardtanh(-1.0, 1.0), "clipping"),
        (nn.ReflectionPad2d(1), "no layer in Keras|no layer for"),
    ],
)
def test_what_has_no_layer_is_refused_by_its_name(net, word):
    with pytest.raises(ValueError, match=word):
        to_keras(net, torch.randn(2, 3, 8, 8))


@needs_keras
def test_the_network_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = snapshot(net)
    to_keras(net, torch.randn(2, 3, 8, 8))
    assert net.training and not moved(before, snapshot(net))


@needs_keras
@pytest.mark.parametrize("n", [7, 8, 9])
def test_keras_own_same_padding_puts_the_odd_pixel_behind(n):
    "What chapter 20 says of it, and what `to_keras` must not use."
    conv, x = nn.Conv2d(2, 3, 3, stride=2), torch.randn(1, 2, n, n)
    layer = keras.layers.Conv2D(3, 3, strides=2, padding="same")
    got = layer(x.permute(0, 2, 3, 1).numpy())
    layer.set_weights([conv.weight.detach().permute(2, 3, 1, 0).numpy(), conv.bias.detach().numpy()])
    got = array(layer(x.permute(0, 2, 3, 1).numpy()))
    front = n % 2  # an odd side is padded alike in front and behind
    with torch.no_grad():
        want = conv(F.pad(x, (front, 1, front, 1))).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)


@needs_keras
def test_extract_and_predict_take_a_model_of_keras():
    pre, ds = load_pretrained("pocket"), load_split("digits_wild").valid[:50]
    model = adapt(pre, 10)
    x = pre.transform(ds.x[:2])
    feats = extract(to_keras(pre.backbone, x), Loader(ds, 20, pre.transform))
    want = extract(pre.backbone, Loader(ds, 20, pre.transform))
    torch.testing.assert_close(feats.x, want.x, rtol=1e-4, atol=1e-4)
    logits, y = predict(to_keras(model, x), Loader(ds, 20, pre.transform))
    assert logits.dtype == torch.float32 and torch.equal(y, ds.y)
    torch.testing.assert_close(logits, predict(model, Loader(ds, 20, pre.transform))[0], rtol=1e-4, atol=1e-4)


@needs_keras
def test_what_is_frozen_stands_still_in_keras_once_it_is_compiled():
    "The literal translation of the usual program; and, on TensorFlow, what a first `fit` keeps."
    body = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    net = keras.Sequential([body, keras.layers.Dense(2)])
    x, y = np.random.default_rng(0).normal(3, 2, (32, 4)).astype("float32"), np.arange(32) % 2
    stored = lambda: array(body.layers[0].moving_mean)
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(x, y, verbose=0)
    assert np.abs(stored()).sum() > 0
    before, body.trainable = stored(), False
    net.fit(x, y, verbose=0)
    assert np.array_equal(stored(), before) == (keras.backend.backend() == "torch")
    before = stored()
    net.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    net.fit(x, y, verbose=0)
    net(x, training=True)
    assert np.array_equal(stored(), before)


# --- the transform as a layer ---


def test_the_transform_is_the_first_layer():
    model = adapt(load_pretrained("pocket"), 10)
    transform = normalise((0.2, 0.5, 0.7), (0.1, 0.3, 0.9))
    x = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        whole = from_pixels(model, transform, x[0])
        torch.testing.assert_close(whole(x.float()), model(transform(x)), rtol=1e-4, atol=1e-4)
    whole.model.head.weight.data.zero_()
    assert model.head.weight.abs().sum() > 0, "a copy"


@pytest.mark.parametrize(
    "transform",
    [
        lambda x: F.interpolate(x.float(), size=8),
        lambda x: x.float().clamp(max=100),
        lambda x: x.float().mean(1, keepdim=True).expand(-1, 3, -1, -1),
        lambda x: x.float() - x.float().mean(),
    ],
)
def test_what_is_no_shift_and_scale_is_refused(transform):
    with pytest.raises(ValueError, match="cannot travel as a layer"):
        from_pixels(nn.Identity(), transform, torch.zeros(3, 16, 16, dtype=torch.uint8))


# --- ONNX ---


@pytest.mark.tools
def test_onnx_answers_alike_for_any_number_of_rows_and_tells_nothing_of_the_machine(tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pre = load_pretrained("pocket")
    model = adapt(pre, 10).train()
    before = snapshot(model)
    path = to_onnx(model, torch.randn(2, 3, 32, 32), tmp_path / "m.onnx", ["a", "b"])
    assert model.training and not moved(before, snapshot(model))
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["classes"] == "a\nb"
    for rows in (1, 3, 8):
        x = torch.randn(rows, 3, 32, 32)
        with torch.no_grad():
            want = model.eval()(x).numpy()
        np.testing.assert_allclose(session.run(["y"], {"x": x.numpy()})[0], want, atol=1e-4)
    blob = path.read_bytes()
    for told in (str(Path(torch.__file__).parent), ".py", "site-packages", "line "):
        assert told.encode() not in blob, told
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.tools
@needs_keras
def test_the_backend_is_the_one_that_was_asked_for():
    assert keras.backend.backend() == os.environ["KERAS_BACKEND"]
