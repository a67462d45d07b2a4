"Data: hostile and broken archives, the laws of splits and batches, and what a folder of pictures may hold."

import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sft_nb import world
from sft_nb.albums import content_digest, count_pictures, unpack_pictures
from sft_nb.core import SIZES
from sft_nb.data import Images, Loader, Split, few_shot, jitter, load_split, shuffled, to_float
from sft_nb.features import Features
from sft_nb.sources import pocket
from sft_nb.sources.pocket import TASKS, pocket_source
from sft_nb.sources.vision import cifar10, image_folder, read_picture

prints = lambda ds: [p.numpy().tobytes() for p in ds.x]
tagged = lambda n: torch.arange(n * 12, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(n, 3, 2, 2)


def numbered(n, classes=3):
    "n pictures that can be told apart, with labels 0, 1, 2, 0, 1, 2, ..."
    x = torch.zeros(n, 3, 2, 2, dtype=torch.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = torch.arange(n) % 256, torch.arange(n) // 256
    return Images(x, torch.arange(n) % classes)


number = lambda x: (x[:, 0, 0, 0].long() + 256 * x[:, 0, 0, 1].long()).tolist()


# CIFAR-10 ------------------------------------------------------------------------------------------------------------

BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
ARCHIVE = "cifar-10-python.tar.gz"
md5 = lambda blob: hashlib.md5(blob).hexdigest()


class _Python2(pickle._Pickler):
    "Writes strings and bytes the way Python 2's `str` was pickled: the dialect of the published files."

    dispatch = dict(pickle._Pickler.dispatch)

    def save_str2(self, obj):
        blob = obj.encode("latin1") if isinstance(obj, str) else obj
        self.write(b"T" + struct.pack("<i", len(blob)) + blob)
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = save_str2


def python2(obj):
    out = io.BytesIO()
    _Python2(out, protocol=2).dump(obj)
    return out.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def content(n=12):
    rng = np.random.default_rng(0)
    made = {
        name: dict(
            batch_label=name,
            data=rng.integers(0, 256, (n, 3072), np.uint8),
            labels=rng.integers(0, 10, n).tolist(),
            filenames=[f"{i}.png" for i in range(n)],
        )
        for name in BATCHES
    }
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    return made | {"batches.meta": dict(num_cases_per_batch=n, label_names=names, num_vis=3072)}


def table(blobs, archive=None, **changes):
    "torchvision's table with the checksums of these files."
    sums = dict(
        train_list=[[n, md5(blobs[n])] for n in BATCHES[:5]],
        test_list=[[n, md5(blobs[n])] for n in BATCHES[5:]],
        meta=torchvision.datasets.CIFAR10.meta | dict(md5=md5(blobs["batches.meta"])),
    )
    if archive is not None:
        sums["tgz_md5"] = md5(archive.read_bytes())
    return type("Table", (torchvision.datasets.CIFAR10,), sums | changes)


def pack(archive, blobs):
    with tarfile.open(archive, "w:gz") as tar:
        for name, blob in {"readme.html": b"hello", **blobs}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    return table(blobs, archive)


def unpack(root, blobs):
    (root / "cifar-10-batches-py").mkdir()
    for name, blob in blobs.items():
        (root / "cifar-10-batches-py" / name).write_bytes(blob)
    return table(blobs)


@pytest.fixture
def blobs():
    return {n: python2(b) for n, b in content().items()}


def listing(root):
    "What lies there; an empty lock, which says that somebody fetched, is nothing."
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix != ".lock")


@pytest.mark.parametrize("dialect", [python2, lambda o: pickle.dumps(o, protocol=4)], ids=["python2", "python3"])
def test_archive_and_folder_agree_with_torchvision(tmp_path, dialect):
    blobs = {n: dialect(b) for n, b in content().items()}
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    packed, unpacked = pack(tmp_path / "a" / ARCHIVE, blobs), unpack(tmp_path / "b", blobs)
    a, b = cifar10(tmp_path / "a", valid=20, official=packed), cifar10(tmp_path / "b", valid=20, official=unpacked)
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(a, part).x, getattr(b, part).x)
        assert torch.equal(getattr(a, part).y, getattr(b, part).y)
    theirs = unpacked(tmp_path / "b", train=False)  # torchvision's own reader
    assert np.array_equal(a.test.x.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert a.test.y.tolist() == theirs.targets and list(a.classes) == theirs.classes
    whole = unpacked(tmp_path / "b", train=True)
    chw = [np.ascontiguousarray(p.transpose(2, 0, 1)).tobytes() for p in whole.data]
    ours = zip(prints(a.train) + prints(a.valid), a.train.y.tolist() + a.valid.y.tolist(), strict=True)
    assert sorted(ours) == sorted(zip(chw, whole.targets, strict=True))
    assert listing(tmp_path / "a") == [ARCHIVE]  # nothing was extracted


def test_validation_is_cut_from_train_and_the_test_set_stays(tmp_path, blobs):
    official = unpack(tmp_path, blobs)
    a, b = (cifar10(tmp_path, valid=v, seed=s, official=official) for v, s in ((10, 0), (25, 1)))
    assert torch.equal(a.test.x, b.test.x) and len(b.valid) == 25 and len(a.train) + len(a.valid) == 60
    assert sorted(prints(a.train) + prints(a.valid)) == sorted(prints(b.train) + prints(b.valid))
    again = cifar10(tmp_path, valid=10, seed=0, official=official)
    assert torch.equal(a.valid.x, again.valid.x) and not torch.equal(a.valid.x[:10], b.valid.x[:10])
    for valid in (0, -1, 60, 61):
        with pytest.raises(ValueError, match=f"valid={valid} pictures cannot be cut from 60"):
            cifar10(tmp_path, valid=valid, official=official)


@pytest.mark.parametrize("where", [0, 40, -1])
def test_a_changed_byte_in_the_archive_is_found(tmp_path, blobs, where):
    official = pack(tmp_path / ARCHIVE, blobs)
    raw = bytearray((tmp_path / ARCHIVE).read_bytes())
    raw[where] ^= 1
    (tmp_path / ARCHIVE).write_bytes(raw)
    with pytest.raises(ValueError, match=rf"{ARCHIVE} is damaged"):
        cifar10(tmp_path, valid=10, official=official)


def test_a_truncated_archive_is_found(tmp_path, blobs):
    official = pack(tmp_path / ARCHIVE, blobs)
    (tmp_path / ARCHIVE).write_bytes((tmp_path / ARCHIVE).read_bytes()[:-5000])
    with pytest.raises(ValueError, match=rf"{ARCHIVE} is damaged"):
        cifar10(tmp_path, valid=10, official=official)


def test_the_real_table_refuses_our_archive(tmp_path, blobs):
    pack(tmp_path / ARCHIVE, blobs)
    with pytest.raises(ValueError, match="is damaged or not the published file"):
        cifar10(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("packed", [True, False])
def test_every_file_is_checked_by_itself(tmp_path, blobs, name, packed):
    honest = table(blobs)
    blobs[name] = blobs[name][:-20] + b"x" + blobs[name][-19:]
    if packed:
        pack(tmp_path / ARCHIVE, blobs)
        honest = type("T", (honest,), dict(tgz_md5=md5((tmp_path / ARCHIVE).read_bytes())))
    else:
        unpack(tmp_path, blobs)
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        cifar10(tmp_path, valid=10, official=honest)


@pytest.mark.parametrize("name", ["data_batch_5", "test_batch", "batches.meta"])
def test_a_missing_batch_is_named(tmp_path, blobs, name):
    official = unpack(tmp_path, blobs)
    (tmp_path / "cifar-10-batches-py" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
        cifar10(tmp_path, valid=10, official=official)


class _Call:
    def __init__(self, f, *args):
        self.made = f, args

    def __reduce__(self):
        return self.made


HOSTILE = {
    "os": lambda mark: _Call(os.mkdir, str(mark)),
    "eval": lambda mark: _Call(eval, f"__import__('os').mkdir({str(mark)!r})"),
    "numpy": lambda mark: _Call(np.save, str(mark), 1),
    "getattr": lambda mark: _Call(getattr, "", "join"),
    "torch": lambda mark: _Call(torch.load, str(mark)),
    "path": lambda mark: _Call(Path, str(mark)),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, kind, name):
    mark, made = tmp_path / "ran", content()
    made[name]["more"] = HOSTILE[kind](mark)
    blobs = {n: pickle.dumps(b, protocol=4) for n, b in made.items()}
    with pytest.raises(ValueError, match=rf"{name} was refused, and nothing in it was run: it asks for [\w.]+"):
        cifar10(tmp_path, valid=10, official=pack(tmp_path / ARCHIVE, blobs))  # with checksums that fit
    assert listing(tmp_path) == [ARCHIVE]


@pytest.mark.parametrize("kind", ["os", "eval"])
def test_the_hostile_pickles_would_have_run(tmp_path, kind):
    pickle.loads(pickle.dumps(HOSTILE[kind](tmp_path / "ran")))
    assert listing(tmp_path) == ["ran"]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_end_in_plain_data_or_a_sentence(blob):
    from sft_nb.sources.vision import _unpickle

    try:
        _unpickle("batch", blob)
    except ValueError as e:
        assert str(e).startswith("batch was refused")


OFFLINE = [ARCHIVE, "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "put it at", 'load_split("digits_wild")']


@pytest.mark.parametrize(("download", "error"), [(False, FileNotFoundError), (True, OSError)])
def test_offline_the_error_says_what_to_do_and_leaves_nothing(tmp_path, download, error):
    with pytest.raises(error) as e:
        cifar10(tmp_path, download=download)  # the tests refuse the network
    assert all(piece in str(e.value) for piece in [*OFFLINE, str(tmp_path / ARCHIVE)])
    assert listing(tmp_path) == []


def test_download_checks_then_renames(tmp_path, blobs):
    (tmp_path / "server").mkdir()
    far = tmp_path / "server" / ARCHIVE
    official = pack(far, blobs)
    official.url = far.as_uri()
    got = cifar10(tmp_path / "data", download=True, valid=10, official=official)
    assert len(got.test) == 12 and listing(tmp_path / "data") == [ARCHIVE]
    far.unlink()  # what is there is not fetched again
    assert torch.equal(cifar10(tmp_path / "data", download=True, valid=10, official=official).test.x, got.test.x)


def test_a_wrong_download_is_thrown_away(tmp_path, blobs):
    far = tmp_path / "page.html"
    far.write_text("<html>not found, but politely</html>")
    official = table(blobs, far, url=far.as_uri(), tgz_md5="0" * 32)
    with pytest.raises(OSError, match="its MD5 differs") as e:
        cifar10(tmp_path / "data", download=True, valid=10, official=official)
    assert far.as_uri() in str(e.value) and listing(tmp_path / "data") == []


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.zeros(4, 3, 2, 2), torch.zeros(4).long(), "uint8"),
        (tagged(4).repeat(1, 2, 1, 1), torch.zeros(4).long(), r"\[4, 6, 2, 2\]"),
        (tagged(4)[0], torch.zeros(3).long(), r"\[3, 2, 2\]"),
        (tagged(4), torch.zeros(3).long(), "4 pictures need as many labels"),
        (tagged(4), torch.zeros(4, 1).long(), "4 pictures need as many labels"),
        (tagged(4), torch.zeros(4), "int64"),
        (tagged(4), torch.tensor([0, -1, 0, 0]), "-1"),
    ],
)
def test_images_refuse_what_cannot_be_right(x, y, said):
    with pytest.raises(ValueError, match=said):
        Images(x, y)


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_a_label_without_a_name_is_refused(part):
    good, bad = numbered(6, 2), numbered(6, 3)
    sets = dict.fromkeys(("train", "valid", "test"), good)
    assert Split(**sets, classes=("a", "b")).classes == ("a", "b")
    with pytest.raises(ValueError, match=f"label 2 in {part} has no name"):
        Split(**(sets | {part: bad}), classes=("a", "b"))


def test_an_empty_set_is_a_set_but_nothing_can_be_drawn_from_it():
    empty = numbered(3)[:0]
    assert len(empty) == 0
    with pytest.raises(ValueError, match="the set is empty"):
        Loader(empty)
    with pytest.raises(ValueError, match="nothing to choose"):
        few_shot(empty, 1, 0)


# Few-shot ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(n=st.integers(12, 200), classes=st.integers(1, 4), shots=st.integers(1, 2), seed=st.integers(0, 2**40))
def test_few_shot_is_balanced_nested_and_repeatable(n, classes, shots, seed):
    ds = numbered(n, classes)
    small, large = few_shot(ds, shots, seed), few_shot(ds, shots + 1, seed)
    assert torch.bincount(small.y).tolist() == [shots] * classes
    assert set(number(small.x)) < set(number(large.x)) <= set(number(ds.x))  # the same seed: more shots only add
    assert len(set(number(small.x))) == len(small)  # no example twice
    assert all(i % classes == y for i, y in zip(number(small.x), small.y.tolist(), strict=True))  # labels stay theirs
    assert number(few_shot(ds, shots, seed).x) == number(small.x)


def test_few_shot_choices_differ_by_seed_and_are_fair():
    ds, counts = numbered(30), torch.zeros(30)
    for seed in range(600):
        counts[number(few_shot(ds, 2, seed).x)] += 1
    assert counts.min() >= 80 and counts.max() <= 165  # 120 expected, sd 10


def test_few_shot_takes_any_set_with_labels():
    feats = Features(torch.randn(20, 5), torch.arange(20) % 2)
    assert few_shot(feats, 3, 0).x.shape == (6, 5)


@pytest.mark.parametrize("shots", [0, -2])
def test_few_shot_needs_a_shot(shots):
    with pytest.raises(ValueError, match=f"{shots} shots per class"):
        few_shot(numbered(6), shots, 0)


def test_more_shots_than_pictures_are_refused_by_class():
    ds = Images(tagged(7), torch.tensor([0, 0, 0, 4, 4, 0, 0]))
    with pytest.raises(ValueError, match="3 shots per class were asked for, but class 4 has 2 examples"):
        few_shot(ds, 3, 0)


# Loader --------------------------------------------------------------------------------------------------------------


def epoch(loader):
    return [(number(xb * 255), yb.tolist()) for xb, yb in loader]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 300),
    batch_size=st.integers(1, 320),
    seed=st.integers(0, 2**31),
    at=st.integers(0, 1000),
    shuffle=st.booleans(),
)
def test_every_example_once_per_epoch(n, batch_size, seed, at, shuffle):
    kwargs = dict(batch_size=batch_size, shuffle=shuffle, seed=seed, transform=lambda xb: xb.double() / 255)
    loader, ds = Loader(numbered(n), epoch=at, **kwargs), numbered(n)
    first, second = epoch(loader), epoch(loader)
    flat = [i for xs, _ in first for i in xs]
    assert sorted(flat) == list(range(n)) and len(first) == len(loader)
    assert all(len(xs) == batch_size for xs, _ in first[:-1])
    assert all(ys == [i % 3 for i in xs] for xs, ys in first)
    assert shuffle or flat == list(range(n))
    torch.manual_seed(n)  # the global generator has no say
    assert epoch(Loader(ds, epoch=at + 1, **kwargs)) == second  # resumed: the same order


