"Sessions, controls and panels, without a browser: bytes that agree, stops that are quick, errors in words."

import argparse
import base64
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import fields, replace
from datetime import datetime
from xml.etree import ElementTree

import ipywidgets as W
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from sft_nb import cli, dashboard, experiments, pictures, sessions, widgets
from sft_nb.albums import unpack_pictures
from sft_nb.controls import as_code, as_command, controls, misfits
from sft_nb.dashboard import Panel
from sft_nb.data import Loader, load_split
from sft_nb.deltas import save_delta
from sft_nb.evaluation import accuracy, predict
from sft_nb.experiments import run
from sft_nb.features import extract
from sft_nb.models import TransferModel, adapt, load_pretrained
from sft_nb.peft import add_lora
from sft_nb.pictures import OwnPictures, learn_pictures, load_pictures, name_picture
from sft_nb.records import Config, is_several, kind_of, known_names
from sft_nb.sessions import Session, Worker, block_table
from sft_nb.sources.pocket import TASKS
from sft_nb.sources.vision import read_picture
from sft_nb.store import digest
from sft_nb.strategies import STRATEGIES
from sft_nb.training import Step
from sft_nb.widgets import gallery, html_table, play, svg_curve

QUICK = dict(shots=4, epochs=6)  # twelve steps


def until(f, seconds=20.0):
    end = time.monotonic() + seconds
    while not f():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.001)


def png(bundle):
    return Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))


def silent(panel):
    return not ElementTree.fromstring(panel.board.parts["said"].value).text


def theta(session):
    return digest(session.fit.model.state_dict())


def pieces(n, into, pause=0.0):
    for i in range(n):
        time.sleep(pause)
        into.append(i)
        yield i


# ---- the worker


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.lists(st.sampled_from(["start", "pause", "resume", "stop"]), max_size=8))
def test_whatever_is_pressed_every_piece_is_done_once_and_in_order(n, presses):
    seen = []
    w = Worker(pieces(n, seen, 0.0005))
    for name in presses:
        assert isinstance(getattr(w, name)(), str)
        assert w.state in ("ready", "running", "paused", "stopped", "finished")
    w.start()
    w.resume()
    w.wait()
    assert (w.state, seen) == ("finished", list(range(n)))


def test_a_pause_rests_and_a_stop_ends_the_thread():
    seen, before = [], threading.active_count()
    w = Worker(pieces(1000, seen, 0.001))
    w.start()
    until(lambda: seen)
    w.pause()
    assert w.state == "paused"
    time.sleep(0.05)
    n = len(seen)
    time.sleep(0.1)
    assert len(seen) == n and w.state == "paused"
    start = time.perf_counter()
    assert "continue goes on" in w.stop()
    assert time.perf_counter() - start < 5  # a hang, not a figure: `make test-browser` prints the latency
    assert w.state == "stopped" and len(seen) == n
    until(lambda: threading.active_count() == before)


def test_start_pressed_twice_is_a_sentence_and_one_thread():
    w, before = Worker(pieces(1000, [], 0.001)), threading.active_count()
    w.start()
    assert "running already" in w.start() and "running already" in w.resume()
    assert threading.active_count() == before + 1
    w.stop()
    assert "was stopped" in w.start()


def test_two_workers_never_work_at_once():
    "A piece that overlaps another one's piece would be seen."
    inside, most = [0], [0]

    def busy(n):
        for _ in range(n):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.003)
            inside[0] -= 1
            yield

    workers = [Worker(busy(40)) for _ in range(4)]
    for w in workers:
        w.start()
        time.sleep(0.01)
    workers[-1].wait()
    assert most[0] == 1
    assert [w.state for w in workers] == ["stopped"] * 3 + ["finished"]
    assert all("another one was started" in w.note for w in workers[:3])
    workers[0].resume()  # nothing was lost
    workers[0].wait()
    assert workers[0].state == "finished" and most[0] == 1


@pytest.mark.parametrize(
    "error, words",
    [(ValueError("no such\n task"), "no such task"), (KeyError("x"), "KeyError: 'x'"), (MemoryError(), "MemoryError")],
)
def test_an_error_in_the_thread_becomes_words(error, words):
    def job():
        yield
        raise error

    w = Worker(job())
    w.start()
    w.wait()
    assert (w.state, w.error, w.exception) == ("failed", words, error)
    assert words in w.start() and words in w.resume() and words in w.stop()


