"Frozen means frozen: every byte of every parameter and buffer, whoever calls train()."

import copy
import math
import pickle
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import DenseNet, VisionTransformer, get_model
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.ops import FrozenBatchNorm2d

from sft_nb.data import Loader, few_shot, load_split
from sft_nb.freezing import follow_grad, freeze, moved, trainable, unchanged, unfreeze
from sft_nb.models import TransferModel, find_head, source_network
from sft_nb.sources.pocket import PocketResNet, pocket_source

NETWORKS = {
    "pocket": lambda: PocketResNet(7),
    "resnet18": lambda: get_model("resnet18", weights=None),
    "mobilenet_v3_small": lambda: get_model("mobilenet_v3_small", weights=None),
    "efficientnet_b0": lambda: get_model("efficientnet_b0", weights=None),
    "densenet": lambda: DenseNet(8, (2, 2), 16, drop_rate=0.5),  # functional dropout: it reads its layer's mode
    "convnext": lambda: ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], stochastic_depth_prob=0.5),
    "vit": lambda: VisionTransformer(32, 8, 2, 2, 32, 64, dropout=0.2, attention_dropout=0.2),
}
NORMED = {"pocket", "resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet"}  # they hold BatchNorm
NOISY = {"mobilenet_v3_small", "efficientnet_b0", "densenet", "convnext", "vit"}  # Dropout or stochastic depth
each_network = pytest.mark.parametrize("name", NETWORKS)


def apart(name):
    "A backbone and a fresh head of 5 classes, both in train mode."
    torch.manual_seed(0)
    net = NETWORKS[name]()
    where = find_head(net.eval(), torch.zeros(1, 3, 32, 32))
    size = net.get_submodule(where).in_features
    net.set_submodule(where, nn.Identity())
    return net.train(), nn.Linear(size, 5)


def bytes_of(module):
    "Every parameter and buffer as raw bytes, by NumPy."
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {n: (str(t.dtype), tuple(t.shape), t.detach().numpy().tobytes()) for n, t in tensors}


def somebodys_training(model, steps=3):
    "A loop that knows nothing of us: train() before every step, eval() after it."
    opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for i in range(steps):
        g = torch.Generator().manual_seed(i)
        x, y = torch.randn(8, 3, 32, 32, generator=g) * 3 + 1, torch.randint(0, 5, (8,), generator=g)
        model.train()
        loss = nn.functional.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        model.eval()


# Frozen means frozen


@each_network
def test_a_frozen_backbone_keeps_every_byte(name):
    backbone, head = apart(name)
    model = TransferModel(freeze(backbone), head)
    before, before_head = bytes_of(backbone), bytes_of(head)
    with unchanged(backbone):
        somebodys_training(model)
    assert bytes_of(backbone) == before
    assert all(bytes_of(head)[n] != b for n, b in before_head.items())  # and there was something to see


@pytest.mark.parametrize("name", sorted(NORMED))
def test_without_the_mode_every_batchnorm_buffer_moves_and_no_parameter(name):
    "The control: the same training in a model that does not follow, so the test above can fail."
    backbone, head = apart(name)
    model = nn.Sequential(backbone.requires_grad_(False), head)
    before = bytes_of(backbone)
    with pytest.raises(AssertionError, match=r"^buffer '.*running_mean' moved \(\d+ others too\)"):
        with unchanged(backbone):
            somebodys_training(model)
    after = bytes_of(backbone)
    assert {n for n in before if after[n] != before[n]} == {n for n, _ in backbone.named_buffers()}