def test_orders_differ_by_seed_and_by_epoch():
    order = lambda seed, at: [
        i for xs, _ in epoch(Loader(numbered(100), 32, shuffle=True, seed=seed, epoch=at)) for i in xs
    ]
    orders = [order(seed, at) for seed in range(4) for at in range(4)]
    assert len({tuple(o) for o in orders}) == 16


def test_a_loader_looked_into_twice_moves_on_by_one_epoch_each():
    loader = Loader(numbered(50), 8, shuffle=True, seed=3)
    next(iter(loader))  # left in the middle
    assert epoch(loader) == epoch(Loader(numbered(50), 8, shuffle=True, seed=3, epoch=1))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 20), at=st.integers(0, 9), data=st.data())
def test_an_epochs_batches_are_a_function_of_the_epoch(n, batch_size, at, data):
    "`for` gives the same ones, whatever ran before; from any batch on, augmented or not, and nothing is counted."
    noisy = lambda xb, g: xb ^ torch.randint(0, 2, xb.shape, generator=g).to(xb.dtype)  # draws
    for augment in (None, noisy):
        loader = Loader(numbered(n), batch_size, shuffle=True, seed=5, augment=augment)
        usual = epoch(replace(loader, epoch=at))
        for first in (0, data.draw(st.integers(0, len(loader)))):
            assert epoch(loader.batches(at, first)) == usual[first:]
        assert loader.epoch == 0


