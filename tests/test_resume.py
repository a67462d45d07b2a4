"A run that is stopped, killed, or loses its disk goes on to the same bytes, or says in one sentence why it cannot."

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_store import dying, forks
from torch import nn

from sft_nb import store
from sft_nb.core import random_state, set_random_state, set_seed
from sft_nb.data import Loader, few_shot, jitter, load_split
from sft_nb.freezing import moved
from sft_nb.models import TransferModel, snapshot
from sft_nb.resume import resumable
from sft_nb.store import StoreError, load_checkpoint, save_checkpoint
from sft_nb.strategies import FROM_SCRATCH, FULL, L2_SP, LORA, LP_FT, Phase, Solved, run_phases, scaled
from sft_nb.training import stoppable

pytestmark = pytest.mark.xdist_group("processes")  # one worker of the suite runs all that starts several processes
TASK = load_split("digits_wild")
SCHEDULES = ("one_cycle", "slanted", "cosine", "constant")
OPTIMISERS = ("adam", "sgd", "adamw", "sgd")


class Body(nn.Module):
    "A small backbone with all that has a state: BatchNorm's statistics, dropout's random numbers."

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.b = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.c = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Dropout(0.3))

    def forward(self, x):
        return self.c(self.b(self.a(x)))


def noisy(xb):
    "A transform that draws from the global streams, which no one should write and somebody will."
    return xb.float() / 255 + 0.01 * torch.randn(1) + 0.01 * random.random() + 0.01 * float(np.random.rand())


def scaled_by(k):
    "Functions of one name and different code."
    return eval(f"lambda xb: xb.float() / {k}")


def gradual():
    "Three stages, from the head down, each with another schedule and optimiser."
    tops = [("head.*",), ("backbone.c.*", "head.*"), ("*",)]
    return tuple(
        Phase(t, 1 + (i == 2), 0.01, decay=2.0, schedule=SCHEDULES[i], opt=OPTIMISERS[i], name=f"top {i}")
        for i, t in enumerate(tops)
    )


RUNS = {
    "lp_ft": lambda: scaled(LP_FT, epochs=3, lr=0.02),
    "gradual": gradual,
    "lora, then anchored": lambda: scaled(LORA, epochs=1) + scaled(L2_SP, epochs=2),
    "from scratch, decay": lambda: (replace(FROM_SCRATCH[0], epochs=3, opt="adamw", weight_decay=0.1),),
}


def setting(name, seed=0, transform=noisy):
    "Fresh objects: model, loader, phases. The backbone is theta_pre, the head is drawn from the seed."
    set_seed(100)
    body = Body()
    body(torch.zeros(2, 3, 32, 32))
    set_seed(seed)
    dl = Loader(few_shot(TASK.train, 1, 0), 3, transform, shuffle=True, augment=jitter(2), seed=5)
    return TransferModel(body.eval(), nn.Linear(8, 10)).eval(), dl, RUNS[name]()


def kept(seed=9):
    "Early stopping on: a validation set that is shuffled and whose pictures are drawn with noise."
    return dict(valid=Loader(TASK.valid[:40], 40, shuffle=True, seed=seed), patience=2)


def same(history, model, name):
    steps, theta = uninterrupted(name)
    return history == steps and moved(theta, snapshot(model)) == {} and theta.keys() == snapshot(model).keys()


@cache
def uninterrupted(name):
    model, *rest = setting(name)
    return list(run_phases(model, *rest, **kept())), snapshot(model)


@cache
def last_state(name):
    "What the finished run's checkpoint holds, the folder apart."
    import tempfile

    folder = tempfile.mkdtemp()
    list(resumable(*setting(name), folder, every=1000, **kept()))
    return load_checkpoint(folder)


def equal(a, b):
    "Two trees, to the bit."
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


# stopped in the process, everything thrown away


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("every", [1, 3])
def test_stopped_after_every_step_and_resumed_it_is_the_same_run(tmp_path, name, every):
    steps, _ = uninterrupted(name)
    assert len(steps) >= 8
    for k in range(len(steps) + 1):
        folder = tmp_path / str(k)
        list(islice(resumable(*setting(name), folder, every, **kept()), k))
        set_seed(1000 + k)
        model, *rest = setting(name, seed=k)
        assert same(list(resumable(model, *rest, folder, every, **kept(9))), model, name), k
        assert equal(load_checkpoint(folder), last_state(name)), k  # optimiser, schedule, streams: all of it