@pytest.mark.parametrize("name", sorted(NOISY | NORMED))
def test_a_frozen_backbone_is_a_function_of_the_picture(name):
    "Twice the same features in train mode, and the same in other company; not so before it was frozen."
    backbone, head = apart(name)
    model, x = TransferModel(backbone, head).train(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        if name in NOISY:
            assert not torch.equal(model.features(x), model.features(x))
        freeze(backbone)
        model.train()
        assert torch.equal(model.features(x), model.features(x))
        torch.testing.assert_close(model.features(x)[:2], model.features(x[:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["layer2", "layer4"])
def test_a_part_frozen_is_still_and_the_rest_learns(stage):
    backbone, head = apart("pocket")
    unfreeze(freeze(backbone), f"{stage}.*")
    model = TransferModel(backbone, head)
    before = bytes_of(backbone)
    somebodys_training(model)
    after = bytes_of(backbone)
    assert {n for n in before if after[n] != before[n]} == {n for n in before if n.startswith(stage + ".")}


def test_frozen_survives_what_wraps_the_model():
    backbone, head = apart("pocket")
    model = TransferModel(freeze(backbone), head)
    before = bytes_of(backbone)
    for wrapped in (nn.Sequential(model), nn.ModuleDict({"m": model}), nn.DataParallel(model), copy.deepcopy(model)):
        wrapped.train()
        inner = next(m for m in wrapped.modules() if isinstance(m, TransferModel))
        assert not any(m.training for m in inner.backbone.modules()) and inner.head.training
        inner(torch.randn(4, 3, 32, 32))
        assert bytes_of(inner.backbone) == before
    model.apply(lambda m: m.train())  # children first, the model last: it has the last word
    assert not any(m.training for m in backbone.modules())


CALLS = {
    "model": lambda m: m.train(),
    "backbone": lambda m: m.backbone.train(),
    "every module": lambda m: [k.train() for k in m.modules()],
    "apply": lambda m: m.apply(lambda k: k.train()),
    "leaves": lambda m: [k.train() for k in m.backbone.modules() if not list(k.children())],
    "by hand": lambda m: [setattr(k, "training", True) for k in m.modules()],
}
CARRIED = {
    "itself": lambda m: m,
    "copy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "loaded": lambda m: (m.load_state_dict({n: t.clone() for n, t in m.state_dict().items()}), m)[1],
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("carried", CARRIED)
def test_whoever_calls_train_on_whatever_part(call, carried):
    backbone, head = apart("pocket")
    model = CARRIED[carried](TransferModel(freeze(backbone), head))
    before = bytes_of(model.backbone)
    for _ in range(2):
        CALLS[call](model)
        model(torch.randn(4, 3, 32, 32))
        CALLS[call](model)
        model.features(torch.randn(4, 3, 32, 32))
    assert (
        bytes_of(model.backbone) == before
        and model.state_dict().keys() == TransferModel(*apart("pocket")).state_dict().keys()
    )
    unfreeze(model)
    CALLS[call](model)
    model.train()
    model(torch.randn(4, 3, 32, 32))
    after = bytes_of(model.backbone)
    assert {n for n in before if after[n] != before[n]} == {n for n, _ in model.backbone.named_buffers()}, (
        "it moves again"
    )


def test_a_gradient_switched_on_by_hand_is_seen():
    net = freeze(NETWORKS["pocket"]()).requires_grad_(True).train()
    before = bytes_of(net)
    net(torch.randn(4, 3, 32, 32))
    assert net.bn1.training and bytes_of(net)["bn1.running_mean"] != before["bn1.running_mean"]


@pytest.mark.parametrize("pattern", ["1", "1.*", "[1]"])
def test_statistics_without_parameters_are_frozen_by_their_name(pattern):
    "BatchNorm(affine=False) behind a frozen layer follows what it stands in, until it is named."
    make = lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Dropout(), nn.Linear(4, 2))
    for model, named in ((freeze(make(), "0.*"), False), (freeze(make(), "0.*", pattern), True)):
        before = bytes_of(model[1])
        for call in (lambda m: m.train(), lambda m: [k.train() for k in m.modules()]):
            call(model)
            model(torch.randn(8, 3))
        assert (bytes_of(model[1]) == before) == named and model[2].training and model[3].training
    wrapped = TransferModel(model, nn.Linear(2, 2)).train()
    wrapped(torch.randn(8, 3))
    assert bytes_of(model[1]) == before, "the mark outlives a mode derived anew"
    for back in (lambda: unfreeze(model, pattern), lambda: unfreeze(model)):
        freeze(model, pattern)
        assert not model[1].training
        back()
        assert model[1].training


def test_a_frozen_sequential_of_ones_own_keeps_all_statistics():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4), nn.Dropout())
    outer = nn.Sequential(freeze(net), nn.Linear(4, 2))
    before = bytes_of(net)
    for m in outer.modules():
        m.train()
    outer(torch.randn(8, 3))
    net[1].train()
    outer(torch.randn(8, 3))
    assert bytes_of(net) == before


@pytest.mark.parametrize("given", ["module", "name"])
def test_a_backbone_without_any_parameter_can_be_frozen(given):
    backbone = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Flatten())
    model = TransferModel(freeze(backbone) if given == "module" else backbone, nn.Linear(4, 2))
    if given == "name":
        freeze(model, "backbone.*")
    before = bytes_of(backbone)
    for m in (model, backbone, backbone[0]):
        m.train()
        model(torch.randn(8, 4))
    assert bytes_of(backbone) == before and model.head.training


