"phi once: equal to the live path, keyed by all it depends on, never from a broken file."

import copy
import multiprocessing
import os
import random
import signal
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import MaxVit, get_model
from torchvision.transforms import v2

from sft_nb.cache import Cache, cache_key, cached, key_parts
from sft_nb.data import Images, Loader, jitter, load_split
from sft_nb.features import OWED, Features, extract
from sft_nb.freezing import freeze
from sft_nb.models import load_pretrained, normalise, snapshot
from sft_nb.store import save
from sft_nb.ways import EXACT, folded, relative_error

CLOSE = 0.03  # relative error of the pocket network in half precision, generously


@pytest.fixture(scope="module")
def pre():
    return load_pretrained("pocket")


@pytest.fixture(scope="module")
def dl(pre):
    return Loader(load_split("digits_wild").test[:300], 64, pre.transform)


@pytest.fixture(scope="module")
def live(pre, dl):
    with torch.inference_mode():
        return torch.cat([pre.backbone(xb) for xb, _ in dl]).clone()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path)


def test_extract_is_the_live_path(pre, dl, live):
    f = extract(pre.backbone, dl)
    assert f.x.dtype == torch.float32 and f.x.shape == live.shape and torch.equal(f.y, dl.ds.y)
    assert relative_error(f.x, live) < EXACT


def test_extract_changes_nothing(pre, dl):
    net = copy.deepcopy(pre.backbone).train()
    before = snapshot(net)
    extract(net, dl)
    assert net.training and all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vit_b_16", "convnext_tiny", "densenet121"]
)
def test_every_family_by_the_fast_path(name):
    "Folded where it can be traced, plain where not; with BatchNorm statistics that are not the identity."
    torch.manual_seed(0)
    net = get_model(name, weights=None)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            (
                nn.init.uniform_(m.running_mean, -0.3, 0.3),
                nn.init.uniform_(m.running_var, 0.5, 2),
                nn.init.uniform_(m.weight, 0.5, 1.5),
            )
    px = 224 if name == "vit_b_16" else 64
    ds = Images(torch.randint(0, 256, (3, 3, px, px), dtype=torch.uint8), torch.arange(3))
    batches = Loader(ds, 3, normalise((0.5,) * 3, (0.25,) * 3))
    with torch.inference_mode():
        want = net.eval()(next(iter(batches))[0])
    assert relative_error(extract(net, batches).x, want) < EXACT


def test_a_frozen_backbone_is_folded_and_known_like_any_other(pre, dl, live):
    net = freeze(copy.deepcopy(pre.backbone))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded(net).modules())
    assert torch.equal(extract(net, dl).x, extract(pre.backbone, dl).x) and cache_key(net, dl) == cache_key(
        pre.backbone, dl
    )


def test_a_transform_that_gives_nan_is_not_random(pre, dl):
    assert cache_key(pre.backbone, Loader(dl.ds, 64, lambda xb: xb.float() * float("nan")))


def test_folding_removes_every_batchnorm(pre):
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded(pre.backbone).modules())


def test_bf16_is_close_or_refused(pre, dl, live):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < relative_error(extract(pre.backbone, dl, torch.bfloat16, engine="packed").x, live) <= CLOSE

    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.up, self.down = pre.backbone, nn.Linear(128, 128), nn.Linear(128, 128)
            for layer, offset in ((self.up, 1000), (self.down, -1000)):
                nn.init.eye_(layer.weight)
                nn.init.constant_(layer.bias, offset)

        def forward(self, x):
            return self.down(self.up(self.net(x)))

    with pytest.warns(UserWarning, match=f"make a head owe .* nats, more than {OWED}: computing in float32"):
        assert relative_error(extract(Offset(), dl, torch.bfloat16, engine="packed").x, live) < EXACT