def test_stopped_after_each_step_again_and_again(tmp_path):
    "One step a process, as it were."
    steps, _ = uninterrupted("gradual")
    for k in range(len(steps)):
        list(islice(resumable(*setting("gradual", seed=k), tmp_path, 1, **kept()), k + 2))
    model, *rest = setting("gradual")
    assert same(list(resumable(model, *rest, tmp_path, 1, **kept())), model, "gradual")


def test_a_state_has_what_the_next_step_reads(tmp_path):
    "If any item of the state is left out, some run ends elsewhere: none of them is ballast."
    model, *rest = setting("lp_ft")
    list(islice(resumable(model, *rest, tmp_path, 1, **kept()), 8))
    state = load_checkpoint(tmp_path)
    n = len(state["history"]["loss"])
    other = dict(torch=torch.Generator().manual_seed(3).get_state())
    wrong = {
        "model": {**state["model"], "head.bias": state["model"]["head.bias"] + 1e-3}, "at": (2, 1), "best": 2.0,
        "random": {**state["random"], **other}, "epoch": 7,
        "schedule": {**state["schedule"], "last_epoch": 1, "_step_count": 2},
        "opt": {**state["opt"], "state": {}},
    }  # fmt: skip
    for item, value in wrong.items():
        folder = tmp_path / item
        save_checkpoint(folder, n, {**state, item: value})
        model, *rest = setting("lp_ft")
        assert not same(list(resumable(model, *rest, folder, 1, **kept())), model, "lp_ft"), item


def test_what_the_consumer_draws_between_two_steps_belongs_to_the_run(tmp_path):
    def drawing(run):
        for s in run:
            torch.rand(3), random.random(), np.random.rand()
            yield s

    whole, *rest = setting("gradual")
    steps = list(drawing(run_phases(whole, *rest, **kept())))
    for k in (3, 6):
        list(islice(drawing(resumable(*setting("gradual"), tmp_path / str(k), 2, **kept())), k))
        model, *rest = setting("gradual")
        assert list(drawing(resumable(model, *rest, tmp_path / str(k), 2, **kept()))) == steps
        assert moved(snapshot(whole), snapshot(model)) == {}


def test_without_a_stop_it_is_run_phases(tmp_path):
    for name in RUNS:
        model, *rest = setting(name)
        assert same(list(resumable(model, *rest, tmp_path / name, 4, **kept())), model, name)
        assert not any(m.training for m in model.modules())
        assert len(list((tmp_path / name).iterdir())) == 2


def test_a_finished_run_is_read_and_not_repeated(tmp_path, monkeypatch):
    uninterrupted("lp_ft")  # before nothing can be trained any more
    list(resumable(*setting("lp_ft"), tmp_path, **kept()))
    monkeypatch.setattr("sft_nb.strategies.steps", None)
    monkeypatch.setattr("sft_nb.starts.solve_head", None)
    model, *rest = setting("lp_ft", seed=4)
    assert same(list(resumable(model, *rest, tmp_path, **kept())), model, "lp_ft")


@pytest.mark.parametrize("places", ["probe full", "full probe full", "full probe"])
def test_a_solved_head_is_kept_at_once_with_its_certificate_and_its_place(tmp_path, monkeypatch, places):
    "Solving may take an hour of extraction: what is in the file is not solved again."
    parts = dict(probe=LP_FT[0], full=replace(LP_FT[1], epochs=1, schedule="constant"))
    phases = tuple(parts[name] for name in places.split())
    model, dl, _ = setting("lp_ft")
    whole = list(run_phases(model, dl, phases))
    place = next(i for i, s in enumerate(whole) if isinstance(s, Solved))
    assert whole[place].probe.gap <= 1e-8
    broken, dl, _ = setting("lp_ft")
    list(islice(resumable(broken, dl, phases, tmp_path, 1000), place + 2))
    monkeypatch.setattr("sft_nb.starts.solve_head", None)
    again, dl, _ = setting("lp_ft", seed=3)
    assert list(resumable(again, dl, phases, tmp_path, 1000)) == whole
    assert moved(snapshot(model), snapshot(again)) == {}


class Noise:
    "A loss with something inside."

    def __init__(self, k):
        self.k = k

    def __call__(self, model, x, y, logits):
        return nn.functional.cross_entropy(logits, y) + self.k * model.backbone(x).square().mean()