def test_a_train_of_its_own_is_respected():
    class Own(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[0].eval()
            return self

    model = TransferModel(Own(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4)), nn.Linear(4, 2)).train()
    assert [m.training for m in model.backbone] == [False, True, True] and model.head.training
    own = freeze(Own(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4)), "2.*")
    assert [m.training for m in own] == [False, True, False]


def test_the_guard_sees_a_forward_by_hand():
    backbone, head = apart("pocket")
    model = TransferModel(freeze(backbone), head)
    with pytest.raises(AssertionError, match=r"'bn1\.running_mean' moved"), unchanged(backbone):
        backbone.bn1.train().forward(torch.randn(4, 16, 8, 8))
    with unchanged(backbone):
        model(torch.randn(4, 3, 32, 32))


# By hand and against torchvision


def test_one_batch_by_hand():
    for freezing in (lambda m: m.requires_grad_(False), freeze):
        bn = nn.BatchNorm1d(1)
        freezing(bn)
        bn(torch.tensor([[1.0], [3.0]]))
        mean, var, n = (0.0, 1.0, 0) if freezing is freeze else (0.9 * 0 + 0.1 * 2, 0.9 * 1 + 0.1 * 2, 1)
        assert bn.running_mean.item() == pytest.approx(mean)
        assert bn.running_var.item() == pytest.approx(var)
        assert bn.num_batches_tracked.item() == n


def test_a_frozen_batchnorm_computes_what_frozenbatchnorm_computes():
    bn, x = nn.BatchNorm2d(6), torch.randn(4, 6, 5, 5)
    with torch.no_grad():
        for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
            t.copy_(torch.rand(6) + 0.5)
    fixed = FrozenBatchNorm2d(6, eps=bn.eps)
    fixed.load_state_dict(bn.state_dict())
    torch.testing.assert_close(freeze(bn)(x), fixed(x))


# The mode


def tree(depth):
    "Random modules: layers with and without parameters, nested."
    leaf = st.sampled_from(
        [
            lambda: nn.Linear(2, 2),
            lambda: nn.BatchNorm1d(2),
            lambda: nn.BatchNorm1d(2, affine=False),
            lambda: nn.Dropout(),
            lambda: nn.ReLU(),
            lambda: nn.MultiheadAttention(2, 1, dropout=0.1),
        ]
    ).map(lambda make: make())
    if depth == 0:
        return leaf
    return st.lists(tree(depth - 1), min_size=0, max_size=3).map(lambda ms: nn.Sequential(*ms)) | leaf


def should_train(root, path):
    "The rule, by names: what holds parameters follows them, what holds none the nearest that does."
    while True:
        params = list(root.get_submodule(path).parameters())
        if params or not path:
            return any(p.requires_grad for p in params)
        path = path.rpartition(".")[0]