def test_batches_that_are_passed_over_leave_no_trace_in_the_common_streams():
    def flips(xb, g):  # as many libraries' augmentations do, it draws from the common stream and leaves g alone
        return xb.flip(3) if torch.rand(()) < 0.5 else xb

    asked, transformed = Loader(numbered(30), 4, augment=flips), []
    asked.transform = lambda xb: transformed.append(len(xb)) or xb.float()
    state = torch.get_rng_state()
    rest = asked.batches(0, 5)
    assert torch.equal(state, torch.get_rng_state()) and transformed == []
    assert sum(len(yb) for _, yb in rest) == 10 and len(transformed) == 3


def test_augmentation_is_repeatable_and_new_in_each_epoch():
    make = lambda seed: Loader(load_split("digits").valid, 64, augment=jitter(3), seed=seed)
    epochs = lambda loader: [torch.cat([xb for xb, _ in loader]) for _ in range(2)]
    (a0, a1), (b0, b1), (c0, _) = epochs(make(0)), epochs(make(0)), epochs(make(1))
    assert torch.equal(a0, b0) and torch.equal(a1, b1)
    assert not torch.equal(a0, a1) and not torch.equal(a0, c0)


def test_features_pass_through_unchanged():
    feats = Features(torch.randn(10, 4), torch.arange(10) % 2)
    assert torch.equal(torch.cat([xb for xb, _ in Loader(feats, 3)]), feats.x)
    plain = SimpleNamespace(x=feats.x, y=feats.y)  # anything with x and y
    assert sum(len(yb) for _, yb in Loader(plain, 3)) == 10


def test_to_float_is_totensor():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    theirs = torchvision.transforms.ToTensor()(x[0].permute(1, 2, 0).numpy())
    assert torch.equal(to_float(x)[0], theirs) and x.dtype == torch.uint8


def test_loader_refuses_what_cannot_be_a_batch():
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        Loader(numbered(5), 0)
    with pytest.raises(ValueError, match="4 inputs need as many labels; got 5"):
        Loader(SimpleNamespace(x=torch.zeros(4, 2), y=torch.zeros(5).long()))
    with pytest.raises(ValueError, match=r"made \[3, 2, 2\] of 4 pictures"):
        next(iter(Loader(numbered(5), 4, transform=lambda xb: xb[0])))


# jitter --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [0, 1, 3, 9])
def test_jitter_is_a_crop_of_the_framed_picture(pixels):
    xb = torch.randint(0, 256, (6, 3, 7, 5), dtype=torch.uint8)
    out = jitter(pixels)(xb, torch.Generator().manual_seed(1))
    dys, dxs = torch.randint(0, 2 * pixels + 1, (2, 6, 1), generator=torch.Generator().manual_seed(1))[:, :, 0].tolist()
    assert out.dtype == torch.uint8 and out.shape == xb.shape
    for i, (dy, dx) in enumerate(zip(dys, dxs, strict=True)):
        for r in range(7):
            for c in range(5):
                y, x = r + dy - pixels, c + dx - pixels
                pixel = xb[i, :, y, x] if 0 <= y < 7 and 0 <= x < 5 else torch.zeros(3, dtype=torch.uint8)
                assert torch.equal(out[i, :, r, c], pixel)


def test_jitter_reaches_every_shift_equally_often():
    dot = torch.zeros(4500, 3, 5, 5, dtype=torch.uint8)
    dot[:, :, 2, 2] = 1
    where = jitter(1)(dot, torch.Generator().manual_seed(0))[:, 0].float().mean(0) * 9
    assert where[1:4, 1:4].min() > 0.85 and where[1:4, 1:4].max() < 1.15 and where[0].sum() == 0


def test_jitter_refuses_features_and_negative_shifts():
    with pytest.raises(ValueError, match=r"\[8, 16\]"):
        jitter(1)(torch.zeros(8, 16), torch.Generator())
    with pytest.raises(ValueError, match="-1"):
        jitter(-1)


# The pocket world ----------------------------------------------------------------------------------------------------