def test_a_loss_of_its_own_is_carried_on_and_another_one_is_refused(tmp_path):
    def build(k):
        model, dl, _ = setting("lp_ft")
        return model, dl, (Phase(("*",), 3, 0.01, loss=Noise(k), schedule=lambda t, total: 1 - t / total),)

    model, *rest = build(0.1)
    whole = list(run_phases(model, *rest))
    list(islice(resumable(*build(0.1), tmp_path, 2), 7))
    with pytest.raises(ValueError, match=r"another run .*phases\[0\].loss"):
        next(resumable(*build(0.2), tmp_path, 2))
    again, *rest = build(0.1)
    assert list(resumable(again, *rest, tmp_path, 2)) == whole and moved(snapshot(model), snapshot(again)) == {}


def test_random_streams_come_back():
    set_seed(3)
    state = random_state()
    draws = lambda: (torch.rand(2).tolist(), np.random.rand(2).tolist(), np.random.randn(), random.random())
    first = draws()
    set_seed(4)
    np.random.randn()  # NumPy keeps every second normal number for later
    set_random_state(state)
    assert draws() == first


# another run


def changed(what):
    "Settings that differ from 'gradual' in one thing, and a word of the refusal."
    model, dl, phases = setting("gradual")
    extra = kept()
    if what == "lr":
        phases = (replace(phases[0], lr=0.02), *phases[1:])
    if what == "phases":
        phases = phases[:2]
    if what == "data":
        dl.ds.x[0, 0, 0, 0] ^= 1
    if what == "seed":
        dl.seed = 6
    if what == "batch":
        dl.batch_size = 4
    if what == "augment":
        dl.augment = jitter(3)
    if what == "transform":
        dl.transform = lambda xb: xb.float()
    if what == "code":
        model, dl, phases = setting("gradual", transform=scaled_by(128))
    if what == "patience":
        extra["patience"] = 3
    if what == "valid":
        extra["valid"] = None
    if what == "names":
        model.backbone.d = nn.Identity()
    if what == "shapes":
        model.head = nn.Linear(8, 11)
    if what == "dropout":
        model.backbone.a[3].p = 0.5
    if what == "backbone":
        with torch.no_grad():
            model.backbone.a[0].bias[0] += 1
    return model, dl, phases, extra


WORDS = dict(
    code=r"dl.transform.constants was .*128.*, now|dl.transform.constants was .*255.*, now .*128",
    lr=r"phases\[0\].lr was 0.01, now 0.02", phases=r"phases\[2\].train was .*, now not there", data=r"dl.data was",
    seed=r"dl.seed was 5, now 6", batch=r"dl.batch_size was 3, now 4", augment=r"dl.augment.closure pixels was 2, now 3",
    transform=r"dl.transform.it was test_resume.noisy, now", patience="patience was 2, now 3", valid="valid.* now", names=r"model.backbone was .*, now .* d.*; and|model.backbone.d was not there",
    shapes=r"model.head was .*out_features=10", dropout=r"model.backbone.a.3 was .*p=0.3", backbone="backbone was digest",
)  # fmt: skip


@pytest.mark.parametrize("what", WORDS)
def test_another_run_is_refused_by_the_name_of_what_differs(tmp_path, what):
    transform = scaled_by(255) if what == "code" else noisy
    list(islice(resumable(*setting("gradual", transform=transform), tmp_path, 2, **kept()), 5))
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    model, dl, phases, extra = changed(what)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"another run .*{WORDS[what]}"):
        list(resumable(model, dl, phases, tmp_path, 2, **extra))
    assert moved(before, snapshot(model)) == {} and files == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


class Darken:
    "An augmentation that prints alike whatever it does."

    def __init__(self, k):
        self.k = k

    def __repr__(self):
        return "Darken()"

    def __call__(self, xb, g):
        return (xb.float() * self.k).to(torch.uint8)