@settings(max_examples=150, deadline=None)
@given(root=tree(3), choices=st.lists(st.booleans(), min_size=1, max_size=8), was=st.booleans())
def test_the_mode_is_the_gradients(root, choices, was):
    for i, p in enumerate(root.parameters()):
        p.requires_grad_(choices[i % len(choices)])
    root.train(was)
    assert follow_grad(root) is root
    modes = {n: m.training for n, m in root.named_modules()}
    assert modes == {n: should_train(root, n) for n in modes}
    follow_grad(root)
    assert modes == {n: m.training for n, m in root.named_modules()}
    follow_grad(root, False)
    assert not any(m.training for m in root.modules())


@pytest.mark.parametrize("frozen_first", [True, False])
@pytest.mark.parametrize("shared", [nn.Dropout, lambda: nn.BatchNorm1d(2, affine=False)])
def test_what_a_frozen_block_shares_is_still(frozen_first, shared):
    s = shared()
    frozen, learning = freeze(nn.Sequential(nn.Linear(2, 2), s)), nn.Sequential(nn.Linear(2, 2), s)
    root = follow_grad(nn.Sequential(*((frozen, learning) if frozen_first else (learning, frozen))))
    assert (root.training, frozen.training, learning.training, s.training) == (True, False, True, False)


@pytest.mark.parametrize(
    "make", [nn.Dropout, lambda: nn.BatchNorm1d(1, affine=False), lambda: nn.Sequential(nn.ReLU())]
)
def test_nothing_learns_in_what_has_no_parameters(make):
    m = make()
    assert freeze(m) is m and not any(c.training for c in m.modules())


def test_eval_is_eval_everywhere():
    model = TransferModel(*apart("pocket"))
    assert all(m.training for m in model.train().modules())
    assert not any(m.training for m in model.eval().modules())


# Patterns


def test_patterns_choose_by_name():
    net = PocketResNet(3)
    assert freeze(net) is net and trainable(net) == {}
    assert unfreeze(net, "layer4.*", "fc.bias") is net
    assert set(trainable(net)) == {n for n, _ in net.named_parameters() if n.startswith("layer4.") or n == "fc.bias"}
    freeze(net, "*.bias")
    assert set(trainable(net)) == {n for n, _ in net.named_parameters() if n[:7] == "layer4." and n[-5:] != ".bias"}
    assert set(trainable(unfreeze(net))) == {n for n, _ in net.named_parameters()}
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize(
    ("pattern", "near"),
    [("layer5.*", "'layer4.*'"), ("layer4", "'layer4.*'"), ("fc.wieght", "'fc.weight'"), ("FC.*", "'fc.*'"), ("", "'")],
)
@pytest.mark.parametrize("act", [freeze, unfreeze])
def test_a_pattern_that_matches_nothing_is_an_error_and_changes_nothing(act, pattern, near):
    net = freeze(PocketResNet(3), "conv1.*").eval()
    was = [p.requires_grad for p in net.parameters()]
    with pytest.raises(ValueError, match="unknown parameter pattern") as e:
        act(net, "layer1.*", "conv1.*", pattern)
    assert repr(pattern) in str(e.value) and near in str(e.value).split("did you mean")[1]
    assert [p.requires_grad for p in net.parameters()] == was
    assert not any(m.training for m in net.modules())


def test_patterns_that_cannot_be():
    with pytest.raises(TypeError, match=r"a pattern is a string, got \['layer1"):
        freeze(PocketResNet(3), ["layer1.*"])
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        freeze(nn.ReLU(), "weight")


def test_freezing_twice_is_no_error():
    net = freeze(freeze(PocketResNet(3), "layer1.*"), "layer1.*")
    assert not any(n.startswith("layer1.") for n in trainable(net))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.decoder.weight = self.encoder.weight