def drawn_anew(threads):
    "Hashes of the pocket world's sets, drawn by so many threads."
    torch.set_num_threads(threads)
    for kept in (pocket._drawn, world.templates):
        kept.cache_clear()
    sets = [(p.x, p.y) for s in map(load_split, ("digits_wild", "digits")) for p in (s.train, s.valid, s.test)]
    sets += [draw(400, 0) for draw in (world.near, world.hue, world.grating)]
    x, y = world.source(400, 0)
    return [
        hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()
        for x, y in (*sets, *((x, y[k]) for k in y))
    ]


def test_the_same_pictures_on_one_thread_and_on_two():
    try:
        two = drawn_anew(2)
    finally:
        one = drawn_anew(1)  # what the tests behind this one find
    assert one == two and len(set(one)) == 12


@pytest.mark.parametrize("task", TASKS)
def test_pocket_sets_are_apart_and_of_the_stated_size(task):
    s = load_split(task)
    parts = [set(prints(p)) for p in (s.train, s.valid, s.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == len(s.train) + len(s.valid) + len(s.test)
    assert (len(s.valid), len(s.test), len(s.classes)) == (200, 800, 10)
    assert all(torch.bincount(p.y, minlength=10).min() >= 8 for p in (s.train, s.valid, s.test))
    assert s.train.x.shape[1:] == (3, 32, 32)


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    s, real = load_split("digits"), load_digits()
    at = shuffled(1797, 0)[:800]
    assert s.test.y.tolist() == real.target[at].tolist()
    ours = s.test.x[:, 0].reshape(800, 8, 4, 8, 4).float().mean((2, 4)).flatten(1)  # back to 8 x 8
    theirs = torch.tensor(real.images[at] / 16 * 255).flatten(1).float()
    nearest = torch.cdist(ours, theirs).argmin(1)
    assert (nearest == torch.arange(800)).float().mean() > 0.98


def test_pocket_source_parts_differ_and_names_fit():
    s = pocket_source("texture", n=64)
    assert len({len(s.train), len(s.valid), len(s.test)} & {64, 1000, 2000}) == 3
    assert not set(prints(s.train)) & set(prints(s.test)) and len(s.classes) == 8
    with pytest.raises(ValueError, match="at least one picture; got n=0"):
        pocket_source(n=0)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown task 'gratings'; did you mean 'grating'"):
        pocket.task("gratings")
    with pytest.raises(ValueError, match="unknown label set 'colour'"):
        pocket_source("colour")


# Own pictures --------------------------------------------------------------------------------------------------------


def picture(seed, w=8, h=8, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def album(root, counts, **kwargs):
    for c, (name, n) in enumerate(counts.items()):
        (root / name).mkdir()
        for i in range(n):
            picture(1000 * c + i, **kwargs).save(root / name / f"{i:03d}.png")
    return root


def test_png_files_come_back_exactly(tmp_path):
    s = image_folder(album(tmp_path, dict(b=6, a=5)), size=8)
    assert s.classes == ("a", "b")
    for part in (s.train, s.valid, s.test):
        for p, y in zip(part.x, part.y.tolist(), strict=True):
            files = (tmp_path / s.classes[y]).iterdir()
            assert any(np.array_equal(np.asarray(Image.open(f)), p.permute(1, 2, 0).numpy()) for f in files)
    assert len(set(prints(s.train) + prints(s.valid) + prints(s.test))) == 11  # each picture in one part


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(3, 40), min_size=2, max_size=4), valid=st.floats(0.05, 0.3), test=st.floats(0.05, 0.3)
)
def test_every_class_stands_in_each_part(sizes, valid, test):
    from sft_nb.albums import _split

    y = torch.tensor([c for c, n in enumerate(sizes) for _ in range(n)])
    ds, names = Images(numbered(len(y)).x, y), [str(c) for c in range(len(sizes))]
    s, other = (_split(ds, ["train"] * len(y), ["train"], names, dict(valid=v, test=test), 0) for v in (valid, 0.01))
    counts = [torch.bincount(p.y, minlength=len(sizes)) for p in (s.train, s.valid, s.test)]
    assert sum(counts).tolist() == sizes and all(c.min() >= 1 for c in counts)
    assert all(abs(t - test * n) <= 1 for t, n in zip(counts[2].tolist(), sizes, strict=True))
    assert len(set(number(s.train.x) + number(s.valid.x) + number(s.test.x))) == len(y)
    assert number(s.test.x) == number(other.test.x)  # cut first: `valid` cannot move it


def test_the_seed_decides_and_nothing_else(tmp_path):
    album(tmp_path, dict(a=10, b=10))
    s, again, other = (image_folder(tmp_path, size=8, seed=seed) for seed in (0, 0, 1))
    assert prints(s.test) == prints(again.test) != prints(other.test)


def test_classes_are_numbered_by_name(tmp_path):
    names = "quince apple pear fig banana melon".split()
    album(tmp_path, dict.fromkeys(names, 3))
    s = image_folder(tmp_path, size=8)
    assert s.classes == tuple(sorted(names))
    fig = {np.asarray(Image.open(f)).transpose(2, 0, 1).tobytes() for f in (tmp_path / "fig").iterdir()}
    assert all((p in fig) == (y == s.classes.index("fig")) for p, y in zip(prints(s.train), s.train.y, strict=True))


def test_hidden_files_are_left_out(tmp_path):
    album(tmp_path, dict(a=4, b=4))
    for extra in (".DS_Store", "a/.DS_Store", "a/Thumbs.db", "b/desktop.ini"):
        (tmp_path / extra).write_bytes(b"no picture")
    for hidden in (".git", "a/.ipynb_checkpoints"):
        (tmp_path / hidden).mkdir()
        picture(7).save(tmp_path / hidden / "x.png")
    s = image_folder(tmp_path, size=8)
    assert s.classes == ("a", "b") and len(s.train) + len(s.valid) + len(s.test) == 8


def gradient(w, h):
    x, y = np.meshgrid(np.linspace(0, 1, w), np.linspace(0, 1, h))
    return Image.fromarray((np.stack([x, y, x * y], 2) * 255).astype(np.uint8))


@pytest.mark.parametrize(("w", "h"), [(60, 40), (40, 60), (20, 30), (64, 64), (301, 77)])
def test_scaled_and_cropped_as_torchvision_does(tmp_path, w, h):
    gradient(w, h).save(tmp_path / "x.png")
    ours = read_picture(tmp_path / "x.png", 32).float()
    tf = torchvision.transforms
    theirs = tf.Compose([tf.Resize(32), tf.CenterCrop(32), tf.PILToTensor()])(gradient(w, h)).float()
    assert ours.shape == (3, 32, 32) and (ours - theirs).abs().max() <= 6 and (ours - theirs).abs().mean() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(tmp_path, orientation):
    "The eight orientations of the EXIF standard, as turns of an array."
    turns = [
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: a.transpose(1, 0, 2)[:, ::-1],
        lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        lambda a: a.transpose(1, 0, 2)[::-1],
    ]
    upright = np.asarray(picture(3))
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = Image.fromarray(np.ascontiguousarray(turns[inverse - 1](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "x.png", 8).permute(1, 2, 0).numpy(), upright)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])  # opaque, all of them
def test_other_modes_become_rgb(tmp_path, mode):
    picture(5, mode=mode).save(tmp_path / "x.png")
    expected = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    assert np.array_equal(read_picture(tmp_path / "x.png", 8).permute(1, 2, 0).numpy(), expected)