class Scale(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        return x.float() * self.k


def cell(code):
    "What a notebook's cell leaves behind."
    space = dict(torch=torch, nn=nn)
    exec(code, space)
    return space["f"]


BODY = """
class f(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3072, 8)
    def forward(self, x):
        return torch.{}(self.lin(x.flatten(1)))
"""
CALLS = "def inner(x):\n    return torch.{}(x.float())\ndef f(x):\n    return inner(x)"


def edited(part, which):
    "Model, loader, valid with one part as it was (0) or edited (1): names, signatures and repr stay."
    set_seed(0)
    body = cell(BODY.format(("relu", "tanh")[which if part == "forward" else 0]))()
    x = dict(transform=Scale(1.0), augment=Darken(1.0))
    if part == "augment":
        x["augment"] = Darken((1.0, 0.5)[which])
    if part == "transform":
        x["transform"] = Scale((1.0, 5.0)[which])
    if part == "inner":
        x["transform"] = cell(CALLS.format(("sin", "cos")[which]))
    if part == "default":
        x["transform"] = cell(f"def f(x, k={which + 1}):\n    return x.float() * k")
    look = cell(f"def f(x):\n    return x.float() * {which if part == 'valid' else 0}")
    dl = Loader(few_shot(TASK.train, 1, 0), 3, shuffle=True, **x)
    return TransferModel(body, nn.Linear(8, 10)), dl, Loader(TASK.valid[:20], 20, look)


@pytest.mark.parametrize("part", ["augment", "transform", "inner", "default", "valid", "forward"])
def test_edited_code_is_another_run_and_a_cell_run_again_is_the_same(tmp_path, part):
    def go(which, most=None):
        model, dl, valid = edited(part, which)
        return list(islice(resumable(model, dl, scaled(FULL, epochs=2), tmp_path, 1, valid), most))

    assert len(go(0, 3)) == 3 and len(go(0)) == 8  # 10 pictures in batches of 3, two epochs
    word = dict(inner="transform", default="transform", forward="model").get(part, part)
    with pytest.raises(ValueError, match=rf"another run .*{word}[\w.]* .*was"):
        go(1)


def test_what_does_not_say_what_it_is_gets_a_sentence(tmp_path):
    g = torch.Generator()
    model, dl, phases = setting("lp_ft", transform=lambda x: x.float() + torch.rand(1, generator=g))
    with pytest.raises(ValueError, match="a checkpoint must know its run again, and dl.transform does not say") as e:
        next(resumable(model, dl, phases, tmp_path))
    assert "\n" not in str(e.value)
    batches = [(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(TypeError, match="resumable needs sft_nb's Loader"):
        next(resumable(model, batches, phases, tmp_path))


class Counting(nn.Module):
    "A backbone whose output depends on a buffer that state_dict leaves out."

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3072, 8)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen += 1
        return self.lin(x.flatten(1)) * (1 + self.seen)


@pytest.mark.parametrize("valid", [False, True])
def test_a_buffer_that_state_dict_leaves_out_is_a_part_of_a_checkpoint(tmp_path, valid):
    def build():
        set_seed(0)
        model, dl = (
            TransferModel(Counting(), nn.Linear(8, 10)).eval(),
            Loader(few_shot(TASK.train, 1, 0), 3, shuffle=True),
        )
        return model, dl, scaled(FULL, epochs=2), dict(valid=Loader(TASK.valid[:20], 20) if valid else None)

    model, dl, phases, extra = build()
    whole = list(run_phases(model, dl, phases, **extra))
    again, dl, phases, extra = build()
    list(islice(resumable(again, dl, phases, tmp_path, 1, **extra), 5))
    again, dl, phases, extra = build()
    assert list(resumable(again, dl, phases, tmp_path, 1, **extra)) == whole
    assert moved(snapshot(model, unsaved=True), snapshot(again, unsaved=True)) == {}
    assert valid or float(model.backbone.seen) == len(whole)


@pytest.mark.parametrize("what", ["sft_nb.__version__", "torch.__version__"])
def test_another_version_is_refused(tmp_path, monkeypatch, what):
    list(islice(resumable(*setting("gradual"), tmp_path, 2, **kept()), 5))
    monkeypatch.setattr(what, "9.9.9")
    with pytest.raises(ValueError, match=f"{what.split('.')[0]} was .*, now 9.9.9"):
        list(resumable(*setting("gradual"), tmp_path, 2, **kept()))


def test_every_must_be_a_number_of_steps(tmp_path):
    with pytest.raises(ValueError, match="every is a number of steps"):
        next(resumable(*setting("gradual"), tmp_path, 0))


# disks


def broken(blob, how):
    return blob[: len(blob) // 2] if how == "cut" else blob[:-5] + bytes([blob[-5] ^ 4]) + blob[-4:]


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, how):
    list(islice(resumable(*setting("gradual"), tmp_path, 2, **kept()), 8))
    newer = max(tmp_path.iterdir())
    newer.write_bytes(broken(newer.read_bytes(), how))
    model, *rest = setting("gradual")
    with pytest.warns(UserWarning, match=f"{newer.name} is damaged"):
        history = list(resumable(model, *rest, tmp_path, 2, **kept()))
    assert same(history, model, "gradual")


def test_an_older_checkpoint_can_be_asked_for(tmp_path):
    for n in (4, 8, 12):
        save_checkpoint(tmp_path, n, dict(n=n))
    assert [load_checkpoint(tmp_path, most)["n"] for most in (None, 99, 12, 11, 8)] == [12, 12, 12, 8, 8]
    assert load_checkpoint(tmp_path, 7) is None


def test_if_no_checkpoint_is_whole_nothing_is_begun_anew(tmp_path):
    list(islice(resumable(*setting("gradual"), tmp_path, 2, **kept()), 8))
    for p in tmp_path.iterdir():
        p.write_bytes(broken(p.read_bytes(), "cut"))
    with warnings.catch_warnings(), pytest.raises(StoreError, match="none of them is whole"):
        warnings.simplefilter("ignore")
        list(resumable(*setting("gradual"), tmp_path, 2, **kept()))


def test_a_disk_that_keeps_something_else_is_found_out_while_the_old_one_is_there(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, dict(x=torch.zeros(3)))
    save_checkpoint(tmp_path, 2, dict(x=torch.ones(3)))
    real = os.replace

    def lossy(a, b):
        Path(a).write_bytes(broken(Path(a).read_bytes(), "flipped"))
        real(a, b)

    monkeypatch.setattr(os, "replace", lossy)
    with pytest.raises(StoreError, match="000000003.safetensors is damaged"):
        save_checkpoint(tmp_path, 3, dict(x=torch.full((3,), 2.0)))
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(tmp_path)["x"].tolist() == [1, 1, 1]


def test_a_disk_that_fills_up_costs_nothing_but_the_newest_steps(tmp_path, monkeypatch):
    real, room = os.fsync, [3]

    def full(fd):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="could not be written .No space left"):
        list(resumable(*setting("gradual"), tmp_path, 2, **kept()))
    monkeypatch.setattr(os, "fsync", real)
    assert not list(tmp_path.glob(".*"))
    model, *rest = setting("gradual")
    assert same(list(resumable(model, *rest, tmp_path, 2, **kept())), model, "gradual")


def test_a_folder_that_takes_nothing_is_found_out_before_the_first_step(tmp_path, monkeypatch):
    def refuse(path, mode="r", *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(store, "open", refuse, raising=False)  # root may write into read-only folders
    model, *rest = setting("gradual")
    before = snapshot(model)
    with pytest.raises(StoreError, match="could not be written .Permission denied"):
        next(resumable(model, *rest, tmp_path / "a", 2))
    assert moved(before, snapshot(model)) == {}


@forks
def test_killed_at_any_write_of_a_checkpoint_the_last_one_can_be_read(tmp_path):
    states = [dict(n=i, x=torch.full((50,), float(i)), y=[torch.ones(3), None]) for i in range(3)]
    killed = 0
    for k in range(60):
        folder = tmp_path / str(k)
        save_checkpoint(folder, 0, states[0])
        save_checkpoint(folder, 1, states[1])
        died = dying(states[2], k, folder, save=lambda folder, state: save_checkpoint(folder, 2, state))
        got = load_checkpoint(folder)
        assert any(equal(got, s) for s in states[1:]) and (died or equal(got, states[2]))
        save_checkpoint(folder, 3, states[0])
        assert len(list(folder.iterdir())) == 2  # what the killed one left is gone
        if not died:
            break
        killed += 1
    assert killed >= 6


@pytest.mark.parametrize(
    "tree",
    [
        "", "[]", "null", "3", "{}", '{"dict": 3}', '{"dict": [[1]]}', '{"tensor": "gone"}', '{"exec": ["x"]}',
        '{"dict": [["about", {"tensor": "gone"}]]}', '{"dict": [], "list": []}', '{"list": [' * 5000, '{"tuple": 3}',
    ],
)  # fmt: skip
def test_whole_files_that_hold_no_checkpoint_are_named(tmp_path, tree):
    store.save(tmp_path / "000000007.safetensors", dict(x=torch.zeros(1)), dict(kind="checkpoint", tree=tree))
    with warnings.catch_warnings(), pytest.raises(StoreError, match="none of them is whole"):
        warnings.simplefilter("ignore")
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "lacks", ["about", "opt", "model", "k", "at", "begun", "history", "random", "epoch", "theta_pre"]
)
def test_a_state_that_lacks_something_is_refused(tmp_path, lacks):
    list(islice(resumable(*setting("gradual"), tmp_path / "a", 2, **kept()), 5))
    state = load_checkpoint(tmp_path / "a")
    del state[lacks]
    save_checkpoint(tmp_path / "b", 4, state)
    with pytest.raises((StoreError, ValueError), match="something else than a strategy|another run"):
        list(resumable(*setting("gradual"), tmp_path / "b", 2, **kept()))


def test_what_has_no_place_in_a_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"state/a/1 is a builtin_function_or_method"):
        save_checkpoint(tmp_path, 1, dict(a=[1, len]))
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_yet(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "weights.safetensors").write_text("mine")
    assert load_checkpoint(tmp_path) is None and load_checkpoint(tmp_path / "none") is None