@pytest.mark.parametrize("name", ["encoder.*", "decoder.*"])
def test_a_tied_weight_has_two_names_and_is_trained_once(name):
    net = Tied()
    assert len(trainable(net)) == 1  # an optimiser must not get it twice
    assert trainable(freeze(net, name)) == {}
    with pytest.raises(AssertionError, match=r"^parameter '(en|de)coder.weight' moved"), unchanged(net):
        with torch.no_grad():
            net.decoder.weight += 1


def test_trainable_gives_the_parameters_themselves():
    net = freeze(PocketResNet(3), "layer*")
    torch.optim.SGD(trainable(net).values(), lr=0.1)
    assert all(p is net.get_parameter(n) and p.requires_grad for n, p in trainable(net).items())


# What moved


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=5), st.lists(st.floats(width=32), min_size=1, max_size=5))
def test_moved_is_numpys_opinion(a, b):
    a, b = np.array(a, "float32"), np.array(b, "float32")
    far = moved({"w": torch.from_numpy(a.copy())}, {"w": torch.from_numpy(b.copy())})
    assert ("w" not in far) == (a.shape == b.shape and a.tobytes() == b.tobytes())
    if far:
        with np.errstate(all="ignore"):
            gap = np.sqrt(((b.astype("float64") - a) ** 2).sum()) if a.shape == b.shape else math.inf
        assert far["w"] == pytest.approx(gap, rel=1e-9, nan_ok=True)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 2)], ids=str)
def test_moved_for_every_kind_of_tensor(dtype, shape):
    a = torch.ones(shape).to(dtype)
    assert moved({"w": a}, {"w": a.clone()}) == {}
    assert moved({"w": a}, {"w": torch.zeros_like(a)}) == (
        {"w": pytest.approx(math.sqrt(a.numel()))} if a.numel() else {}
    )


def test_moved_tells_bits_from_values():
    one = lambda v, dtype=torch.float32: {"w": torch.tensor([v], dtype=dtype)}
    assert moved(one(math.nan), one(math.nan)) == {}
    assert moved(one(0.0), one(-0.0)) == {"w": 0.0}
    assert moved(one(1.0), one(1.0, torch.float64)) == {"w": 0.0}
    assert moved(one(1.0), one(np.nextafter(np.float32(1), np.float32(2)))) == {"w": pytest.approx(2**-23)}
    assert moved({"w": torch.eye(2)}, {"w": torch.eye(2).T}) == {}  # however it lies in memory


def test_moved_names_what_came_went_and_changed_its_shape():
    t = torch.zeros
    far = moved({"a": t(2), "gone": t(1), "shape": t(2, 3)}, {"a": t(2), "new": t(1), "shape": t(3, 2)})
    assert far == {"gone": math.inf, "shape": math.inf, "new": math.inf}


# The guard


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("kept", torch.zeros(3))
        self.register_buffer("unsaved", torch.zeros(3), persistent=False)
        self.register_buffer("nothing", None)


def widen(m):
    m.layer = nn.Linear(2, 5)


def shrink(m):
    m.layer.bias = None


def swap_dtype(m):
    m.half()


CHANGES = {
    "parameter 'layer.weight' moved:": lambda m: m.layer.weight.data.add_(1),
    "parameter 'layer.bias' moved:": lambda m: m.layer.bias.data.mul_(-1),
    "buffer 'kept' moved:": lambda m: m.kept.neg_(),  # 0 to -0
    "buffer 'unsaved' moved:": lambda m: m.unsaved.add_(1),
    "buffer 'nothing' is new:": lambda m: setattr(m, "nothing", torch.zeros(1)),
    "buffer 'kept' is gone:": lambda m: delattr(m, "kept"),
    "parameter 'layer.bias' is gone:": shrink,
    "buffer 'fresh' is new:": lambda m: m.register_buffer("fresh", torch.zeros(1)),
    "parameter 'layer.weight' was torch.float32 [2, 2] and is torch.float32 [5, 2] (1 others too):": widen,
    "parameter 'layer.weight' was torch.float32 [2, 2] and is torch.float16 [2, 2] (3 others too):": swap_dtype,
}