def test_a_layer_is_the_hooked_average(pre, dl):
    seen = []
    hook = pre.backbone.layer2.register_forward_hook(lambda m, a, out: seen.append(out.mean((2, 3))))
    with torch.inference_mode():
        for xb, _ in dl:
            pre.backbone(xb)
    hook.remove()
    assert torch.equal(extract(pre.backbone, dl, layer="layer2").x, torch.cat(seen))
    with pytest.raises(ValueError, match="no layer 'layer9'.*layer4"):
        extract(pre.backbone, dl, layer="layer9")


def test_nothing_to_extract(pre):
    with pytest.raises(ValueError, match="no batch"):
        extract(pre.backbone, [])


def test_a_hit_is_the_live_path_and_runs_nothing(pre, dl, live, cache, monkeypatch):
    first = cached(pre.backbone, dl, cache=cache)
    assert relative_error(first.x, live) < EXACT and len(cache.files()) == 1
    monkeypatch.setattr("sft_nb.cache.extract", lambda *a, **k: pytest.fail("computed again"))
    again = cached(pre.backbone, Loader(dl.ds, 7, dl.transform, shuffle=True, seed=5), cache=cache)
    assert torch.equal(again.x, first.x) and torch.equal(again.y, dl.ds.y)


def test_any_change_misses(pre, dl):
    keys = {cache_key(pre.backbone, dl)}
    for name, t in pre.backbone.state_dict().items():
        net = copy.deepcopy(pre.backbone)
        t = net.state_dict()[name]
        t.view(-1)[0] += 1
        keys.add(cache_key(net, dl))
    n = len(pre.backbone.state_dict())
    assert len(keys) == n + 1, "a weight or buffer is not part of the key"
    x, y = dl.ds.x.clone(), dl.ds.y.clone()
    x[-1, -1, -1, -1] ^= 1
    y[0] = (y[0] + 1) % 10
    for ds in (Images(x, dl.ds.y), Images(dl.ds.x, y), dl.ds[:-1], dl.ds[torch.arange(299, -1, -1)]):
        keys.add(cache_key(pre.backbone, Loader(ds, 64, dl.transform)))
    keys.add(cache_key(pre.backbone, Loader(dl.ds, 64, normalise((0.4,) * 3, (0.25,) * 3))))
    keys.add(cache_key(pre.backbone, dl, torch.bfloat16))
    keys.add(cache_key(pre.backbone, dl, layer="layer1"))
    assert len(keys) == n + 8


def own_stream(xb):
    return xb.float() + np.random.default_rng().random()


RANDOM = {
    "v2": v2.RandomHorizontalFlip(0.01),  # no Random in the next ones' names
    "jitter": v2.ColorJitter(0.5),
    "torch": lambda xb: xb.float() + torch.randn(1),
    "python": lambda xb: xb.float() + random.random(),
    "numpy": lambda xb: xb.float() + np.random.rand(),
    "a stream of its own": own_stream,
}


@pytest.mark.parametrize("name", RANDOM)
def test_randomness_is_refused_and_no_stream_is_moved(pre, dl, name):
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    with pytest.raises(ValueError, match="the transform is random.*augment=.*views=K"):
        cache_key(pre.backbone, Loader(dl.ds, 64, RANDOM[name]))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == state[1:]


def test_a_name_is_not_a_die(pre, dl):
    class RandomForestCrop(nn.Module):
        def forward(self, xb):
            g = torch.Generator().manual_seed(0)
            return xb.float() + torch.randn(1, generator=g)  # always the same

    assert cache_key(pre.backbone, Loader(dl.ds, 64, RandomForestCrop()))
    with pytest.raises(ValueError, match="augments at random.*views=K"):
        cache_key(pre.backbone, Loader(dl.ds, 64, dl.transform, augment=jitter(2)))
    with pytest.raises(ValueError, match="augment draws random numbers that the seed does not give"):
        cache_key(pre.backbone, Loader(dl.ds, 64, dl.transform, augment=lambda xb, g: xb + torch.rand(1)), views=2)