# signals


def test_asked_to_stop_it_saves_and_says_so(tmp_path):
    stop = threading.Event()
    for i, _ in enumerate(run := resumable(*setting("gradual"), tmp_path, 1000, stop=stop, **kept())):
        if i == 4:
            stop.set()
            break
    with pytest.raises(KeyboardInterrupt, match="stopped after 5 steps"):
        next(run)
    assert len(load_checkpoint(tmp_path)["history"]["loss"]) == 5
    model, *rest = setting("gradual")
    assert same(list(resumable(model, *rest, tmp_path, **kept())), model, "gradual")


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_the_end_of_the_step(tmp_path, which):
    before = signal.getsignal(which)
    with pytest.raises(KeyboardInterrupt), stoppable() as stop:
        for i, _ in enumerate(resumable(*setting("gradual"), tmp_path, 1000, stop=stop, **kept())):
            if i == 2:
                signal.raise_signal(which)
    assert signal.getsignal(which) is before
    assert len(load_checkpoint(tmp_path)["history"]["loss"]) == 3


def test_a_second_signal_does_not_wait():
    seen = []
    with pytest.raises(KeyboardInterrupt), stoppable() as stop:
        signal.raise_signal(signal.SIGINT)
        seen.append(stop.is_set())
        signal.raise_signal(signal.SIGINT)
        seen.append("not reached")
    assert seen == [True]