@pytest.mark.parametrize("message", CHANGES)
def test_unchanged_names_what_changed(message):
    m = Buffers()
    with pytest.raises(AssertionError) as e, unchanged(m):
        CHANGES[message](m)
    assert str(e.value).startswith(message) and "freeze" in str(e.value)


def test_unchanged_is_silent_where_nothing_moves():
    m = Buffers()
    with torch.no_grad():
        m.kept.fill_(math.nan)
        m.layer.weight[0, 0] = math.inf
    with unchanged(m) as same:
        m.layer(torch.zeros(1, 2))
        m.eval().requires_grad_(False)
        with unchanged(m.layer):
            pass
    assert same is m
    with unchanged(nn.ReLU()):
        pass


def notes(e):
    return " ".join(getattr(e, "__notes__", []))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt(), AssertionError("mine")])
def test_the_bodys_error_comes_first_and_the_guard_still_reports(error):
    m, cause = Buffers(), ValueError("its cause")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(type(error)) as e, unchanged(m):
            m.kept.add_(1)
            raise error from cause
    assert e.value is error and e.value.__cause__ is cause
    said = notes(error) if sys.version_info >= (3, 11) else " ".join(str(w.message) for w in seen)
    assert "buffer 'kept' moved" in said


def test_the_bodys_error_goes_alone_where_nothing_moved():
    with pytest.raises(RuntimeError) as e, unchanged(Buffers()):
        raise RuntimeError("out of memory")
    assert notes(e.value) == ""


def test_a_guard_that_cannot_look_does_not_hide_the_error():
    m = Buffers()
    with pytest.raises(RuntimeError, match="out of memory"), unchanged(m):
        m.to_empty(device="meta")  # its values are gone: nothing can be compared
        raise RuntimeError("out of memory")


def test_without_notes_the_guard_warns():
    "Python 3.10: an exception that has no add_note."

    class Old(Exception):
        def __getattribute__(self, name):
            if name == "add_note":
                raise AttributeError(name)
            return super().__getattribute__(name)

    m = Buffers()
    with pytest.warns(UserWarning, match="buffer 'kept' moved"), pytest.raises(Old):
        with unchanged(m):
            m.kept.add_(1)
            raise Old


# The program on the pocket world


def test_the_usual_program_moves_all_statistics_and_costs_the_source():
    "Requires_grad alone on real weights: 0 parameters, 36 of 36 buffers; the source head loses accuracy, frozen not."
    source = pocket_source("shape", n=1).test
    task, (net, normal) = few_shot(load_split("digits_wild").train, 25, 0), source_network("pocket")
    head, net.fc = net.fc, nn.Identity()

    def source_accuracy(backbone):
        with torch.no_grad():
            guess = torch.cat([head(backbone(xb)).argmax(1) for xb, _ in Loader(source, 500, normal)])
        return (guess == source.y).float().mean().item()

    intact = source_accuracy(net.eval())
    results = {}
    for model in (nn.Sequential, TransferModel):
        backbone = copy.deepcopy(net).requires_grad_(False)
        before = {n: t.clone() for n, t in backbone.state_dict().items()}
        fine = model(backbone, nn.Linear(128, 10))
        opt = torch.optim.Adam(trainable(fine).values())
        for _ in range(4):
            fine.train()
            for xb, yb in Loader(task, 32, normal, shuffle=True):
                loss = nn.functional.cross_entropy(fine(xb), yb)
                opt.zero_grad()
                loss.backward()
                opt.step()
        results[model] = set(moved(before, backbone.state_dict())), source_accuracy(backbone.eval())
    assert results[TransferModel] == (set(), intact)
    assert results[nn.Sequential][0] == {n for n, _ in net.named_buffers()} and len(results[nn.Sequential][0]) == 36
    assert intact > 0.88 and intact - results[nn.Sequential][1] > 0.03