def test_an_interrupted_kernel_leaves_a_stopped_session():
    "Ctrl-C in the cell that waits: no half-done step, and it goes on later."
    code = """
import _thread, threading, time, warnings
warnings.simplefilter("ignore")
from sft_nb.records import Config
from sft_nb.sessions import Session
from sft_nb.store import digest
c = Config(strategy="full", shots=4, epochs=6)
a, b = Session(c), Session(c)
a.run()
def later():
    while len(b.steps) < 3: time.sleep(0.001)
    _thread.interrupt_main()
threading.Thread(target=later).start()
try:
    b.run()
except KeyboardInterrupt:
    print(b.state, b.note, len(b.steps) < b.total)
b.run()
print(digest(a.fit.model.state_dict()) == digest(b.fit.model.state_dict()), b.state)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["stopped stopped from the keyboard True", "True finished"], done


# ---- the session


@pytest.mark.parametrize("name", ["full", "lora", "lp_ft", "gradual_unfreezing", "from_scratch"])
def test_stop_and_continue_give_the_bytes_of_an_uninterrupted_run(name):
    c = Config(strategy=name, **QUICK)
    straight = Session(c, every=5)
    straight.run()
    s = Session(c, every=5)
    s.start()
    for n in (1, 4, 7):
        until(lambda n=n: len(s.steps) >= n or s.state == "finished")
        start = time.perf_counter()
        s.stop()
        assert time.perf_counter() - start < 5  # a hang, not a figure: `make test-browser` prints the latency
        torch.rand(7), np.random.rand(7)
        predict(s.fit.model, s.setting.loader(s.setting.task.valid))
        s.resume()
    s.pause()
    assert s.run() == straight.record
    assert theta(s) == theta(straight)
    assert [x.loss for x in s.steps] == [x.loss for x in straight.steps]
    assert s.valid == straight.valid and s.progress[0] == 1.0


@pytest.mark.parametrize("name", ["linear_probing", "bn_only", "lora"])
def test_a_sessions_record_is_that_of_run(name):
    c = Config(strategy=name, **QUICK)
    assert Session(c).run() == run(c.first())


def test_a_stop_in_the_middle_of_a_look_or_of_the_features_is_quick_and_harmless(monkeypatch):
    "Slow batches: Stop must not wait for the last of them."
    c, real = Config(strategy="full", **QUICK), Loader.__iter__
    straight = Session(c)
    straight.run()

    def slow(self):
        for batch in real(self):
            time.sleep(0.02 if len(self) > 3 else 0.0)
            yield batch

    small = experiments.Setting.loader
    monkeypatch.setattr(Loader, "__iter__", slow)
    monkeypatch.setattr(experiments.Setting, "loader", lambda self, ds, batch_size=4, **kw: small(self, ds, 4, **kw))
    s = Session(c)
    s.start()
    for _ in range(4):
        time.sleep(0.25)
        start = time.perf_counter()
        s.stop()
        assert time.perf_counter() - start < 5  # a hang, not a figure: `make test-browser` prints the latency
        s.resume()
    s.stop()
    monkeypatch.undo()
    s.run()
    assert [n for n, _ in s.valid] == [n for n, _ in straight.valid]


def test_looking_never_changes_the_model():
    s = Session(Config(strategy="full", **QUICK), every=1)
    s.start()
    until(lambda: len(s.steps) >= 3)
    s.stop()
    before, modes = theta(s), [m.training for m in s.fit.model.modules()]
    panel = Panel(s)
    for _ in range(3):
        panel.refresh()
    block_table(s.fit.model, s.theta_pre)
    panel.still(), s.progress
    assert theta(s) == before and [m.training for m in s.fit.model.modules()] == modes
    often, seldom = Session(s.config, every=1), Session(s.config, every=1000)
    often.run(), seldom.run()
    assert theta(often) == theta(seldom)
    assert (
        often.valid[-1]
        == seldom.valid[-1]
        == (12, accuracy(*predict(often.fit.model, often.setting.loader(often.setting.task.valid))))
    )


def test_the_readers_random_numbers_are_the_readers():
    torch.manual_seed(3), np.random.seed(3)
    alone = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3), np.random.seed(3)
    Session(Config(strategy="lora", **QUICK)).run()
    Panel(Config(**QUICK)).press("forecast")
    misfits(Config(pretrained="alexnet"))
    assert torch.equal(torch.rand(3), alone[0]) and np.array_equal(np.random.rand(3), alone[1])


def test_f_star_is_scikit_learns():
    "The line to reach, by another solver: mean cross-entropy + (l2 / 2) ||W||^2, the bias free."
    s = Session(Config(l2s=(0.05, 0.1), **QUICK))
    s.run()
    f = extract(s.setting.pre.backbone, s.setting.loader(s.setting.few))
    x, y = f.x.double().numpy(), f.y.numpy()
    lr = LogisticRegression(C=1 / (0.05 * len(y)), tol=1e-10, max_iter=5000).fit(x, y)
    z = torch.from_numpy(lr.decision_function(x))
    loss = nn.functional.cross_entropy(z, f.y) + 0.025 * float((lr.coef_**2).sum())
    assert abs(float(loss) - s.best.loss) < 1e-6 and s.best.gap <= 1e-8
    assert abs(float(nn.functional.cross_entropy(z, f.y)) - s.level) < 1e-4  # what the panel draws: without the penalty


@pytest.mark.parametrize("name", ["linear_probing", "lp_ft"])
def test_the_certificate_of_a_solved_head_is_kept_and_shown(name):
    s = Session(Config(strategy=name, **QUICK))
    panel = Panel(s)
    record = s.run()
    probe = s.solved.probe
    assert probe is s.best  # solved once
    assert s.solved.phase == "probe" and probe.gap <= 1e-8 and all(isinstance(step, Step) for step in s.steps)
    assert len(s.steps) == s.total == record.price.steps and (len(s.steps) > 0) == (name == "lp_ft")
    panel.refresh()
    assert f"head solved: F = {probe.loss:.4f}, at most {probe.gap:.0e} above" in panel.board.parts["where"].value


@pytest.mark.parametrize(
    "config, words",
    [
        (Config(shots=5000), "5000 shots per class were asked for, but class 0 has 75 examples"),
        (Config(strategy="gradual_unfreezing", epochs=2), "6 phases need an epoch each"),
        (Config(strategy="full", lrs=1.0, epochs=50), "lower lr"),
        (Config(pretrained="resnet18"), "could not be downloaded"),
    ],
)
def test_what_goes_wrong_is_said_in_words_and_raised_by_run(config, words, monkeypatch):
    if words == "lower lr":
        real = sessions.run_phases

        def runs_away(*args):
            yield next(real(*args))
            raise FloatingPointError("loss is nan at epoch 0, step 1: lower lr")

        monkeypatch.setattr(sessions, "run_phases", runs_away)
    s = Session(config)
    s.start()
    s.wait()
    assert s.state == "failed" and words in s.error and "\n" not in s.error and s.record is None
    with pytest.raises(Exception, match=words.split(" (")[0]):
        s.run()
    panel = Panel(s)
    assert words in panel.board.parts["state"].value


def test_block_table_against_a_count_by_hand():
    model = adapt(load_pretrained("pocket"), 10)
    pre = {n: t.clone() for n, t in model.state_dict().items()}
    add_lora(model, 2, 4.0, "backbone.layer3.*")
    with torch.no_grad():
        for m in model.modules():
            if hasattr(m, "lora_B"):
                m.lora_B.fill_(0.1)
        model.backbone.bn1.running_mean[:5] += 1
    rows = {r["block"]: r for r in block_table(model, pre)}
    names = dict(model.named_parameters())
    for block, row in rows.items():
        mine = {n: p for n, p in names.items() if n.startswith((f"backbone.{block}.", f"{block}."))}
        if block == "conv1":
            mine |= {n: p for n, p in names.items() if n.startswith("backbone.bn1.")}
        assert row["parameters"] == sum(p.numel() for p in mine.values())
        assert row["learns"] == sum(p.numel() for p in mine.values() if p.requires_grad)
    assert rows["conv1"]["moved"] == 5 and rows["layer2"]["moved"] == 0
    far = sum(
        float((m.weight.detach() - pre[f"{n}.weight"]).square().sum())
        for n, m in model.named_modules()
        if hasattr(m, "lora_A")
    )
    assert rows["layer3"]["distance"] == pytest.approx(far**0.5, rel=1e-5) and rows["layer4"]["distance"] == 0


# ---- play and the curve


def test_play_follows_and_leaves_a_picture():
    def draw(a=0.5, kind="up", dots=False):
        "A line."
        if a > 1.5:
            raise ValueError("too steep <for us>")
        ax = plt.subplots(figsize=(1, 1))[1]
        ax.plot([0, a])
        return ax

    view = play(draw, a=(0.0, 2.0, 0.5), kind=["up", "down"], dots=False)
    *parts, shown = view.box.children
    assert [type(p) for p in parts] == [W.FloatSlider, W.Dropdown, W.Checkbox] and parts[0].value == 0.5
    bundle = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    first = shown.value
    assert png(bundle).size == (100, 100)
    assert shown.value.startswith("<img") and 'alt="A line."' in shown.value
    parts[0].value = 1.0
    assert shown.value != first and not plt.get_fignums()
    parts[0].value = 2.0
    assert shown.value == "<p>too steep &lt;for us&gt;</p>"
    with pytest.raises(ValueError, match="cannot make a control of a=<object"):
        play(draw, a=object())
    with pytest.raises(ZeroDivisionError):
        play(lambda n: 1 / 0, n=(1, 2))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), max_size=1000), st.one_of(st.none(), st.floats(-10, 10)))
def test_svg_is_xml_inside_its_frame(ys, line):
    svg = ElementTree.fromstring(svg_curve(list(enumerate(ys)), "a < b & c", len(ys), line, "goal"))
    assert svg.find("{*}title").text == "a < b & c"
    curve, *more = svg.findall("{*}polyline")
    at = [tuple(map(float, p.split(","))) for p in curve.get("points").split()]
    assert len(at) <= 302 and (line is None) == (not more)
    assert all(44 <= x <= 411 and 24 <= y <= 181 for x, y in at)
    if len(ys) > 1:
        assert at[-1][0] == pytest.approx(45 + 350 * (len(ys) - 1) / len(ys), abs=0.1)


def test_a_curve_is_svg_in_the_page_and_png_in_the_file():
    "SVG is not shown in a notebook that is not trusted: nobody may find an empty place."
    view = play(lambda a: svg_curve([(0, 1), (1, a)], "loss", 1, 0.5, "goal"), a=(0.0, 2.0))
    bundle = view._repr_mimebundle_()
    assert view.box.children[-1].value.startswith("<svg") and not [k for k in bundle if "svg" in k or "html" in k]
    assert png(bundle).size == (420, 210) and len(bundle["image/png"]) < 10_000 and not plt.get_fignums()
    for points, line in (([], None), ([(0, 2.0)], None), ([(0, -1.0), (5, 1e6)], 3)):
        assert png(widgets.still_picture(svg_curve(points, "a < b & $c", 5, line))).size == (420, 210)


# ---- controls


@pytest.fixture(scope="module")
def settings_panel():
    return controls()


@pytest.mark.parametrize("name", STRATEGIES)
def test_round_trip_through_controls_code_and_command(name, settings_panel, monkeypatch, capsys):
    c = Config(strategy=name, task="hue", shots=7, seed=123, lrs=(0.0123, 1 / 3), l2s=1e-8, epochs=9, augment=0)
    settings_panel.value = c
    assert settings_panel.value == c and settings_panel.problems == {}
    assert eval(settings_panel.code, dict(Config=Config)) == c
    ran = []
    monkeypatch.setattr(cli, "run", lambda config, *keep: ran.append(config) or [])
    with pytest.raises(AttributeError):  # the list is no record: only what arrives counts
        cli.main(shlex.split(settings_panel.command)[1:])
    assert ran == [c]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_number_in_range_round_trips(settings_panel, data):
    number = lambda f: (st.floats if kind_of(f) is float else st.integers)(f.metadata["low"], f.metadata["high"])
    some = lambda f: st.lists(number(f), min_size=1, max_size=3, unique_by=lambda v: f"{v:g}").map(tuple)
    values = {f.name: data.draw((some if is_several(f) else number)(f)) for f in fields(Config) if "low" in f.metadata}
    c = Config(**values)
    settings_panel.value = c
    for f in fields(Config):  # what a browser does: it sends what was typed
        if "low" in f.metadata:
            typed = " ".join(map(str, values[f.name])) if is_several(f) else json.loads(json.dumps(values[f.name]))
            settings_panel.parts[f.name].set_state(dict(value=typed))
    assert settings_panel.value == c and eval(as_code(c), dict(Config=Config)) == c
    parser = argparse.ArgumentParser()
    for f in fields(Config):
        parser.add_argument(
            f"--{f.name.replace('_', '-')}", type=kind_of(f), default=f.default, nargs="+" if is_several(f) else None
        )
    assert Config(**vars(parser.parse_args(shlex.split(as_command(c))[2:]))) == c


def test_several_values_are_typed_in_one_line_and_what_is_wrong_is_one_sentence():
    panel = controls()
    for text, lrs in (("0.01", (0.01,)), ("0.01, 0.1", (0.01, 0.1)), (" 1e-3  0.5,", (0.001, 0.5))):
        panel.parts["lrs"].value = text
        assert panel.value.lrs == lrs and panel.problems == {}
    for text in ("", "fast", "0.01 0.01", "0.01; 0.1", "5"):
        panel.parts["lrs"].value = text
        assert list(panel.problems) == ["lrs"] and panel.code == ""
        assert panel.problems["lrs"].startswith("lrs must be numbers, one at least and none twice, from 1e-07 to 1")
        assert "Not like this" in panel._beside["lrs"].value
    assert type(panel.parts["lrs"]).__name__ == "Text"


def test_a_folder_is_a_task_and_its_name_may_hold_anything(tmp_path, settings_panel):
    odd = tmp_path / "my 'own' $pictures"
    odd.mkdir()
    c = Config(task=str(odd))
    settings_panel.value = c
    assert settings_panel.value == c and eval(as_code(c), dict(Config=Config)) == c
    assert shlex.split(as_command(c)) == ["sft_nb", "run", "--task", str(odd)]


def test_what_is_out_of_range_is_said_beside_its_control(settings_panel):
    settings_panel.value = Config()
    settings_panel.parts["shots"].value = 0
    assert "from 1 to 100000; got 0<" in settings_panel._beside["shots"].value
    assert settings_panel.code == "" and list(settings_panel.problems) == ["shots"]
    with pytest.raises(ValueError, match="shots must be a whole number"):
        _ = settings_panel.value
    panel = Panel(settings_panel)
    assert "shots must be a whole number" in panel.press("start") and panel.session is None
    settings_panel.value = Config()
    assert settings_panel.problems == {} and "labels per class" in settings_panel._beside["shots"].value


@pytest.mark.parametrize(
    "config, field, words",
    [
        (Config(pretrained="alexnet", strategy="bn_only"), "strategy", "BatchNorm"),
        (Config(pretrained="alexnet", strategy="surgical_layer1"), "strategy", "layer1"),
        (Config(strategy="gradual_unfreezing", epochs=5), "epochs", "6 phases"),
        (Config(task="near", shots=500), "shots", "take no more"),
        (Config(task="cifar10"), "task", "is not there"),
    ],
)
def test_misfits_name_the_field(config, field, words):
    found = misfits(config)
    assert list(found) == [field] and words in found[field]


def test_the_shots_that_misfits_allows_are_the_most_that_can_run():
    for task in TASKS:
        most = int(load_split(task).train.y.bincount().min())
        assert "shots" not in misfits(Config(task=task, shots=most)) and "shots" in misfits(
            Config(task=task, shots=most + 1)
        )
    assert not torch.cuda.is_available() or "device" not in misfits(Config(device="cuda"))


# ---- the panel


def test_a_panel_from_start_to_record_by_its_buttons():
    panel = Panel(Config(strategy="full", **QUICK), every=3)
    press = lambda name: panel.board.buttons[name].click()
    part = lambda name: panel.board.parts[name].value
    assert "not started" in panel._repr_mimebundle_()["text/markdown"]
    press("forecast")
    assert re.search(r"(about \d+ s|less than a second), and \d+ MB", part("said"))
    press("resume")
    assert "start it" in part("said")
    press("start")
    press("start")
    assert "running already" in part("said")
    until(lambda: len(panel.session.steps) >= 2)
    press("pause")
    assert "paused" in part("state") or panel.session.state == "finished"
    press("resume")
    panel.session.wait()
    until(lambda: "finished" in part("state"))
    for words, name in (
        ("cross-entropy of the solved head", "curves"),
        ("takes it for", "samples"),
        ("layer4", "blocks"),
        ("full", "runs"),
    ):
        assert words in part(name), name
    assert panel.board.bar.value == 1.0 and silent(panel) and "Config(strategy=&#x27;full&#x27;" in part("what")
    assert not any(b.disabled for b in panel.board.buttons.values())  # one that closes itself loses the focus
    assert png(panel._repr_mimebundle_()).size == (420, 420)
    press("start")  # a new session
    panel.session.wait()
    until(lambda: len(panel.records) == 2)
    assert panel.records[0] == panel.records[1]


def test_the_view_follows_while_it_trains_and_stop_is_quick():
    panel = Panel(Session(Config(strategy="full", shots=10, epochs=100)))
    panel.press("start")
    until(lambda: "step" in panel.board.parts["where"].value)
    seen = panel.board.parts["where"].value
    until(lambda: panel.board.parts["where"].value != seen)  # nobody calls refresh
    start = time.perf_counter()
    panel.board.buttons["stop"].click()
    assert time.perf_counter() - start < 5  # a hang, not a figure: `make test-browser` prints the latency
    assert panel.session.state == "stopped" and not panel.board.buttons["resume"].disabled


def test_running_a_cell_again_goes_on_with_what_it_had_started():
    first = Panel(Config(strategy="full", shots=10, epochs=100))
    first.press("start")
    second = Panel(Config(strategy="full", **QUICK))
    assert second.session is first.session and first.session.state == "running"
    assert "was under way" in second.board.parts["said"].value and "epochs=100" in second.board.parts["what"].value
    assert "running already" in second.press("start")
    second.press("pause")
    assert Panel(Config()).session is first.session  # a training that rests is under way too
    second.press("stop")
    assert first.session.state == "stopped" and Panel(Config()).session is None
    assert Panel(first.session).press("resume") == "under way"
    first.press("stop")


@pytest.mark.parametrize(
    "config, state",
    [(Config(strategy="full", **QUICK), "finished"), (Config(pretrained="resnet18", **QUICK), "failed")],
)
def test_what_was_said_goes_when_the_state_does(config, state):
    panel = Panel(config)
    assert panel.press("start") == "under way"
    panel.session.wait()
    panel.refresh()
    assert panel.session.state == state and silent(panel)
    assert "make a new one" in panel.press("pause") and "make a new one" in panel.board.parts["said"].value


def test_a_stop_that_comes_late_says_what_happened():
    def job(n):
        for _ in range(n):
            time.sleep(0.3)
            yield

    ends, rests = Worker(job(0)), Worker(job(9))
    ends.start()
    ends.wait()
    assert "this one is finished" in ends.stop()
    rests.start()
    time.sleep(0.05)
    assert rests.stop(patience=0.01) == "it stops after the piece under way"
    rests.wait()
    assert rests.state == "stopped"


def test_a_panels_controls_say_what_the_panel_trains():
    settings_panel = controls(Config(lrs=(0.01, 0.1, 0.5), **QUICK))
    assert "--lrs 0.01 0.1 0.5" in settings_panel.command
    panel = Panel(settings_panel)
    assert "--lrs 0.01 --l2s 0.1 " in settings_panel.command and settings_panel.parts["lrs"].value == "0.01"
    settings_panel.parts["lrs"].value = "0.02 0.04"
    assert settings_panel.value.lrs == (0.02,) and "--lrs 0.02" in settings_panel.command
    settings_panel.value = Config(lrs=(0.003, 0.1), strategy="full", **QUICK)
    assert settings_panel.parts["lrs"].value == "0.003"
    panel.press("start")
    panel.session.wait()
    assert panel.session.config == settings_panel.value == Config(lrs=0.003, l2s=0.1, strategy="full", **QUICK)
    assert "one candidate" in settings_panel._beside["lrs"].value
    assert run(settings_panel.value) == panel.session.record  # the command does what the panel did


def test_the_table_of_runs_tells_two_runs_apart():
    r = Session(Config(strategy="full", shots=2, epochs=1)).run()
    rows = [dashboard._run_row(replace(r, config=replace(r.config, **{n: v}))) for n, v in
            dict(seed=7, epochs=3, shots=9, strategy="lora", task="hue", pretrained="pocket_hue").items()
            if v in (known_names(Config.__dataclass_fields__[n]) or [v])]  # fmt: skip
    assert len({str(row) for row in rows} | {str(dashboard._run_row(r))}) == len(rows) + 1


def test_the_pictures_shown_are_of_all_classes():
    "A folder's validation pictures stand class by class; so do these."
    y = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    assert y[dashboard._chosen(y)].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert dashboard._chosen(torch.arange(64)) == list(range(8)) and dashboard._chosen(y[:3]) == [0, 1, 2]


def test_a_session_works_where_its_batches_are(monkeypatch):
    "As on a GPU, without one: batches and models are float64, theta_pre itself stays float32."
    model, loader = experiments.Setting.model, experiments.Setting.loader

    def double(self, ds, *args, **kwargs):
        dl = loader(self, ds, *args, **kwargs)
        transform = dl.transform
        dl.transform = lambda x: transform(x).double()
        return dl

    monkeypatch.setattr(experiments.Setting, "model", lambda self: model(self).double())
    monkeypatch.setattr(experiments.Setting, "loader", double)
    monkeypatch.setattr(sessions, "record", lambda s, fit, tried: None)
    s = Session(Config(strategy="full", shots=2, epochs=1))
    s.start()
    s.wait()  # to the record, which is chapter 12's
    assert s.doing == "" and len(s.steps) == s.total, s.error
    assert s.best is not None and next(s.setting.pre.backbone.parameters()).dtype == torch.float32


def test_labels_cannot_write_html():
    assert "<script" not in html_table([{"<script>": "<script>x"}])
    assert "<script" not in gallery(["x"], ["<script>"])


# ---- pictures of one's own


def folder(root, classes=3, n=9):
    train = load_split("near").train
    for c in range(classes):
        for k, i in enumerate((train.y == c).nonzero()[:n, 0].tolist()):
            path = root / f"kind {c}" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(train.x[i].permute(1, 2, 0).numpy()).save(path)
    return root


def zipped(files):
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in files.items():
            z.writestr(name, content)
    return blob.getvalue()


def upload(widget, content, name="x"):
    widget.value = (
        dict(name=name, type="", size=len(content), content=memoryview(content), last_modified=datetime.now()),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def drawn_world(monkeypatch):
    "Whether the weights of the large network lie on this machine is no matter of a test."
    monkeypatch.setattr(pictures, "usual_network", lambda: "pocket")


def test_it_begins_with_a_network_that_has_seen_photographs_where_one_is_here(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert pictures.usual_network() == OwnPictures().board.pretrained.value == "pocket"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "sft_nb-efficientnet_lite0.pth").touch()
    assert pictures.usual_network() == OwnPictures().board.pretrained.value == "efficientnet_lite0"


def test_from_a_folder_to_a_file_and_back(tmp_path):
    own = OwnPictures(folder(tmp_path / "mine"))
    b = own.board
    b.learn.click()
    assert (
        "learned kind 0, kind 1, kind 2" in b.said.value
        and "judged by 5-fold cross-validation on all 27 pictures" in b.report.value
    )
    assert own.learned.gap <= 1e-8 and "right" in own._repr_mimebundle_()["text/html"]
    assert own.learned.score().accuracy == accuracy(own.learned.logits, own.learned.test.y)
    b.file.value = str(tmp_path / "mine.safetensors")
    b.save.click()
    theta, W0 = digest(own.learned.model.state_dict()), own.learned.model.head.weight.detach().clone()
    with torch.no_grad():
        own.learned.model.head.weight.zero_()
    b.load.click()
    assert digest(own.learned.model.state_dict()) == theta and "to the bit" in b.said.value
    picture = (tmp_path / "mine" / "kind 1" / "2.png").read_bytes()
    upload(b.picture, picture)
    named = name_picture(own.learned, picture)
    assert f"looks like {max(named, key=named.get)}" in b.said.value and sum(named.values()) == pytest.approx(1)
    phi = own.learned.pre.backbone.eval()(own.learned.pre.transform(read_picture(io.BytesIO(picture), 32)[None]))
    want = (phi @ W0.T + own.learned.model.head.bias).softmax(1)[0]
    assert [named[c] for c in own.learned.classes] == pytest.approx(want.tolist(), abs=1e-6)


def test_a_small_folder_judges_as_it_learns_and_a_cut_one_keeps_its_cut(tmp_path, monkeypatch):
    mine = folder(tmp_path / "mine")
    few = learn_pictures(mine)
    assert (few.folds, few.shown, len(few.test), len(few.logits)) == (5, 27, 27, 27)
    assert few.judged == "by 5-fold cross-validation on all 27 pictures" and few.gap <= 1e-8
    loss = lambda logits: float(nn.functional.cross_entropy(logits, few.test.y))
    with torch.no_grad():  # the one that has seen them is surer
        assert loss(few.model(few.pre.transform(few.test.x))) < loss(few.logits)
    theta = digest(few.model.state_dict())
    assert theta == digest(learn_pictures(mine).model.state_dict()) and torch.equal(
        few.logits, learn_pictures(mine).logits
    )
    shutil.copytree(mine, tmp_path / "cut" / "train")
    for k in range(3):
        (tmp_path / "cut" / "test" / f"kind {k}").mkdir(parents=True)
        (tmp_path / "cut" / "train" / f"kind {k}" / "1.png").rename(tmp_path / "cut" / "test" / f"kind {k}" / "1.png")
    cut = learn_pictures(tmp_path / "cut")
    assert (cut.folds, len(cut.test)) == (0, 3) and cut.judged == "on 3 test pictures"
    assert "judged on 3 test pictures" in pictures._report(cut)
    assert learn_pictures(folder(tmp_path / "tiny", n=3)).folds == 3  # as many as a class has pictures
    monkeypatch.setattr(pictures, "_ENOUGH", 3)
    assert learn_pictures(mine).folds == 0  # a test set that is large enough is put aside


def test_copies_of_a_picture_are_in_one_fold(tmp_path):
    "Noise with labels by a coin: nobody can know a picture that he has not seen."
    g = np.random.default_rng(0)
    for i in range(40):
        (place := tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        noise = Image.fromarray(g.integers(0, 256, (32, 32, 3), np.uint8))
        for k in range(3):
            noise.save(place / f"{i} ({k}).png")
    learned = learn_pictures(tmp_path, l2s=[0.001])
    assert len(learned.test) == 120 and 0.25 < learned.score().accuracy < 0.75
    same = {}
    for x, z in zip(learned.test.x, learned.logits, strict=True):
        assert torch.allclose(same.setdefault(x.numpy().tobytes(), z), z, atol=1e-3)  # one head named all three


def test_the_same_pictures_in_a_zip_learn_the_same(tmp_path):
    root = folder(tmp_path / "mine")
    files = {f"mine/{p.relative_to(root).as_posix()}": p.read_bytes() for p in root.rglob("*.png")}
    own = OwnPictures()
    upload(
        own.board.upload, zipped(files | {"__MACOSX/mine/._0.png": b"x", "mine/.DS_Store": b"x", "../../out.txt": b"x"})
    )
    own.board.learn.click()
    assert torch.equal(own.learned.logits, learn_pictures(root).logits)
    assert "from x" in own.board.said.value and not (tmp_path.parent / "out.txt").exists()
    own.board.pretrained.value = "pocket-hue"
    own.board.learn.click()  # the zip is still there, for another network
    assert torch.equal(own.learned.logits, learn_pictures(root, "pocket-hue").logits)


def test_bad_input_is_one_sentence(tmp_path, monkeypatch):
    own = OwnPictures()
    b, said = own.board, lambda: own.board.said.value
    for name in ("save", "load", "learn"):
        getattr(b, name).click()
        assert "<p" in said() and "working" not in said()
    (tmp_path / "one" / "a").mkdir(parents=True)
    for path, words in ((tmp_path / "none", "is not a folder"), (tmp_path / "one", "needs two or more")):
        b.folder.value = str(path)
        b.learn.click()
        assert words in said()
    (tmp_path / "one" / "b").mkdir()
    b.learn.click()
    assert "has 0 pictures: too few" in said()
    upload(b.upload, b"no zip")
    b.learn.click()
    assert "this is no zip" in said()
    upload(b.picture, b"no picture")
    assert "nothing is learned yet" in said()
    root = folder(tmp_path / "mine")
    (root / "kind 0" / "broken.png").write_bytes(b"no picture")
    b.folder.value = str(root)
    b.learn.click()
    assert "learned" in said() and "left out" in b.report.value and "kind 0/broken.png" in b.report.value
    upload(b.picture, b"no picture")
    assert "cannot be read as a picture" in said() and " at 0x" not in said()
    monkeypatch.setattr(pictures, "_MOST", 10_000)
    b.learn.click()
    assert "take a smaller folder" in said()


def test_what_stands_on_the_panel_is_about_what_was_done_last(tmp_path):
    own = OwnPictures(folder(tmp_path / "mine"))
    b, said = own.board, lambda: own.board.said.value
    b.learn.click()
    upload(b.picture, (tmp_path / "mine" / "kind 1" / "2.png").read_bytes())
    assert b.report.value and b.named.value
    upload(b.picture, b"no picture")
    assert not b.named.value and b.report.value  # the report is about the model, which is the same
    before = own.learned
    upload(b.upload, b"no zip", "odd.zip")
    assert b.folder.value == ""  # the zip counts, and nothing else names a folder
    b.learn.click()
    assert "this is no zip" in said() and "kind 0, kind 1, kind 2" in said() and own.learned is before
    assert not b.report.value and b.upload.value == ()  # no old matrix under a new error; the field is free again
    upload(b.upload, b"no zip", "odd.zip")
    b.folder.value = str(tmp_path / "mine")
    assert b.upload.value == ()
    b.learn.click()
    assert "learned kind 0" in said() and b.report.value


def test_a_kept_file_names_its_own_classes_after_a_restart(tmp_path):
    own, b = OwnPictures(folder(tmp_path / "mine")), None
    own.board.learn.click()
    own.board.file.value = str(tmp_path / "mine.safetensors")
    own.board.save.click()
    picture = (tmp_path / "mine" / "kind 1" / "2.png").read_bytes()
    later = OwnPictures(pretrained="pocket-hue")
    b = later.board
    b.file.value = own.board.file.value
    b.load.click()
    assert later.learned.classes == own.learned.classes and b.pretrained.value == "pocket"
    assert "pocket that tells apart kind 0, kind 1, kind 2" in b.said.value
    assert name_picture(later.learned, picture) == name_picture(own.learned, picture)
    upload(b.picture, picture)
    assert "this looks like kind" in b.said.value
    other = OwnPictures(folder(tmp_path / "two", classes=2))
    other.board.learn.click()
    other.board.file.value = own.board.file.value
    other.board.load.click()  # tomatoes are not called apples
    assert other.learned.classes == own.learned.classes and not other.board.report.value
    b.save.click()
    assert digest(load_pictures(b.file.value).model.state_dict()) == digest(own.learned.model.state_dict())


def test_a_file_without_names_or_with_nothing_is_refused(tmp_path):
    learned = learn_pictures(folder(tmp_path / "mine"))
    save_delta(tmp_path / "old.safetensors", learned.model, learned.pre)
    own = OwnPictures()
    for name, words in (("old.safetensors", "does not name its classes"), ("none", "none"), ("mine", "mine")):
        own.board.file.value = str(tmp_path / name)
        own.board.load.click()
        assert words in own.board.said.value and own.learned is None
    own.board.file.value = " "
    own.learned = learned
    for button in (own.board.save, own.board.load):
        button.click()
        assert "give the file a name" in own.board.said.value


def test_names_of_classes_are_escaped_once_and_folds_carry_the_names(tmp_path):
    root = folder(tmp_path / "mine", classes=2)
    (root / "kind 0").rename(root / "a < b & c")
    (root / "kind 1" / "<i>.png").write_bytes(b"no picture")
    report = pictures._report(learn_pictures(root))
    assert "a &lt; b &amp; c" in report and "&amp;lt;" not in report and "<i>" not in report
    assert "<details><summary>1 unreadable picture was left out (it is in none of the formats" in report
    assert "</summary>kind 1/&lt;i&gt;.png</details>" in report and str(tmp_path) not in report


def test_the_field_offers_folders_and_zips_beside_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "mine")
    (tmp_path / "more.zip").write_bytes(zipped({f"{c}/{i}.png": b"" for c in "ab" for i in range(3)}))
    (tmp_path / ".hidden").mkdir()
    own = OwnPictures()
    assert own.board.folder.options == ("mine", "more.zip")
    own.board.folder.value = "mine"
    own.board.learn.click()
    assert "learned kind 0" in own.board.said.value
    own.board.folder.value = "more.zip"
    own.board.learn.click()
    assert "class &#x27;a&#x27; has 0 pictures" in own.board.said.value and "the file is empty" in own.board.said.value


def test_every_field_of_the_panel_has_a_name():
    seen = []
    walk = lambda w: [seen.append(w), *map(walk, getattr(w, "children", ()))]
    walk(OwnPictures().box)
    named = [w for w in seen if hasattr(w, "description") and not isinstance(w, W.HTML)]
    assert len(named) == 8 and all(w.description.strip() for w in named)


def test_a_folder_is_read_at_the_size_of_its_network(tmp_path):
    learned = learn_pictures(folder(tmp_path / "mine"))
    assert learned.size == learned.pre.size == learned.test.x.shape[-1] == 32


def test_a_zip_that_unfolds_too_far_writes_nothing(tmp_path):
    bomb = zipped({f"{'ab'[i % 2]}/{i}.png": bytes(30_000_000) for i in range(4)})
    assert len(bomb) < 1_000_000
    for read in (lambda: unpack_pictures(bomb, tmp_path), lambda: learn_pictures(bomb)):
        with pytest.raises(ValueError, match="unfolds to 120 MB"):
            read()
    assert not list(tmp_path.iterdir())


# ---- the wall between state and view


def test_a_session_needs_no_ipywidgets():
    code = """
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["ipywidgets"] = sys.modules["IPython"] = None
from sft_nb.records import Config
from sft_nb.sessions import Session
from sft_nb.controls import as_code, misfits
print(Session(Config(strategy="full", shots=2, epochs=1)).run().n, misfits(Config()), as_code(Config(shots=3)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "800 {} Config(shots=3)", done.stderr


def test_nothing_is_printed_from_the_thread(capsys):
    s = Session(Config(strategy="full", **QUICK))
    s.run()
    assert capsys.readouterr().out == "" and isinstance(s.fit.model, TransferModel)
