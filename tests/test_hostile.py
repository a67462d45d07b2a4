"Files that somebody made to do harm, or that a disk made by chance: a named error or the exact data, and no code runs."

import hashlib
import io
import os
import pickle
import random
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import HOSTILE, content, python2, unpack
from test_models import hub, publish  # noqa: F401  (fixtures)
from torch import nn

from sft_nb import store
from sft_nb.cache import Cache, cache_key, cached
from sft_nb.data import Images, Loader
from sft_nb.deltas import load_delta, save_delta
from sft_nb.models import read_weights
from sft_nb.sources.vision import cifar10, image_folder, read_picture
from sft_nb.store import load_checkpoint, save_checkpoint

MUTANTS = 700  # of each kind
X = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)


def body():
    "A backbone small enough to compute its features anew for every mutant."
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


# One file of each kind: how it is made, and how it is read. What is read is a tuple of tensors and values.


def a_checkpoint(tmp_path, request):
    state = dict(x=torch.randn(5), opt=dict(state={0: dict(step=torch.tensor(3.0))}, betas=(0.9, 0.99)), n=3, best=None)
    return save_checkpoint(tmp_path, 7, state), lambda: load_checkpoint(tmp_path)


def a_feature_cache(tmp_path, request):
    phi, dl, cache = body(), Loader(Images(X, torch.tensor([0, 1])), 2), Cache(tmp_path)
    cached(phi, dl, cache=cache)
    path = tmp_path / f"{cache_key(phi, dl)}.safetensors"
    return path, lambda: vars(cached(phi, dl, cache=cache))


def a_delta(tmp_path, request):
    pre = nn.Linear(3, 2).state_dict()
    fine = {**pre, "bias": pre["bias"] + 1}
    save_delta(tmp_path / "delta", fine, pre)
    return tmp_path / "delta", lambda: load_delta(tmp_path / "delta", pre)


def a_cifar_batch(tmp_path, request):
    official = unpack(tmp_path, {n: python2(b) for n, b in content().items()})

    def read():
        split = cifar10(tmp_path, valid=10, official=official)
        return dict(x=torch.cat([split.train.x, split.valid.x]), test=split.test.y, classes=split.classes)

    return tmp_path / "cifar-10-batches-py" / "data_batch_2", read


def hub_weights(tmp_path, request):
    theta = dict(w=torch.randn(4, 3), b=torch.randn(4))
    return request.getfixturevalue("publish")("mnasnet0_5", theta), lambda: read_weights("mnasnet0_5")


def a_picture(tmp_path, request):
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / f"{'ab'[i % 2]}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)

    def read():
        split = image_folder(tmp_path, 8)
        return {part: getattr(split, part).x for part in ("train", "valid", "test")}

    return tmp_path / "a" / "0.png", read