def test_jpeg_and_cmyk_are_read(tmp_path):
    album(tmp_path, dict(a=3, b=3))
    gradient(40, 30).convert("CMYK").save(tmp_path / "a" / "photo.jpg")
    assert len(image_folder(tmp_path, size=8).train) == 3


def unreadable(root, kind):
    path = root / "a" / "zz.png"
    if kind == "text":
        path.write_text("I am a poem")
    if kind == "empty":
        path.write_bytes(b"")
    if kind == "truncated":
        picture(0, 64, 64).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    if kind == "16-bit":
        Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(path)
    return path


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "16-bit"])
def test_an_unreadable_picture_is_named_and_skipped_only_if_asked(tmp_path, kind):
    path = unreadable(album(tmp_path, dict(a=4, b=4)), kind)
    with pytest.raises(ValueError, match=r"zz.png cannot be read as a picture .*skip_unreadable=True") as e:
        image_folder(tmp_path, size=8)
    assert str(path) in str(e.value)
    with pytest.warns(UserWarning, match=r"1 unreadable picture was left out \(.*\): a/zz.png") as told:
        s = image_folder(tmp_path, size=8, skip_unreadable=True)
    assert len(s.train) + len(s.valid) + len(s.test) == 8
    assert told[0].filename == __file__  # the warning points at the caller


@pytest.mark.parametrize("limit", [40, 70])  # 64 pixels: a third over the limit warns in PIL, twice over raises
def test_image_bombs_are_refused(tmp_path, monkeypatch, limit):
    album(tmp_path, dict(a=3, b=3), w=6, h=6)
    picture(0, w=9, h=9).save(tmp_path / "a" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"bomb.png cannot be read as a picture .*decompression bomb"):
        image_folder(tmp_path, size=6)


def test_a_clean_folder_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_folder(album(tmp_path, dict(a=3, b=3)), size=8, skip_unreadable=True)


def test_folders_that_are_no_task(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder"):
        image_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        image_folder(tmp_path / "file")
    with pytest.raises(ValueError, match="holds 0 sub-folders"):
        image_folder(tmp_path)
    album(tmp_path, dict(a=5))
    with pytest.raises(ValueError, match="holds 1 sub-folders; a task needs two or more"):
        image_folder(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="class 'b' has 0 pictures: too few"):
        image_folder(tmp_path, size=8)


@pytest.mark.parametrize("n", [1, 2])
def test_a_class_with_too_few_pictures_is_named(tmp_path, n):
    with pytest.raises(ValueError, match=f"class 'rare' has {n} pictures: too few"):
        image_folder(album(tmp_path, dict(common=9, rare=n)), size=8)


@pytest.mark.parametrize(
    "bad", [dict(size=0), dict(valid=0), dict(test=1.0), dict(valid=0.5, test=0.5), dict(test=-0.1)]
)
def test_impossible_sizes_and_shares_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="shares are parts of 1|in pixels, at least 1"):
        image_folder(album(tmp_path, dict(a=5, b=5)), **bad)


# What pictures, folders and zips really look like ------------------------------------------------------------------------


def on_white(rgba):
    "Alpha compositing by hand."
    a = rgba[..., 3:].astype(float) / 255
    return np.round(rgba[..., :3] * a + 255 * (1 - a))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "gif", "grey key", "colour key", "webp"])
def test_transparent_pictures_lie_on_white(tmp_path, kind):
    g, path = np.random.default_rng(0), tmp_path / ("x.gif" if kind == "gif" else "x.png")
    colours, alpha = g.integers(0, 256, (8, 8, 3), np.uint8), g.integers(0, 256, (8, 8), np.uint8)
    if kind in ("RGBA", "webp"):
        im = Image.fromarray(np.dstack([colours, alpha]))
        im.save(
            path, "webp" if kind == "webp" else "png", **({} if kind == "RGBA" else dict(lossless=True, exact=True))
        )
    elif kind == "LA":
        im = Image.merge("LA", [Image.fromarray(colours[..., 0]), Image.fromarray(alpha)])
        im.save(path)
    elif kind in ("palette", "gif"):
        im = Image.fromarray(colours).quantize(16)
        im.save(path, transparency=int(np.asarray(im)[0, 0]))
    elif kind == "grey key":
        im = Image.fromarray(colours[..., 0])
        im.save(path, transparency=int(colours[0, 0, 0]))
    else:
        im = Image.fromarray(colours)
        im.save(path, transparency=tuple(colours[0, 0].tolist()))
    want = on_white(np.asarray(Image.open(path).convert("RGBA")))
    got = read_picture(path, 8).permute(1, 2, 0).numpy()
    assert np.abs(got - want).max() <= 1
    if kind not in ("RGBA", "LA", "webp"):
        assert (got[0, 0] == 255).all()