def test_a_button_or_another_thread_stops_without_signals():
    with stoppable() as stop:
        stop.set()  # a button: no KeyboardInterrupt
    before, seen = signal.getsignal(signal.SIGTERM), []

    def elsewhere():
        with stoppable() as stop:
            seen.append((stop.is_set(), signal.getsignal(signal.SIGTERM) is before))

    t = threading.Thread(target=elsewhere)
    t.start()
    t.join()
    assert seen == [(False, True)]


# processes


def train_slowly(folder, every, pause):
    model, *rest = setting("gradual")
    with stoppable() as stop:
        for _ in resumable(model, *rest, folder, every, stop=stop, **kept()):
            time.sleep(pause)


@forks
def test_kill_9_at_random_moments(tmp_path):
    rng, killed = random.Random(0), 0
    for i in range(24):  # six runs, each killed up to four times
        folder = tmp_path / str(i // 4)
        if (pid := os.fork()) == 0:
            train_slowly(folder, 1, 0.01)
            os._exit(0)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        if i % 4 == 3:
            begun = folder.exists() and load_checkpoint(folder)  # a busy machine may have written nothing in four tries
            model, *rest = setting("gradual", seed=3 if begun else 0)
            assert same(list(resumable(model, *rest, folder, 1, **kept())), model, "gradual"), i
            assert equal(load_checkpoint(folder), last_state("gradual")), i
    assert killed >= 6


CHILD = """
import sys
sys.path.insert(0, {tests!r})
import conftest, test_resume
print("ready", flush=True)
try:
    test_resume.train_slowly(sys.argv[1], 1000, 0.2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGTERM")
def test_sigterm_leaves_a_checkpoint_and_a_clean_exit(tmp_path):
    p = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD.format(tests=str(ROOT / "tests")), str(tmp_path)],
        stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert p.stdout.readline() == b"ready\n"
    time.sleep(0.7)
    p.terminate()
    assert p.wait() == 130
    n = len(load_checkpoint(tmp_path)["history"]["loss"])
    assert 0 < n < len(uninterrupted("gradual")[0])
    model, *rest = setting("gradual", seed=3)
    assert same(list(resumable(model, *rest, tmp_path, 1, **kept())), model, "gradual")