KINDS = [a_checkpoint, a_feature_cache, a_delta, a_cifar_batch, hub_weights, a_picture]
each = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def mutants(blob, n, seed=0):
    "Cut at and beside every boundary that the first bytes tell of and elsewhere; bytes flipped, swapped, doubled, zeroed."
    rng = random.Random(seed)
    head = int.from_bytes(blob[:8], "little") + 8
    cuts = {0, 1, 7, 8, 9, head - 1, head, head + 1, len(blob) // 2, len(blob) - 1}
    for cut in sorted(c for c in cuts if 0 <= c < len(blob)):
        yield blob[:cut]
    for i in range(n):
        at, size = rng.randrange(len(blob)), rng.choice([1, 1, 1, 4, 64])
        part = blob[at : at + size]
        new = [
            bytes([blob[at] ^ 1 << rng.randrange(8)]) + part[1:], bytes(len(part)), part + part, b"",
            rng.randbytes(len(part)), part[::-1],
        ][i % 6]  # fmt: skip
        yield blob[:at] + new + blob[at + size :]
        if i % 8 == 0:
            yield blob[:at]


def outcome(read, truth, path):
    "exact, named or silent; anything that is not one sentence about the file is raised."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "exact" if equal(read(), truth) else "silent"
    except (ValueError, OSError) as e:
        assert str(path) in str(e) or str(path.parent) in str(e), e
        return "named"


@each
def test_a_damaged_file_is_named_or_exact(kind, tmp_path, request):
    path, read = kind(tmp_path, request)
    blob, truth, seen = path.read_bytes(), read(), dict(exact=0, named=0, silent=0)
    start = time.perf_counter()
    for mutant in mutants(blob, MUTANTS // (1 + (kind is a_feature_cache))):
        path.unlink(missing_ok=True)
        path.write_bytes(mutant)
        seen[outcome(read, truth, path)] += 1
    took = (time.perf_counter() - start) / sum(seen.values())
    print(f"\n{kind.__name__}: {seen}, {1e3 * took:.1f} ms each")
    assert took < 5 and sum(seen.values()) >= MUTANTS // 2
    # pictures carry no hash: a changed one is a picture of its size, or is named
    assert seen["silent"] == 0 or kind is a_picture
    assert seen["named"] > 100 or (kind is a_feature_cache and seen["exact"] == sum(seen.values()))


# Payloads


class Touch:
    "A pickle that makes a folder when it is read."

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def zipped(o):
    buffer = io.BytesIO()
    torch.save(o, buffer)
    return buffer.getvalue()


FORMS = {
    "pickle": pickle.dumps, "old protocol": lambda o: pickle.dumps(o, protocol=0), "torch": zipped,
    "batch": lambda o: pickle.dumps({"data": o, "labels": [0]}, protocol=2),
    "behind a header": lambda o: (2).to_bytes(8, "little") + b"{}" + pickle.dumps(o),
}  # fmt: skip


@each
@pytest.mark.parametrize("form", FORMS)
def test_no_payload_runs(kind, form, tmp_path, request):
    (tmp_path / "files").mkdir()
    mark = tmp_path / "it ran"
    path, read = kind(tmp_path / "files" if kind is not hub_weights else tmp_path, request)
    truth = read()
    path.unlink()
    path.write_bytes(FORMS[form](Touch(mark)))
    result = outcome(read, truth, path)
    assert result == ("exact" if kind is a_feature_cache else "named") and not mark.exists()


@pytest.mark.parametrize("form", ["pickle", "old protocol", "batch"])
def test_the_payloads_would_have_run(form, tmp_path):
    pickle.loads(FORMS[form](Touch(tmp_path / "ran")))
    torch.load(io.BytesIO(zipped(Touch(tmp_path / "ran too"))), weights_only=False)
    assert (tmp_path / "ran").is_dir() and (tmp_path / "ran too").is_dir()


@pytest.mark.parametrize("kind", HOSTILE)
def test_hub_weights_with_a_hash_that_fits_run_nothing(kind, tmp_path, publish):  # noqa: F811
    publish("mnasnet0_5", dict(w=torch.zeros(2), more=HOSTILE[kind](tmp_path / "ran")))
    with pytest.raises(ValueError, match="was refused, and no code in it was run"):
        read_weights("mnasnet0_5")
    assert not (tmp_path / "ran").exists()


def rehashed(blob):
    "A checkpoint changed by somebody who also wrote the hash that fits."
    zeros = blob[: store._AT] + b"0" * 64 + blob[store._AT + 64 :]
    return blob[: store._AT] + hashlib.sha256(zeros).hexdigest().encode() + blob[store._AT + 64 :]


def test_a_forged_checkpoint_is_a_state_or_a_sentence(tmp_path):
    path, read = a_checkpoint(tmp_path, None)
    blob, seen = path.read_bytes(), dict(exact=0, named=0, silent=0)
    for mutant in mutants(blob, MUTANTS, seed=1):
        path.unlink(missing_ok=True)
        path.write_bytes(rehashed(mutant))
        seen[outcome(read, None, path)] += 1
    print(f"\nforged: {seen}")
    assert seen["named"] > 50 and seen["silent"] > 50  # other numbers in a valid file: nothing can know them


# Formats


def programs():
    "Files that Pillow knows, or hands to another program, by the format that reads them."
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{ } loop\n%%EOF\n"
    binary = b"\xc5\xd0\xd3\xc6" + (32).to_bytes(4, "little") + len(eps).to_bytes(4, "little") + bytes(20) + eps
    icns_iptc = b"\x1c\x03\x0a\x00\x01\x01"
    return {
        "EPS": eps, "EPS in DOS's wrapping": binary, "PS": eps[:14] + eps[23:], "PDF": b"%PDF-1.4\n" + bytes(64),
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60), "EMF": b"\x01\0\0\0" + bytes(36) + b" EMF" + bytes(60),
        "FPX": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "IPTC": icns_iptc + bytes(40), "GRIB": b"GRIB" + bytes(3) + b"\1" + bytes(60),
        "BUFR": b"BUFR" + bytes(60), "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60), "MPEG": b"\0\0\1\xb3" + b"\x01\x00\x10" + bytes(60),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "XPM": b"/* XPM */" + bytes(60),
    }  # fmt: skip


def written():
    "A small picture in every format that Pillow writes."
    Image.init()
    for name in sorted(Image.SAVE):
        for mode in ("RGB", "L", "P", "1", "F"):
            f = io.BytesIO()
            try:
                Image.effect_mandelbrot((16, 16), (-2, -1, 1, 1), 9).convert(mode).save(f, name)
            except Exception:
                continue
            yield name, f.getvalue()
            break


FORMATS_OF_PILLOW = [*programs().items(), *written()]


@pytest.mark.parametrize(("name", "blob"), FORMATS_OF_PILLOW, ids=lambda x: x if isinstance(x, str) else "")
def test_every_format_that_pillow_knows_is_read_right_or_refused_and_runs_nothing(name, blob, tmp_path, monkeypatch):
    mark = tmp_path / "it ran"
    for program in ("gs", "gswin32c", "gswin64c", "magick", "convert"):
        (tmp_path / program).write_text(f"#!/bin/sh\ntouch '{mark}'\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "x.png").write_bytes(blob)
    started = []
    for at, call in ((subprocess, "Popen"), (os, "system"), (os, "startfile")):
        monkeypatch.setattr(at, call, lambda *a, **k: started.append(a), raising=False)
    want = torch.from_numpy(np.array(Image.effect_mandelbrot((16, 16), (-2, -1, 1, 1), 9).convert("RGB"))).permute(
        2, 0, 1
    )
    try:
        got = read_picture(tmp_path / "x.png", 16)
    except ValueError as e:
        assert str(e).startswith("it is in none of the formats JPEG, ") and name not in (
            "PNG",
            "JPEG",
            "GIF",
            "TIFF",
            "BMP",
            "WEBP",
        )
    else:
        assert name in ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "AVIF", "HEIF"), (
            name
        )
        assert (got.float() - want.float()).abs().mean() < 12
    assert not mark.exists() and not started


def test_the_postscript_would_have_run(tmp_path, monkeypatch):
    "Where Ghostscript is installed, here a stand-in for it, Pillow alone starts it for a file called x.png."
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: True)
    monkeypatch.setattr(subprocess, "check_call", lambda command, **kwargs: started.append(command))
    (tmp_path / "x.png").write_bytes(programs()["EPS"])
    with pytest.raises(OSError), Image.open(tmp_path / "x.png") as im:
        im.load()
    assert started and started[0][0] == "gs"


# Bombs


def test_a_picture_that_unfolds_to_fill_the_memory_is_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8), (40 * i, 80 * (name == "a"), 0)).save(tmp_path / name / f"{i}.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a" / "bomb.png")  # 49 kB; 1.2 GB of pixels
    assert (tmp_path / "a" / "bomb.png").stat().st_size < 100_000
    start = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"bomb.png cannot be read as a picture .*decompression bomb.*: repair it, remove"
    ):
        image_folder(tmp_path, 8)
    assert time.perf_counter() - start < 20  # bounded, whatever else the machine does
    with pytest.warns(UserWarning, match=r"1 unreadable picture was left out \(.*bomb.*\): a/bomb.png"):
        assert len(image_folder(tmp_path, 8, skip_unreadable=True).train) == 2


def test_a_header_that_promises_more_than_the_file_holds_takes_no_memory(tmp_path):
    for name in ("features", "checkpoint"):
        head = (
            b'{"__metadata__":{"sha256":"'
            + b"0" * 64
            + b'"},"x":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,399999999996]}}'
        )
        path = Path(tmp_path / name)
        path.write_bytes(rehashed(len(head).to_bytes(8, "little") + head))
        with pytest.raises(store.StoreError, match="damaged"):
            store.load(path)