def test_of_a_moving_picture_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    for name in ("x.gif", "x.webp", "x.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert read_picture(tmp_path / name, 8)[:, 4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03"]
)
def test_damaged_exif_costs_no_picture(tmp_path, exif):
    im = gradient(16, 16)
    im.save(tmp_path / "plain.jpg", quality=95)
    im.save(tmp_path / "odd.jpg", quality=95, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(read_picture(tmp_path / "odd.jpg", 16), read_picture(tmp_path / "plain.jpg", 16))


def test_a_heic_photo_is_named_with_the_way_out(tmp_path):
    album(tmp_path, dict(a=4, b=4))
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    for i in range(3):
        (tmp_path / "a" / f"IMG_{i}.HEIC").write_bytes(heic)
    if "HEIF" not in Image.OPEN:
        with pytest.warns(UserWarning, match=r"3 unreadable pictures were left out \(it is a HEIC photo.*pillow-heif"):
            image_folder(tmp_path, 8, skip_unreadable=True)
        for f in (tmp_path / "a").glob("*.png"):
            f.unlink()
        with pytest.raises(ValueError, match="class 'a' has 0 pictures: too few .*; 3 unreadable .*HEIC"):
            image_folder(tmp_path, 8, skip_unreadable=True)


def test_unreadable_pictures_are_told_by_reason_and_not_all_by_name(tmp_path):
    album(tmp_path, dict(a=4, b=4))
    for i in range(30):
        (tmp_path / "a" / f"t{i}.png").write_bytes(b"" if i % 2 else b"poem")
    with pytest.warns(UserWarning) as told:
        image_folder(tmp_path, 8, skip_unreadable=True)
    texts = [str(w.message) for w in told]
    assert len(texts) == 2 and all(t.startswith("15 unreadable pictures were left out (") for t in texts)
    assert all("and 10 more" in t and str(tmp_path) not in t and " at 0x" not in t for t in texts)


# Copies


def copied(root, groups, clones):
    "groups: class -> how many different pictures; each is there `clones` times."
    for c, (name, n) in enumerate(groups.items()):
        (root / name).mkdir(parents=True)
        for i in range(n):
            for k in range(clones):
                picture(1000 * c + i).save(root / name / f"IMG_{i} ({k}).png")
    return root


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99), valid=st.floats(0.05, 0.3), test=st.floats(0.05, 0.3))
def test_copies_stay_in_one_part_and_each_part_holds_each_class(data, seed, valid, test):
    from sft_nb.albums import _split

    sizes = data.draw(st.lists(st.lists(st.integers(1, 6), min_size=3, max_size=30), min_size=2, max_size=3))
    groups = [(c, n) for c, ns in enumerate(sizes) for n in ns]
    which = torch.tensor([g for g, (_, n) in enumerate(groups) for _ in range(n)])
    which = which[shuffled(len(which), seed)]
    ds = Images(numbered(len(groups)).x[which], torch.tensor([groups[g][0] for g in which]))
    s = _split(
        ds, ["train"] * len(ds), ["train"], list(map(str, range(len(sizes)))), dict(valid=valid, test=test), seed
    )
    parts = [set(number(p.x)) for p in (s.train, s.valid, s.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == len(groups)
    assert sum(map(len, (s.train, s.valid, s.test))) == len(ds)
    for c, ns in enumerate(sizes):
        for part, share in ((s.test, test), (s.valid, valid)):
            n, want = int((part.y == c).sum()), max(1, round(share * sum(ns)))
            assert 1 <= n <= max(want, max(ns)) and (max(ns) > 1 or n == want)
        assert (s.train.y == c).any()


def test_copies_are_counted_and_named(tmp_path):
    with pytest.warns(
        UserWarning, match=r"30 pictures were equal to another one, and kept in one part .*: a/IMG_0 \(1\)"
    ) as told:
        s = image_folder(copied(tmp_path, dict(a=8, b=7), 3), 8)
    assert len(told) == 1 and told[0].filename == __file__
    assert not set(prints(s.test)) & set(prints(s.train)) and not set(prints(s.valid)) & set(prints(s.train))


def test_one_picture_under_two_labels_is_reported_and_in_one_part(tmp_path):
    album(tmp_path, dict(a=9, b=9))
    picture(0).save(tmp_path / "b" / "wrong.png")
    with pytest.warns(UserWarning) as told:
        s = image_folder(tmp_path, 8)
    assert "1 picture was equal to one with another label: b/wrong.png = a/000.png" in [str(w.message) for w in told]
    where = [
        picture(0).tobytes() in {p.permute(1, 2, 0).numpy().tobytes() for p in part.x}
        for part in (s.train, s.valid, s.test)
    ]
    assert sum(where) == 1


def test_a_class_of_copies_is_refused_in_a_sentence(tmp_path):
    copied(tmp_path, dict(a=2, b=9), 6)
    with pytest.raises(ValueError, match="class 'a' has 12 pictures, 2 without copies: too few for one each"):
        image_folder(tmp_path, 8)


# Trees, hidden files, links


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(int(hashlib.md5(name.encode()).hexdigest()[:6], 16)).save(root / name)
    return root


def archive(root, **kwargs):
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w", zipfile.ZIP_DEFLATED) as z:
        for p in sorted(root.rglob("*")):
            z.write(p, p.relative_to(root).as_posix())
    return blob.getvalue()


both = pytest.mark.parametrize("form", [lambda root: root, archive], ids=["folder", "zip"])
tree = lambda *parts, n=6, top="": [f"{top}{part}/{c}/{i}.png" for part in parts for c in "ab" for i in range(n)]
counts = lambda s: [len(p) for p in (s.train, s.valid, s.test)]


@both
@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "Validation", "Testing"), ("train", "valid", "TEST")]
)
@pytest.mark.parametrize("top", ["", "data/", "a/b/"])
def test_trees_of_parts_are_the_split(tmp_path, form, names, top):
    put(tmp_path, *tree(names[0], n=9, top=top), *tree(names[1], n=2, top=top), *tree(names[2], n=3, top=top))
    s = image_folder(form(tmp_path), 8, seed=3)
    assert s.classes == ("a", "b") and counts(s) == [18, 4, 6]
    files = {
        p.relative_to(tmp_path).as_posix(): np.asarray(Image.open(p)).transpose(2, 0, 1).tobytes()
        for p in tmp_path.rglob("*.png")
    }
    assert set(prints(s.test)) == {b for n, b in files.items() if f"{names[2]}/" in n}


@both
def test_a_part_that_is_missing_is_cut_from_train(tmp_path, form):
    put(tmp_path / "v", *tree("train", n=20), *tree("test", n=4))
    put(tmp_path / "t", *tree("train", n=20), *tree("dev", n=4))
    assert counts(image_folder(form(tmp_path / "v"), 8)) == [34, 6, 8]
    assert counts(image_folder(form(tmp_path / "t"), 8)) == [34, 8, 6]
    put(tmp_path / "only", *tree("train", n=20))
    assert counts(image_folder(form(tmp_path / "only"), 8)) == [28, 6, 6]


@both
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (tree("train", "val", "valid"), "one must be train, and at most one each"),
        (tree("val", "test"), "one must be train"),
        (tree("train", "test", "cats"), "but cats beside them are not"),
        ([*tree("train"), "test/c/0.png"], "test holds a class 'c', and the folder to train on does not"),
        ([*tree("train"), "test/0.png", "test/1.png"], "test holds no sub-folder for each class"),
        (["train/0.png", "test/1.png"], "holds no sub-folder for each class"),
        ([f"train/a/{i}.png" for i in range(9)] + ["test/a/0.png"], "holds 1 sub-folders"),
    ],
)
def test_trees_that_are_no_task_are_refused(tmp_path, form, names, said):
    with pytest.raises(ValueError, match=said):
        image_folder(form(put(tmp_path, *names)), 8)


def test_a_class_may_be_called_train(tmp_path):
    s = image_folder(put(tmp_path, *(f"{c}/{i}.png" for c in ("bus", "car", "train") for i in range(5))), 8)
    assert s.classes == ("bus", "car", "train")


def test_of_copies_in_two_parts_training_loses_its_own(tmp_path):
    put(tmp_path, *tree("train", n=8), *tree("val", n=3), *tree("test", n=3))
    for to in ("train/a/leak.png", "val/b/leak.png"):
        (tmp_path / to).write_bytes((tmp_path / "test/a/0.png").read_bytes())
    with pytest.warns(
        UserWarning, match="2 pictures were left out, as a part that is looked at later holds a copy: a/leak"
    ):
        assert counts(image_folder(tmp_path, 8)) == [16, 6, 6]