def test_views_are_stored_views(pre, dl, cache):
    augmented = Loader(dl.ds, 64, dl.transform, augment=jitter(2), seed=3)
    f = cached(pre.backbone, augmented, views=2, cache=cache)
    n = len(dl.ds)
    assert len(f) == 2 * n and torch.equal(f.y, torch.cat([dl.ds.y] * 2))
    assert not torch.equal(f.x[:n], f.x[n:])
    assert torch.equal(cached(pre.backbone, augmented, views=2, cache=cache).x, f.x)
    other = Loader(dl.ds, 64, dl.transform, augment=jitter(2), seed=4)
    assert cache_key(pre.backbone, other, views=2) != cache_key(pre.backbone, augmented, views=2)
    three = Loader(dl.ds, 64, dl.transform, augment=jitter(3), seed=3)
    assert cache_key(pre.backbone, three, views=2) != cache_key(pre.backbone, augmented, views=2)


WRONG = {
    "no x": dict(y=torch.zeros(3, dtype=torch.int64)),
    "no y": dict(x=torch.zeros(3, 2)),
    "rows": dict(x=torch.zeros(3, 2), y=torch.zeros(4, dtype=torch.int64)),
    "shape": dict(x=torch.zeros(3, 2, 2), y=torch.zeros(3, dtype=torch.int64)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_whole_file_that_holds_no_features_is_rebuilt(pre, dl, live, cache, wrong):
    cached(pre.backbone, dl, cache=cache)
    save(cache.files()[0], WRONG[wrong])
    with pytest.warns(UserWarning, match="holds no features"):
        f = cached(pre.backbone, dl, cache=cache)
    assert relative_error(f.x, live) < EXACT


def test_a_folder_named_like_a_file_of_the_cache(pre, dl, cache):
    (cache.folder / f"{cache_key(pre.backbone, dl)}.safetensors").mkdir(parents=True)
    with pytest.raises(OSError, match="is a folder where a file of the cache belongs: remove it"):
        cached(pre.backbone, dl, cache=cache)
    assert cache.files() == [] and cache.clear() == 0


def test_the_home_folder_is_meant_by_a_tilde(pre, dl, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("SFT_NB_CACHE", "~/features")
    monkeypatch.chdir(tmp_path)
    cached(pre.backbone, dl)
    assert len(Cache(str(tmp_path / "features")).files()) == len(Cache("~/features").files()) == 1
    assert not (tmp_path / "~").exists()


def test_why_there_was_no_hit(pre, dl, cache):
    brighter = lambda k: Loader(dl.ds, 64, lambda xb, k=k: dl.transform(xb) * k)
    assert "holds no finished features" in cache.why(key_parts(pre.backbone, dl))
    cached(pre.backbone, dl, cache=cache)
    cached(pre.backbone, brighter(1.0), cache=cache)
    assert "nothing differs" in cache.why(key_parts(pre.backbone, dl))
    assert cache.why(key_parts(pre.backbone, brighter(2.0))) == "transform: default k: was 1.0, now 2.0"
    net = copy.deepcopy(pre.backbone)
    net.bn1.running_mean[0] += 1
    assert cache.why(key_parts(net, dl)).startswith("network: bn1.running_mean: was float32 [16] ")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_file_is_rebuilt_never_used(pre, dl, live, cache, damage):
    cached(pre.backbone, dl, cache=cache)
    (path,) = cache.files()
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(dict(flip=blob, cut=blob[: len(blob) // 2], empty=b"", other=b"not a tensor" * 100)[damage])
    with pytest.warns(UserWarning, match="damaged"):
        f = cached(pre.backbone, dl, cache=cache)
    assert relative_error(f.x, live) < EXACT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_and_resumed_without_redoing_finished_shards(pre, dl, live, cache, monkeypatch):
    "A child is killed after k shards; the next run computes the rest only, and the result is the same."
    import sft_nb.cache as cache_module

    for k in (1, 3, 4):
        cache.clear()
        pid = os.fork()
        if pid == 0:
            saved, plain = [0], cache_module.save

            def save(*a, **kw):
                if saved[0] == k:
                    os.kill(os.getpid(), signal.SIGKILL)
                saved[0] += 1
                return plain(*a, **kw)

            cache_module.save = save
            cached(pre.backbone, dl, cache=cache, rows=75)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]) and len(cache.files()) == k
        computed, plain = [], cache_module.extract
        with monkeypatch.context() as m:
            m.setattr(cache_module, "extract", lambda *a, **kw: computed.append(1) or plain(*a, **kw))
            f = cached(pre.backbone, dl, cache=cache, rows=75)
        assert len(computed) == 4 - k and relative_error(f.x, live) < EXACT and len(cache.files()) == 1


def _ask(folder, queue):
    torch.set_num_threads(1)
    pre = load_pretrained("pocket")
    f = cached(
        pre.backbone, Loader(load_split("digits_wild").test[:300], 64, pre.transform), cache=Cache(folder), rows=50
    )
    queue.put(f.x.double().sum().item())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_at_once_leave_one_good_file(cache, live):
    ctx = multiprocessing.get_context("fork")
    queue = ctx.Queue()
    both = [ctx.Process(target=_ask, args=(cache.folder, queue)) for _ in range(2)]
    [p.start() for p in both]
    sums = [queue.get(timeout=120) for _ in both]
    [p.join() for p in both]
    assert sums[0] == pytest.approx(sums[1]) == pytest.approx(live.double().sum().item(), rel=1e-4)
    finished = [p for p in cache.files() if p.name.count(".") == 1]
    assert len(finished) == 1


def test_the_cache_is_listed_sized_and_cleared(pre, dl, cache):
    assert cache.files() == [] and cache.size() == 0
    cached(pre.backbone, dl, cache=cache)
    (cache.folder / ".left.safetensors.abc.part").write_bytes(b"half")
    assert len(cache.files()) == 2 and "2 files" in repr(cache)
    size = cache.size()
    assert cache.clear() == size > 0 and cache.files() == []


def test_features_are_subset_like_a_set():
    f = Features(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 2]))
    assert len(f[f.y > 0]) == 2 and torch.equal(f[1:].x, f.x[1:])


# What else comes in: labels, batches, backbones


GOOD = {
    "int32": torch.tensor([0, 1, 2], dtype=torch.int32),
    "uint8": torch.tensor([0, 1, 2], dtype=torch.uint8),
    "whole floats": torch.tensor([0.0, 1.0, 2.0]),
    "a column": torch.tensor([[0], [1], [2]]),
    "numpy": np.array([0, 1, 2], dtype=np.int16),
    "a list": [0, 1, 2],
}


@pytest.mark.parametrize("name", GOOD)
def test_labels_that_are_meant_as_labels(name):
    f = Features(np.arange(6, dtype=np.float32).reshape(3, 2), GOOD[name])
    assert f.y.dtype == torch.int64 and f.y.tolist() == [0, 1, 2] and torch.equal(f.x, torch.arange(6.0).view(3, 2))
    assert len(f[1:]) == 2


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (torch.zeros(4, 3), torch.zeros(3).long(), "4 rows of features need as many labels; got 3"),
        (torch.zeros(4), torch.zeros(4).long(), r"must be numbers \[N, D\].*got torch.float32 \[4\]"),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4).long(), r"must be numbers \[N, D\]"),
        (torch.zeros(4, 3), torch.tensor([0.5, 1, 2, 3]), "labels must be the numbers of classes"),
        (torch.zeros(4, 3), torch.eye(4), r"numbers of classes, \[N\]; got torch.float32 \[4, 4\]"),
        (torch.zeros(4, 3), torch.tensor([float("nan")] * 4), "labels must be"),
    ],
)
def test_what_cannot_be_features(x, y, told):
    with pytest.raises(ValueError, match=told):
        Features(x, y)


