"phi once: equal to the live path, keyed by all it depends on, never from a broken file."

import copy
import multiprocessing
import os
import signal
import warnings

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from sft_nb.data import Images, Loader, jitter, pocket
from sft_nb.features import CLOSE, EXACT, Cache, Features, cache_key, cached, describe, extract, folded, relative_error
from sft_nb.models import load_pretrained, normalise, snapshot


@pytest.fixture(scope="module")
def pre():
    return load_pretrained("pocket")


@pytest.fixture(scope="module")
def dl(pre):
    return Loader(pocket("digits_wild").test[:300], 64, pre.transform)


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


def test_folding_removes_every_batchnorm(pre):
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded(pre.backbone).modules())


def test_bf16_is_close_or_refused(pre, dl, live):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < relative_error(extract(pre.backbone, dl, torch.bfloat16).x, live) <= CLOSE

    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = pre.backbone

        def forward(self, x):
            return (self.net(x) + 1000) - 1000

    with pytest.warns(UserWarning, match="computing in float32"):
        assert relative_error(extract(Offset(), dl, torch.bfloat16).x, live) < EXACT


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
    monkeypatch.setattr("sft_nb.features.extract", lambda *a, **k: pytest.fail("computed again"))
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


def test_randomness_is_refused(pre, dl):
    with pytest.raises(ValueError, match="augments at random.*views=K"):
        cache_key(pre.backbone, Loader(dl.ds, 64, dl.transform, augment=jitter(2)))
    from torchvision.transforms import v2

    with pytest.raises(ValueError, match="random"):
        describe(v2.Compose([v2.RandomHorizontalFlip()]))
    scale = 2
    with pytest.raises(ValueError, match="does not say what it does"):
        describe(lambda x: x * scale)


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
    import sft_nb.features as features

    for k in (1, 3, 4):
        cache.clear()
        pid = os.fork()
        if pid == 0:
            saved, plain = [0], features.save

            def save(*a, **kw):
                if saved[0] == k:
                    os.kill(os.getpid(), signal.SIGKILL)
                saved[0] += 1
                return plain(*a, **kw)

            features.save = save
            cached(pre.backbone, dl, cache=cache, rows=75)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]) and len(cache.files()) == k
        computed, plain = [], features.extract
        with monkeypatch.context() as m:
            m.setattr(features, "extract", lambda *a, **kw: computed.append(1) or plain(*a, **kw))
            f = cached(pre.backbone, dl, cache=cache, rows=75)
        assert len(computed) == 4 - k and relative_error(f.x, live) < EXACT and len(cache.files()) == 1


def _ask(folder, queue):
    torch.set_num_threads(1)
    pre = load_pretrained("pocket")
    f = cached(pre.backbone, Loader(pocket("digits_wild").test[:300], 64, pre.transform), cache=Cache(folder), rows=50)
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