LITTER = [
    ".DS_Store", "a/.DS_Store", "a/THUMBS.DB", "b/Desktop.ini", "a/._0.png", "__MACOSX/a/._0.png", "a/@eaDir/0.png/SYNOPHOTO.jpg",
    "@EADIR/x.png", "$RECYCLE.BIN/S-1/0.png", "a/.thumbnails/0.png", ".git/c/0.png", "a/__MacOSX/0.png", "a/.ipynb_checkpoints/0.png",
]  # fmt: skip


@both
def test_litter_is_hidden_in_folders_and_zips(tmp_path, form):
    put(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    for name in LITTER:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"litter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = image_folder(form(tmp_path), 8)
    assert s.classes == ("a", "b") and sum(counts(s)) == 10


@both
def test_loose_pictures_are_said_and_other_files_are_not(tmp_path, form):
    put(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(5)), "loose.png", "x.JPG")
    (tmp_path / "README.txt").write_text("read me")
    with pytest.warns(
        UserWarning, match="2 pictures were left out, beside the folders of the classes: loose.png, x.JPG"
    ) as told:
        image_folder(form(tmp_path), 8)
    assert len(told) == 1


def test_links_are_read_once_and_never_round_in_circles(tmp_path):
    put(tmp_path / "far", *(f"{i}.png" for i in range(5)))
    root = put(tmp_path / "root", *(f"{c}/{i}.jpg" for c in "ab" for i in range(5)))
    os.symlink(tmp_path / "far", root / "a" / "more")
    os.symlink(root, root / "b" / "back")
    os.symlink(root / "b", root / "b" / "self")
    os.symlink(put(tmp_path / "class", *(f"{i}.gif" for i in range(5))), root / "c")
    s = image_folder(root, 8)
    assert s.classes == ("a", "b", "c") and sum(counts(s)) == 20


def test_a_link_to_nothing_is_named_and_a_pipe_is_no_picture(tmp_path):
    album(tmp_path, dict(a=4, b=4))
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert sum(counts(image_folder(tmp_path, 8))) == 8
    os.symlink(tmp_path / "gone.png", tmp_path / "a" / "link.png")
    with pytest.raises(ValueError, match="link.png cannot be read as a picture"):
        image_folder(tmp_path, 8)


def test_a_tab_in_the_name_of_a_class_is_refused(tmp_path):
    album(tmp_path, {"a\tb": 4, "c|d": 4, "<e>": 4})
    with pytest.raises(ValueError, match="tab or another control character"):
        image_folder(tmp_path, 8)
    (tmp_path / "a\tb").rename(tmp_path / "a b")
    assert image_folder(tmp_path, 8).classes == ("<e>", "a b", "c|d")


# Zips as people make them


def packed(files, patch=(), flag=0):
    "A zip with these names as they stand, each UTF-8 name without its flag if it is given as bytes."
    blob, swaps = io.BytesIO(), []
    with zipfile.ZipFile(blob, "w") as z:
        for k, (name, content) in enumerate(files):
            info = zipfile.ZipInfo("x")
            if isinstance(name, bytes):
                info.filename = f"{k:0{len(name)}d}"
                swaps.append((info.filename.encode(), name))
            else:
                info.filename = name
            z.writestr(info, content)
    data = blob.getvalue()
    for a, b in [*swaps, *patch]:
        data = data.replace(a, b)
    return data


def png(seed):
    f = io.BytesIO()
    picture(seed).save(f, "png")
    return f.getvalue()


def as_zip(pattern, *more, **kwargs):
    names = [(pattern.format(c=c, i=i), png(10 * i + ord(c))) for c in "ab" for i in range(4)]
    return packed([*names, *((n, b"x") for n in more)], **kwargs)


@pytest.mark.parametrize(
    "blob",
    [
        as_zip("{c}/{i}.png"),
        as_zip("./{c}/{i}.png"),
        as_zip("{c}\\{i}.png"),
        as_zip(".\\data\\{c}\\{i}.png", "data\\"),
        as_zip("/home/me/{c}/{i}.png"),
        as_zip("C:\\Users\\me\\{c}\\{i}.png"),
        as_zip("../../{c}/{i}.png"),
        as_zip("data/{c}/{i}.png", "README.txt", "Thumbs.db", "__MACOSX/data/a/._0.png"),
        as_zip("data/{c}/{i}.png", "data/", "data/a/", "data/README.txt"),
        as_zip("{c}/{i}.png", "a/0.png/x.png", "a"),
    ],
)
def test_zips_as_people_make_them(tmp_path, blob):
    s = image_folder(blob, 8)
    assert s.classes == ("a", "b") and sum(counts(s)) == 8
    root = unpack_pictures(blob, tmp_path / "in" / "here")
    assert listing(tmp_path) == [
        "in",
        "in/here",
        *(f"in/here/{c}{x}" for c in "ab" for x in ("", *(f"/{i}.png" for i in range(4)))),
    ]
    assert prints(image_folder(root, 8).train) == prints(s.train)
    (tmp_path / "x.ZIP").write_bytes(blob)
    assert prints(load_split(tmp_path / "x.ZIP", size=8).test) == prints(s.test)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("Bär".encode(), "Bär"), ("Bär".encode("cp437"), "Bär"), ("schön".encode("cp437"), "schön"), ("café".encode("cp437"), "café"),
        ("ねこ".encode("cp932"), "ねこ"), ("表示".encode("cp932"), "表示"), ("犬 2".encode("cp932"), "犬 2"), ("Ba\u0308r".encode(), "Bär"),
    ],
)  # fmt: skip
def test_names_in_other_encodings(raw, name):
    files = [(raw + b"/%d.png" % i, png(i)) for i in range(4)] + [(f"zebra/{i}.png", png(9 + i)) for i in range(4)]
    assert set(image_folder(packed(files), 8).classes) == {name, "zebra"}
    flagged = [(f"{name}/{i}.png", png(i)) for i in range(4)] + files[4:]
    assert set(image_folder(packed(flagged), 8).classes) == {name, "zebra"}