def test_features_of_nan_are_features():
    assert Features(torch.full((2, 2), float("nan")), torch.tensor([0, 1])).x.isnan().all()


def test_batches_of_other_kinds(pre, dl, live):
    x = dl.transform(dl.ds.x)
    data = DataLoader(TensorDataset(x, dl.ds.y.int()), 64)
    arrays = [(xb.numpy(), yb.numpy()) for xb, yb in data]
    for batches in (data, arrays, [[xb, yb[:, None]] for xb, yb in data]):
        f = extract(pre.backbone, batches)
        assert relative_error(f.x, live) < EXACT and torch.equal(f.y, dl.ds.y)


class Gives(nn.Module):
    "The backbone, its features handed over in some wrapping."

    def __init__(self, net, wrap):
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x):
        return self.wrap(self.net(x))


WRAPPINGS = {
    "tuple": lambda z: (z, z[:1]),
    "logits": lambda z: types.SimpleNamespace(logits=z, loss=None),
    "dictionary": lambda z: dict(features=z),
    "tokens": lambda z: torch.stack([z - 1, z + 1], 1),
    "channels first": lambda z: z[:, :, None, None].expand(-1, -1, 3, 3),
    "channels last": lambda z: z[:, None, None].expand(-1, 3, 3, -1),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_outputs_of_other_kinds(pre, dl, live, wrapping):
    net = Gives(pre.backbone, WRAPPINGS[wrapping])
    assert relative_error(extract(net, dl).x, live) < EXACT
    assert relative_error(extract(net, dl, layer="net").x, live) < EXACT


def test_outputs_that_cannot_be_features(pre, dl):
    with pytest.raises(ValueError, match="without a tensor in it"):
        extract(Gives(pre.backbone, lambda z: ["text"]), dl)
    with pytest.raises(ValueError, match=r"a row for each of \d+ examples; got \[1, 128\]"):
        extract(Gives(pre.backbone, lambda z: z[:1]), dl)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_backbone_of_another_type(pre, dl, live, dtype):
    net = copy.deepcopy(pre.backbone).to(dtype)
    f = extract(net, dl)
    assert f.x.dtype == torch.float32 and relative_error(f.x, live) < (EXACT if dtype == torch.float64 else CLOSE)
    assert net.conv1.weight.dtype == dtype
    assert relative_error(extract(net, dl, layer="layer2").x, extract(pre.backbone, dl, layer="layer2").x) < CLOSE


def test_a_backbone_without_parameters_and_a_second_look_at_features(dl):
    f = extract(nn.Flatten(), Loader(dl.ds, 64))
    assert torch.equal(f.x, dl.ds.x.flatten(1).float() / 255)
    assert torch.equal(extract(nn.Identity(), Loader(f, 7)).x, f.x)
    assert torch.equal(extract(nn.Flatten(), Loader(dl.ds, 64, lambda xb: xb)).x, dl.ds.x.flatten(1).float())


@pytest.mark.parametrize(
    ("dtype", "said"), [(torch.float32, None), (torch.bfloat16, "cannot be computed: computing in")]
)
def test_a_candidate_that_fails_is_not_heard_of(dl, capfd, dtype, said):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            if said and (x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")):
                raise OSError("only float32")
            return self.conv(x).mean((2, 3))

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        f = extract(Net(), dl, dtype, engine="packed" if said else "")
    heard = [str(w.message) for w in seen if w.category is UserWarning]
    assert f.x.shape == (300, 8) and capfd.readouterr().err == ""
    assert (not heard) if said is None else said in heard[0]


# A layer


class Overwrites(nn.Module):
    "bn is overwritten by the next layer, twice runs twice, and never is never called."

    def __init__(self):
        super().__init__()
        self.bn, self.relu = nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.twice, self.never = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        z = self.relu(self.bn(x)).mean((2, 3))
        return self.twice(self.twice(z)).relu_()


def test_a_layer_is_read_before_the_next_one_writes_into_it(dl):
    torch.manual_seed(0)
    net, x = Overwrites().eval(), dl.transform(dl.ds.x)
    with torch.no_grad():
        want = net.bn(x)
        last = net.twice(net.twice(want.relu().mean((2, 3))))
    assert want.min() < 0 and last.min() < 0
    assert relative_error(extract(net, dl, layer="bn").x, want.mean((2, 3))) < EXACT
    assert relative_error(extract(net, dl, layer="twice").x, last) < EXACT, "of two runs the last one, as it was"
    with pytest.raises(ValueError, match="'never' is not called"):
        extract(net, dl, layer="never")


LAYERS = {
    "swin_t": ("features.3", lambda z: z.mean((1, 2))),  # [N, H, W, C]
    "vit_b_16": ("encoder.layers.encoder_layer_3", lambda z: z.mean(1)),  # [N, T, D]
    "convnext_tiny": ("features.3", lambda z: z.mean((2, 3))),
    "maxvit": ("blocks.1", lambda z: z.mean((2, 3))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_other_families(name):
    torch.manual_seed(0)
    px = 32 if name in ("vit_b_16", "maxvit") else 64
    if name == "maxvit":
        net = MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 8, 0.2).eval()
    else:
        net = get_model(name, weights=None, **(dict(image_size=32) if name == "vit_b_16" else {})).eval()
    ds = Images(torch.randint(0, 256, (2, 3, px, px), dtype=torch.uint8), torch.arange(2))
    batches, (layer, pool), seen = Loader(ds, 2), LAYERS[name], []
    net.get_submodule(layer).register_forward_hook(lambda m, a, out: seen.append(pool(out)))
    with torch.inference_mode():
        want = net(next(iter(batches))[0])
    assert relative_error(extract(net, batches, layer=layer).x, seen[0]) < EXACT
    assert relative_error(extract(net, batches).x, want) < EXACT
    if name == "vit_b_16":  # attention gives a tuple: its first tensor
        assert extract(net, batches, layer="encoder.layers.encoder_layer_3.self_attention").x.shape == (2, 768)


def test_a_text_encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = nn.Sequential(nn.Embedding(50, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    tokens = torch.randint(0, 50, (7, 5))
    with torch.no_grad():
        want = net(tokens).mean(1)
    assert relative_error(extract(net, [(tokens[:4], [0, 1, 0, 1]), (tokens[4:], [0, 1, 0])]).x, want) < EXACT


class Array:
    "What a network of another library gives: no tensor, but something that is an array."

    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x if dtype is None else self.x.astype(dtype)


def test_any_function_of_a_batch_gives_features(pre, dl, live):
    by_hand = extract(lambda xb: pre.backbone.eval()(xb), dl)
    assert relative_error(by_hand.x, live) < EXACT and torch.equal(by_hand.y, dl.ds.y)
    arrays = extract(lambda xb: Array(xb.numpy().mean((2, 3), dtype=np.float64)), dl)
    assert arrays.x.dtype == torch.float32 and arrays.x.shape == (300, 3)
    over_space = extract(lambda xb: Array(np.ones((len(xb), 4, 4, 7))), dl)  # channels last
    assert over_space.x.shape == (300, 7)
    for backbone, layer, match in ((abs, "layer1", "has no layer 'layer1'"), (3, "", "an? int cannot be called")):
        with pytest.raises(ValueError, match=match):
            extract(backbone, dl, layer=layer)


def test_a_functions_features_are_kept_under_what_it_is(dl, cache):
    scale = lambda k: lambda xb: xb.mean((2, 3)) * k
    first = cached(scale(2.0), dl, cache=cache)
    assert torch.equal(first.x, cached(scale(2.0), dl, cache=cache).x) and len(cache.files()) == 1
    assert torch.equal(first.x, extract(scale(2.0), dl).x)
    cached(scale(3.0), dl, cache=cache)
    assert len(cache.files()) == 2