@pytest.mark.parametrize(
    ("blob", "said"),
    [
        (
            as_zip("{c}/{i}.png", patch=[(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0")]),
            "encrypted: pack it without",
        ),
        (as_zip("{c}/{i}.png", patch=[(b"PK\1\2\x14\3\x14\0\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\x09\0")]), "Deflate64"),
        (b"Rar!\x1a\x07\x00" + bytes(100), "this is no zip"),
        (b"", "this is no zip"),
        (as_zip("{c}/{i}.png")[:300], "this is no zip"),
        (
            packed([("pictures.zip", as_zip("{c}/{i}.png"))]),
            r"the zip holds 0 sub-folders \(pictures.zip must be unpacked first\)",
        ),
        (packed([("x/" * 3000 + "0.png", b"x")]), "folders 3001 deep"),
        (packed([]), "the zip holds 0 sub-folders"),
    ],
)
def test_zips_that_are_refused_in_a_sentence(tmp_path, blob, said):
    for read in (lambda: image_folder(blob, 8), lambda: unpack_pictures(blob, tmp_path), lambda: content_digest(blob)):
        with pytest.raises(ValueError, match=said) as e:
            read()
        assert str(tmp_path) not in str(e.value) and "\n" not in str(e.value)
    assert not listing(tmp_path)


def test_many_empty_entries_are_seen_through(tmp_path):
    empty = lambda n: packed([(f"{'ab'[i % 2]}/{i}.png", b"") for i in range(n)])
    said = r"class 'a' has 0 pictures.*3,000 unreadable pictures were left out \(the file is empty\)"
    with pytest.raises(ValueError, match=said):
        image_folder(empty(3000), 8, skip_unreadable=True)
    with pytest.raises(ValueError, match="20,001 files: give its path"):
        unpack_pictures(empty(20_001), tmp_path)
    assert not listing(tmp_path)


def test_a_damaged_entry_is_one_unreadable_picture():
    blob = bytearray(as_zip("{c}/{i}.png"))
    blob[60] ^= 1  # in the first picture's bytes
    with pytest.raises(ValueError, match="a/0.png cannot be read as a picture .*CRC"):
        image_folder(bytes(blob), 8)
    with pytest.warns(UserWarning, match="1 unreadable picture was"):
        assert sum(counts(image_folder(bytes(blob), 8, skip_unreadable=True))) == 7


# What a folder is


def test_the_digest_is_of_what_is_read_and_of_nothing_else(tmp_path):
    root = put(tmp_path / "here", *(f"{c}/{i}.png" for c in "ab" for i in range(4)))
    digest = content_digest(root)
    assert len(digest) == 64 and content_digest(str(root) + "/") == digest == content_digest(archive(root))
    moved = shutil.copytree(root, tmp_path / "else" / "where")
    os.utime(moved / "a" / "0.png", (1, 1))
    (moved / "a" / ".DS_Store").write_bytes(b"x"), (moved / "README.md").write_text("x"), put(moved, "loose.png")
    assert content_digest(moved) == digest
    changes = [
        lambda r: put(r, "b/9.png"), lambda r: (r / "a/0.png").unlink(), lambda r: (r / "a/0.png").rename(r / "a/9.png"),
        lambda r: (r / "a/0.png").rename(r / "b/9.png"), lambda r: (r / "a").rename(r / "c"), lambda r: put(r, "c/0.png"),
        lambda r: (r / "a/0.png").write_bytes((r / "a/1.png").read_bytes()),
    ]  # fmt: skip
    seen = {digest}
    for i, change in enumerate(changes):
        change(shutil.copytree(root, tmp_path / str(i)))
        seen.add(content_digest(tmp_path / str(i)))
    assert len(seen) == len(changes) + 1


def test_the_digest_remembers_files_and_notices_a_change_that_keeps_size_and_date(tmp_path, monkeypatch):
    root = put(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(4)))
    monkeypatch.setattr(
        "sft_nb.albums.time", SimpleNamespace(time=lambda: time.time() + 60)
    )  # as if a minute had passed
    digest, path = content_digest(root), root / "a" / "0.png"
    reads = []
    monkeypatch.setattr("sft_nb.albums.hashlib.sha256", lambda *a, real=hashlib.sha256: reads.append(a) or real(*a))
    assert content_digest(root) == digest and len(reads) == 1  # the whole alone: no file is hashed again
    stat, blob = path.stat(), bytearray(path.read_bytes())
    blob[-1] ^= 1
    time.sleep(0.02)
    path.write_bytes(blob)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns and content_digest(root) != digest


def test_a_home_folder_is_found_by_its_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "pics", *(f"{c}/{i}.png" for c in "ab" for i in range(4)))
    (tmp_path / "z.zip").write_bytes(archive(tmp_path / "pics"))
    assert load_split("~/pics", size=8).train.x.shape[-1] == 8 == load_split("~/z.zip", size=8).train.x.shape[-1]
    assert content_digest("~/pics") == content_digest(tmp_path / "pics") and count_pictures("~/pics") == {"train": 8}
    assert read_picture("~/pics/a/0.png", 8).shape == (3, 8, 8)
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        cifar10("~/nothing")


# Sets as people have them


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint16, bool, list])
def test_images_and_loaders_take_arrays_and_labels_of_any_width(dtype):
    x, y = tagged(4), torch.tensor([0, 1, 1, 0])
    labels = y.tolist() if dtype is list else y.numpy().astype(dtype)
    for pictures in (x.numpy(), x.numpy().transpose(0, 2, 3, 1), x.permute(0, 2, 3, 1)):
        ds = Images(pictures, labels)
        assert torch.equal(ds.x, x) and torch.equal(ds.y, y) and ds.y.dtype == torch.int64
    feats = np.arange(8, dtype=np.float32).reshape(4, 2)
    sets = [
        SimpleNamespace(x=feats, y=labels),
        (feats, labels),
        torch.utils.data.TensorDataset(torch.tensor(feats), y.int()),
    ]
    for ds in sets:
        ((xb, yb),) = Loader(ds, 4)
        assert torch.equal(xb, torch.tensor(feats)) and torch.equal(yb, y) and yb.dtype == torch.int64


def test_what_is_no_set_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="a set in memory has x and y"):
        Loader(torch.utils.data.Subset([(0, 0)], [0]))
    with pytest.raises(ValueError, match="labels must be whole numbers from 0"):
        Images(tagged(2), ["cat", "dog"])
    ds = numbered(3)
    assert Loader(ds).ds is ds


def test_a_cifar_batch_that_is_far_too_large_is_not_read(tmp_path, blobs):
    official = unpack(tmp_path, blobs)
    with (tmp_path / "cifar-10-batches-py" / "data_batch_1").open("wb") as f:
        f.truncate(1 << 40)  # a terabyte of nothing
    with pytest.raises(ValueError, match=r"data_batch_1 is not the published file \(it is far too large\)"):
        cifar10(tmp_path, valid=10, official=official)


# By name -------------------------------------------------------------------------------------------------------------


def test_load_split_finds_tasks_folders_and_cifar(tmp_path):
    assert all(load_split(t) is pocket.task(t) for t in TASKS)
    assert load_split(str(album(tmp_path, dict(cat=3, dog=3)))).classes == ("cat", "dog")
    with pytest.raises(FileNotFoundError, match=ARCHIVE):
        load_split("cifar10", root=tmp_path)
    for _, name in SIZES.values():
        assert name in (*TASKS, "clothing", "cifar10")


@pytest.mark.parametrize(("name", "near"), [("digit", "digits"), ("CIFAR10", "cifar10"), ("no/such/folder", "")])
def test_load_split_answers_an_unknown_name(name, near):
    with pytest.raises(ValueError, match=f"unknown task, folder or file '{name}'; did you mean .*{near}"):
        load_split(name)
