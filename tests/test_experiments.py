"Experiments: one source for every setting, records that repeat, sweeps that survive a kill, sums that SciPy confirms."

import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, fields, replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sft_nb import cache, experiments, records, sweeps
from sft_nb.cli import main
from sft_nb.data import Images, Split, few_shot, load_split
from sft_nb.evaluation import accuracy
from sft_nb.experiments import retrained, run
from sft_nb.freezing import freeze, unfreeze
from sft_nb.models import adapt, load_pretrained
from sft_nb.peft import add_lora
from sft_nb.records import Config, Price, Record, grid, is_several, kind_of, known_names, read_records
from sft_nb.sources.pocket import TASKS
from sft_nb.store import StoreError, append_line, read_lines
from sft_nb.strategies import STRATEGIES
from sft_nb.sweeps import forecast, remaining, sweep
from sft_nb.tables import FORMATS, compare, render, table
from sft_nb.training import kept_bytes, step_flops

QUICK = dict(epochs=1, lrs=0.003, l2s=0.1, shots=4)  # one candidate, two steps


# ---- the price of a step


def resnet(name, *learn):
    net = getattr(torchvision.models, name)(num_classes=10).eval()
    if learn == ("norm",):
        for m in freeze(net, "*").modules():
            if isinstance(m, nn.BatchNorm2d):
                m.requires_grad_(True)
        return unfreeze(net, "fc.*")
    return unfreeze(freeze(net, "*"), *learn) if learn else net


def counted(model, x):
    "torch's own counter, over a real backward pass."
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    return counter.get_total_flops()


STEPS = {
    ("fc.*",): 8_174_354_432,
    ("layer4.*", "fc.*"): 11_000_307_712,
    ("norm",): 16_112_640_000,
    ("conv1.*", "layer1.*", "fc.*"): 17_684_553_728,
    (): 24_286_912_512,
}


@pytest.mark.parametrize("learn", STEPS, ids=str)
def test_flops_are_the_worked_numbers_and_torchs(learn):
    x = torch.zeros(1, 3, 224, 224)
    with torch.device("meta"):
        net, x = resnet("resnet50", *learn).to("meta"), x.to("meta")
    assert step_flops(net, x) == STEPS[learn]
    small = resnet("resnet18", *learn)
    x = torch.randn(2, 3, 64, 64)
    assert step_flops(small, x) == counted(small, x)


def test_flops_of_grouped_convolutions_follow_the_formula():
    net = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    x = torch.randn(1, 8, 5, 5)
    assert step_flops(net, x) == 2 * 3_600  # forward and the weight's gradient
    net = torchvision.models.mobilenet_v3_small(num_classes=10).eval()
    assert step_flops(net, torch.randn(2, 3, 64, 64)) == 64_263_168


def test_flops_of_functional_products_lora_and_frozen_nets():
    swin = torchvision.models.swin_t(num_classes=10).eval()
    x = torch.randn(1, 3, 64, 64)
    assert step_flops(swin, x) == counted(swin, x)
    pre = load_pretrained("pocket")
    lora = add_lora(adapt(pre, 10), 4, 8)
    x = torch.randn(3, 3, 32, 32)
    assert step_flops(lora, x) == counted(lora, x)
    still = freeze(adapt(pre, 10))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        still(x)
    assert step_flops(still, x) == counter.get_total_flops()
    wanted = counted(unfreeze(still), x)
    with torch.no_grad():  # a training step is meant, wherever one asks
        assert step_flops(still, x) == wanted


def test_kept_bytes_are_the_worked_numbers():
    net = torchvision.models.resnet18(num_classes=10)
    x, mib = torch.randn(4, 3, 64, 64), 2**20
    head = unfreeze(freeze(net), "fc.*")
    assert kept_bytes(head.eval(), x) == 4 * 512 * 4  # the features, and nothing else
    # above what learns, frozen BatchNorm stands still: it keeps no mean and deviation of the batch for its 4,480 channels
    expected = {("layer4.*", "fc.*"): (0.352, 0.371), ("layer1.*", "fc.*"): (4.227, 4.229), ("*",): (6.914, 6.951)}
    for learn, sizes in expected.items():
        unfreeze(freeze(net), *learn)
        for mode, size in zip((False, True), sizes, strict=True):
            for m in net.modules():
                m.training = mode
            assert round(kept_bytes(net, x) / mib, 3) == size


def test_measuring_a_step_leaves_no_trace():
    net = adapt(load_pretrained("pocket"), 10).train()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    x = torch.randn(2, 3, 32, 32)
    step_flops(net, x), kept_bytes(net, x)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items()) and net.training
    assert all(p.grad is None for p in net.parameters())


# ---- lines of JSON


def test_lines_round_trip_and_survive_every_cut(tmp_path):
    path, rows = tmp_path / "deep" / "a.jsonl", [dict(i=i, text="ä\n\r\u2028", x=[i / 3, None]) for i in range(3)]
    assert read_lines(path) == []
    for row in rows:
        append_line(path, row)
    assert read_lines(path) == rows
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = sum(
            len(json.dumps(r, ensure_ascii=False).encode()) <= size - at
            for at, r in zip(starts(whole), rows, strict=True)
        )
        append_line(path, dict(new=1))
        with pytest.warns(match="line") if broken(path) else nothing():
            assert read_lines(path) == [*rows[:kept], dict(new=1)]
        assert path.read_bytes().startswith(whole[:size])  # what was there stays there


def starts(blob):
    return [0, *(i + 1 for i, b in enumerate(blob[:-1]) if b == 10)]


def broken(path):
    def bad(line):
        try:
            json.loads(line)
        except ValueError:
            return True

    return any(map(bad, filter(None, path.read_bytes().split(b"\n"))))


def nothing():
    from contextlib import nullcontext

    return nullcontext()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_stop_the_reader(tmp_path_factory, blob):
    path = tmp_path_factory.mktemp("lines") / "a"
    path.write_bytes(blob)
    append_line(path, dict(ok=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_lines(path)[-1] == dict(ok=True)


def test_lines_refuse_what_json_has_no_word_for(tmp_path):
    with pytest.raises(ValueError):
        append_line(tmp_path / "a", dict(x=float("nan")))
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not be written"):
        append_line(tmp_path / "file" / "a", dict(x=1))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_lines_say_that_the_disk_is_full():
    with pytest.raises(StoreError, match="free some space"):
        append_line("/dev/full", dict(x=1))


# ---- Config


def test_every_field_says_what_it_is_and_its_default_is_allowed():
    assert Config() == Config(**asdict(Config()))
    for f in fields(Config):
        assert f.metadata["help"] and ("known" in f.metadata) != ("low" in f.metadata)
    assert set(STRATEGIES) == set(next(known_names(f) for f in fields(Config) if f.name == "strategy"))


@pytest.mark.parametrize("f", fields(Config), ids=lambda f: f.name)
def test_what_lies_outside_is_refused_by_name(f):
    about = f.metadata
    bad = (
        [None, "nonsense", [], ""]
        if "known" in about
        else [None, "1", True, about["high"] * 2 + 1, about["low"] - 1, float("nan"), float("inf")]
    )
    bad += [2.5] if kind_of(f) is int else []
    bad += [[], (), (0.5, "x"), (0.5, 0.5), (0.5, float("nan")), {}] if is_several(f) else []
    for value in bad:
        with pytest.raises(ValueError, match=f.name):
            Config(**{f.name: value})
    for value in (about["low"], about["high"]) if "low" in about else known_names(f):
        assert getattr(Config(**{f.name: value}), f.name) == ((value,) if is_several(f) else value)


def test_nearest_names():
    with pytest.raises(ValueError, match="did you mean 'gradual_unfreezing'"):
        Config(strategy="gradual")
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        Config(pretrained="resnet_50")
    with pytest.raises(ValueError, match="unknown field 'epoch'; did you mean 'epochs'"):
        grid(epoch=[1])
    assert Config(task=str(ROOT)).task == str(ROOT)  # a folder of pictures


def test_numbers_and_paths_of_other_libraries_are_taken(tmp_path, monkeypatch):
    assert Config(seed=np.int64(3), lrs=np.float32(0.5), shots=np.uint8(7)) == Config(seed=3, lrs=0.5, shots=7)
    assert Config(lrs=np.array([0.5, 0.25])).lrs == (0.5, 0.25) == Config(lrs=(x for x in (0.5, 0.25))).lrs
    json.dumps(asdict(Config(seed=np.int64(3), lrs=[np.float32(0.5)], task=tmp_path)))
    for value in (np.bool_(True), np.float64(2.5), np.array([1]), torch.tensor(3)):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            Config(seed=value)
    assert [c.seed for c in grid(seed=np.arange(3))] == [0, 1, 2] == [c.seed for c in grid(seed=(i for i in range(3)))]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    (tmp_path / "some.txt").write_text("")
    assert {Config(task=t).task for t in ("pics", "pics/", "./pics", Path("pics"), "pics/.")} == {"pics"}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Config(task="~/pics").task == str(tmp_path / "pics")
    for task in ("some.txt", "nowhere", Path("nowhere"), b"pics"):
        with pytest.raises(ValueError, match="unknown task"):
            Config(task=task)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_a_folder_whose_name_cannot_be_written_is_refused_before_the_run(tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    odd.mkdir()
    with pytest.raises(ValueError, match="rename it"):
        Config(task=odd)


def test_devices(monkeypatch):
    from sft_nb.experiments import need_device

    need_device("cpu")
    for device, there in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        assert Config(device=device).device == device
        monkeypatch.setattr(there, "is_available", lambda: True)
        need_device(device)
        monkeypatch.setattr(there, "is_available", lambda: False)
        with pytest.raises(ValueError, match=f"device is '{device}', but torch sees no GPU here: take 'cpu'"):
            run(Config(device=device))


def test_grid_is_the_product():
    cs = grid(strategy=["full", "lora"], shots=(4, 5), seed=range(3), task="near")
    assert len(set(cs)) == 12 and [c.seed for c in cs[:4]] == [0, 1, 2, 0] and {c.task for c in cs} == {"near"}
    assert grid() == [Config()]
    assert [c.lrs for c in grid(lrs=(0.1, 0.2))] == [(0.1, 0.2)]  # a tuple is one search, a list is an axis
    assert [c.lrs for c in grid(lrs=[0.1, (0.1, 0.2), [0.3]])] == [(0.1,), (0.1, 0.2), (0.3,)]


# ---- run


@pytest.mark.parametrize("name", ["linear_probing", "lp_ft", "lora", "from_scratch"])
def test_the_same_config_gives_the_same_record(name):
    c = Config(strategy=name, **QUICK)
    torch.manual_seed(1)
    once = run(c)
    torch.manual_seed(2)  # nothing from outside leaks in
    assert run(c) == once
    assert run(replace(c, seed=1)) != once
    row = json.loads(json.dumps(asdict(once)))
    assert Record(**(row | dict(config=Config(**row["config"]), price=Price(**row["price"])))) == once


def test_a_record_is_what_one_would_compute_by_hand():
    "The probe's record against scikit-learn on features that were computed plainly."
    from sklearn.linear_model import LogisticRegression

    r = run(Config(task="near", seed=2, l2s=(0.1, 0.01, 0.001)))
    pre, task = load_pretrained("pocket"), load_split("near")
    with torch.no_grad():
        phi = lambda ds: pre.backbone(pre.transform(ds.x)).numpy()
        few = few_shot(task.train, 10, 2)
        x, y, valid = phi(few), few.y.numpy(), {}
        for l2 in (0.1, 0.01, 0.001):
            theirs = LogisticRegression(C=1 / (len(y) * l2), tol=1e-8, max_iter=10_000).fit(x, y)
            valid[f"l2={l2:g}"] = (theirs.predict(phi(task.valid)) == task.valid.y.numpy()).mean(), theirs
        test = phi(task.test)
    one = 1 / len(task.valid)  # scikit-learn stops before the optimum, which may turn a picture over
    assert r.tried == pytest.approx({k: v for k, (v, _) in valid.items()}, abs=1.5 * one)
    theirs = valid[r.chosen][1]
    assert r.valid == max(r.tried.values()) and r.n == 800
    assert r.accuracy == pytest.approx((theirs.predict(test) == task.test.y.numpy()).mean(), abs=0.003)
    p = theirs.predict_proba(x)
    assert r.loss == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean(), abs=1e-4)
    assert r.gap <= 1e-8 and (r.price.trained, r.price.stored, r.price.steps) == (1290, 5160, 0)


def test_sizes_and_what_has_no_meaning_is_none():
    def of(name, **more):
        return run(Config(strategy=name, **(QUICK | more)))

    full, scratch, norm = of("full"), of("from_scratch"), of("bn_only")
    a, b = full.price, norm.price
    assert (a.trained, b.trained) == (308_826, 1_440 + 1_290)
    assert full.gap is scratch.gap is scratch.scores["source"] is None and 0 < full.scores["source"] < 1
    assert b.stored < a.stored and b.kept <= a.kept and b.flops < a.flops
    assert a.steps == 2  # forty pictures, batches of 32, one epoch
    assert of("lora", augment=0, batch_size=64).price.steps == 1


def test_the_search_is_equal_and_the_best_on_validation_is_chosen():
    for name in ("full", "linear_probing"):
        r = run(Config(strategy=name, shots=4, epochs=2, lrs=(0.003, 0.009, 0.027), l2s=(0.1, 0.01, 0.001)))
        assert len(r.tried) == 3 and r.valid == max(r.tried.values()) == r.tried[r.chosen]


def test_the_test_labels_choose_nothing(monkeypatch):
    "With other test labels everything but the test accuracy is the same."
    c = Config(strategy="bitfit", **(QUICK | dict(lrs=(0.003, 0.009))))
    honest, real = run(c), experiments.load_split

    def shifted(*args, **kwargs):
        s = real(*args, **kwargs)
        return Split(s.train, s.valid, Images(s.test.x, (s.test.y + 1) % 10), s.classes)

    monkeypatch.setattr(experiments, "load_split", shifted)
    other = run(c)
    assert replace(other, scores=honest.scores) == honest and other.accuracy != honest.accuracy


def test_a_loss_that_runs_away_is_a_candidate_that_failed(monkeypatch):
    real = experiments.run_phases

    def stormy(model, dl, phases, **options):
        if phases[0].lr > 0.005:
            raise FloatingPointError("loss is nan")
        return real(model, dl, phases, **options)

    monkeypatch.setattr(experiments, "run_phases", stormy)
    r = run(Config(strategy="bitfit", **(QUICK | dict(lrs=(0.003, 0.009)))))
    assert r.tried["lr=0.009"] == 0 and r.chosen == "lr=0.003"
    with pytest.raises(ValueError, match="lower lr"):
        run(Config(strategy="bitfit", **(QUICK | dict(lrs=0.01))))


def test_a_candidate_whose_last_step_ran_away_costs_no_other(monkeypatch):
    "The loss was finite before the last step; the logits are not."
    real = experiments.run_phases

    def last(model, dl, phases, **options):
        yield from real(model, dl, phases, **options)
        if phases[0].lr > 0.005:
            with torch.no_grad():
                model.head.bias.fill_(float("nan"))

    monkeypatch.setattr(experiments, "run_phases", last)
    r = run(Config(strategy="bitfit", **(QUICK | dict(lrs=(0.003, 0.009)))))
    assert r.tried["lr=0.009"] == 0 and r.chosen == "lr=0.003"


def test_a_side_measurement_that_fails_costs_no_result(monkeypatch):
    "Neither the record, nor the forecast, nor the table."
    c = Config(strategy="bitfit", **QUICK)
    honest = run(c)

    def refuse(*args):
        raise ValueError("this layer was never counted")

    for name in ("step_flops", "kept_bytes", "_source_accuracy"):
        monkeypatch.setattr(experiments, name, refuse)
    with pytest.warns(UserWarning) as said:
        bare = run(c)
    assert sum("this layer was never counted" in str(w.message) for w in said) == 3
    price = replace(honest.price, flops=None, kept=None)
    assert bare == replace(honest, scores=honest.scores | dict(source=None), price=price)
    (row,) = table([bare], ["strategy"], ["accuracy", "flops", "kept"])
    assert (row["flops"], row["kept"], row["accuracy"]) == (None, None, honest.accuracy)
    assert render([row]).splitlines()[1].split("\t")[4:] == ["", "", "", ""]
    with pytest.warns(UserWarning, match="never counted"):
        assert forecast([c]).peak_bytes > 0
    with pytest.raises(ValueError, match="no value of flops"):
        compare([bare], [replace(bare, config=replace(c, strategy="full"))], value="flops")


def test_the_source_head_stays_where_it_is():
    s = experiments.prepare(Config(**QUICK))
    before = s.pre.head.weight.clone(), s.pre.head.weight.device
    experiments._source_accuracy(s, experiments.candidate(s))
    assert torch.equal(s.pre.head.weight, before[0]) and s.pre.head.weight.device == before[1]


class Count:
    "How often each set goes through extract and predict, and heads are solved, wherever these are called."

    def __init__(self, monkeypatch):
        self.rows, self.paths = Counter(), 0
        for module, name in ((experiments, "extract"), (cache, "extract"), (experiments, "predict")):
            monkeypatch.setattr(module, name, self.of(getattr(module, name), name))
        real = experiments.l2_path
        monkeypatch.setattr(experiments, "l2_path", lambda *args: self.solved() or real(*args))

    def of(self, real, name):
        return lambda net, dl, *args: self.rows.update({name: len(dl.ds)}) or real(net, dl, *args)

    def solved(self):
        self.paths += 1


def test_a_probe_extracts_every_set_once_whatever_it_tries(monkeypatch):
    "And nothing is predicted again; what LP-FT begins with is solved once for all its rates."
    s = experiments.prepare(Config(**QUICK))
    sets = len(s.few) + len(s.task.valid) + len(s.task.test) + experiments.SOURCE_TEST
    for l2s in (0.1, (10.0, 1.0, 0.1, 0.01)):
        with monkeypatch.context() as m:
            seen = Count(m)
            r = run(Config(**(QUICK | dict(l2s=l2s))))
        assert seen.rows == dict(extract=sets) and seen.paths == 1 and len(r.tried) == len(r.config.l2s)
    with monkeypatch.context() as m:
        seen = Count(m)
        run(Config(strategy="lp_ft", **(QUICK | dict(lrs=(0.001, 0.003, 0.009), l2s=(0.1, 0.01)))))
    assert seen.rows["extract"] == len(s.few) and seen.paths == 1


def test_the_certificate_of_a_record_is_that_of_its_head(monkeypatch):
    "Solved once: what the stream gave, and not another solution."
    gaps, real = [], experiments.l2_path
    monkeypatch.setattr(experiments, "l2_path", lambda *a: [gaps.append(p) or p for p in real(*a)])
    r = run(Config(**(QUICK | dict(l2s=(1.0, 0.1, 0.01)))))
    assert [f"l2={p.l2:g}" for p in gaps] == list(r.tried)
    assert r.gap == next(p.gap for p in gaps if f"l2={p.l2:g}" == r.chosen)


def test_a_sweep_extracts_once_for_each_network_task_and_seed(tmp_path, monkeypatch):
    configs = grid(strategy=["linear_probing", "lp_ft"], seed=[0, 1], **QUICK) + grid(
        seed=[0, 1], **(QUICK | dict(l2s=1.0))
    )
    s = experiments.prepare(configs[0])
    with monkeypatch.context() as m:
        seen = Count(m)
        alone = sweep(configs, tmp_path / "a")
    once = len(s.task.valid) + len(s.task.test) + experiments.SOURCE_TEST
    assert seen.rows["extract"] == 2 * len(s.few) + once
    assert alone == [run(c) for c in configs]  # what is shared changes nothing
    with monkeypatch.context() as m:
        seen = Count(m)
        for out in ("b", "c"):
            assert sweep(configs, tmp_path / out, tmp_path / "keep") == alone
    assert seen.rows["extract"] == 2 * len(s.few) + once  # the second sweep finds all of it in the folder


def test_what_cannot_be_known_again_is_not_shared_and_only_a_folder_of_ones_own_refuses_it(tmp_path, monkeypatch):
    pre = load_pretrained("pocket")
    drawing = replace(pre, transform=lambda x: pre.transform(x) + 0 * torch.rand(1))
    monkeypatch.setattr(experiments, "load_pretrained", lambda name: drawing)
    (r,) = sweep([Config(**QUICK)], tmp_path / "a")
    assert r == run(Config(**QUICK))
    with pytest.raises(ValueError, match="the transform is random"):
        run(Config(**QUICK), tmp_path / "keep")


def test_with_a_folder_a_run_ends_in_the_same_record_and_takes_no_step_twice(tmp_path, monkeypatch):
    c = Config(strategy="lp_ft", **QUICK)
    want = run(c)
    assert run(c, tmp_path) == want
    monkeypatch.setattr(experiments, "run_phases", lambda *a, **kw: pytest.fail("trained without checkpoints"))
    real, seen = experiments.resumable, []
    monkeypatch.setattr(
        experiments,
        "resumable",
        lambda model, dl, phases, folder, every: seen.append(folder) or real(model, dl, phases, folder, every),
    )
    with monkeypatch.context() as m:
        m.setattr("sft_nb.strategies.steps", lambda *a, **kw: pytest.fail("a step was taken again"))
        assert run(c, tmp_path) == want
    run(replace(c, l2s=0.5), tmp_path), run(replace(c, lrs=(0.003, 0.009)), tmp_path)
    assert len(set(seen)) == 3 and seen.count(seen[0]) == 2  # the same rate of another search is the same training
    with pytest.raises(ValueError, match="every is a number of steps"):
        run(c, tmp_path, every=0)


@pytest.mark.parametrize("name", ["lp_ft", "lora"])
def test_a_run_that_broke_off_goes_on_from_its_folder_to_the_same_record(name, tmp_path, monkeypatch):
    "In the second candidate, between two checkpoints: the first is not trained again, nor the steps before."
    c = Config(strategy=name, **(QUICK | dict(epochs=4, lrs=(0.003, 0.009))))
    want, real, seen = run(c), experiments.resumable, []

    def counted(*args, stop=14):
        for s in real(*args):
            seen.append(s)
            if len(seen) == stop:
                raise KeyboardInterrupt
            yield s

    monkeypatch.setattr(experiments, "resumable", counted)
    with pytest.raises(KeyboardInterrupt):
        run(c, tmp_path, every=2)
    taken, steps = [], experiments.run.__globals__["run_phases"].__globals__["steps"]
    monkeypatch.setattr("sft_nb.strategies.steps", lambda *a, **kw: (taken.append(s) or s for s in steps(*a, **kw)))
    monkeypatch.setattr(experiments, "resumable", real)
    assert run(c, tmp_path, every=2) == want
    assert 0 < len(taken) <= 8 - 2  # of the second, two at least were kept


@pytest.mark.gpu
def test_on_a_gpu():
    r = run(Config(strategy="full", device="cuda", **QUICK))
    assert r.price.peak_bytes > 0 and r.price.trained == 308_826


# ---- sweeps


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_a_sweep_ends_in_the_same_records(tmp_path):
    configs = grid(strategy=["linear_probing", "bn_only"], seed=range(4), **(QUICK | dict(shots=2)))
    whole = sweep(configs, tmp_path / "whole")
    path, draw, kills = tmp_path / "killed", random.Random(0), 0
    for goal in (0, 1, 1, 3, 5, 6):  # killed somewhere after so many lines
        child = os.fork()
        if child == 0:
            sweep(configs, path)
            os._exit(0)
        while goal and (not path.exists() or path.read_bytes().count(b"\n") < goal):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert kills >= 3 and len(read_records(path)) >= 6
    seen = path.read_bytes()
    assert sweep(configs, path) == whole
    assert path.read_bytes().startswith(seen)  # nothing that was written was touched


def test_what_the_file_holds_is_not_run_again(tmp_path, monkeypatch):
    configs, path = grid(seed=[0, 1], **QUICK), tmp_path / "a"
    first = sweep(configs, path)
    monkeypatch.setattr(sweeps, "run", lambda *args: pytest.fail("run again"))
    assert sweep([*reversed(configs), *configs], path) == first[::-1]
    assert sweep([], path) == [] and len(path.read_bytes().splitlines()) == 2


def test_a_half_written_record_is_reported_kept_and_run_again(tmp_path):
    configs, path = grid(seed=[0, 1], **QUICK), tmp_path / "a"
    first = sweep(configs, path)
    cut = path.read_bytes()[:-40]
    path.write_bytes(cut)
    with pytest.warns(UserWarning, match=r"a, line 2 is no row"):
        assert sweep(configs, path) == first
    assert path.read_bytes().startswith(cut + b"\n")


def test_records_of_another_kind_are_named(tmp_path):
    r = asdict(record())
    append_line(tmp_path / "a", r | dict(acuracy=1))
    with pytest.warns(UserWarning, match="acuracy mean nothing to this version"):
        assert read_records(tmp_path / "a") == [record()]
    append_line(tmp_path / "b", r | dict(config=r["config"] | dict(momentum=0.9)))
    with pytest.raises(ValueError, match="unknown field 'momentum'"):
        read_records(tmp_path / "b")
    append_line(tmp_path / "c", dict(benchmark="head"))
    with pytest.raises(ValueError, match="c holds no record of an experiment .it has no config.: name another file"):
        read_records(tmp_path / "c")
    append_line(tmp_path / "c", r)
    with pytest.warns(UserWarning, match="c: 1 lines are no records and were left out"):
        assert read_records(tmp_path / "c") == [record()]
    (tmp_path / "d").write_text("Some text\nof several lines")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one sentence, and none beside it
        with pytest.raises(ValueError, match="d holds no record of an experiment"):
            sweep(grid(), tmp_path / "d")
    assert (tmp_path / "d").read_text() == "Some text\nof several lines"


WRONG = {
    "nan": '"scores": {"accuracy": NaN}', "too large": '"scores": {"accuracy": 1e400}', "text": '"scores": {"accuracy": "0.5"}',
    "no score": '"scores": {}', "scores that are none": '"scores": {"accuracy": null}', "no bool": '"n": true',
    "a list": '"price": {"steps": []}', "no price": '"price": 3', "part of a picture": '"n": 0.5', "huge": '"n": 1' + "0" * 400, "no dict": '"tried": 3',
    "a number for a name": '"machine": 3', "None": '"loss": null', "nan within": '"tried": {"lr=0.003": NaN}',
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_measurement_is_left_out_and_said(wrong, tmp_path):
    append_line(tmp_path / "a", asdict(record(0.25)))
    line = json.dumps(asdict(record(0.5, seed=1)))
    with open(tmp_path / "a", "a", encoding="utf-8") as f:
        f.write(line[:-1] + f", {WRONG[wrong]}}}\n")  # of a name that comes twice, JSON takes the last
    with pytest.warns(UserWarning):
        assert read_records(tmp_path / "a") == [record(0.25)]


def first_version(r, **more):
    "The line that the first version would have written of a record whose search was three times and a tenth."
    row, flat = asdict(r), r.row()
    del row["scores"], row["price"]
    config = {k: v for k, v in row["config"].items() if k not in ("lrs", "l2s")}
    config |= dict(budget=len(r.config.lrs), lr=r.config.lrs[0], l2=r.config.l2s[0])
    row |= {k: flat[k] for k in ("accuracy", "source", *(f.name for f in fields(Price)))}
    return row | dict(config=config) | more


def test_a_line_of_the_first_version_is_a_record_of_today(tmp_path):
    r = replace(record(0.25, strategy="lp_ft", lrs=(0.001, 0.003, 0.009), l2s=(0.5, 0.05, 0.005)), gap=1e-9, data="d")
    append_line(tmp_path / "a", first_version(r))
    append_line(tmp_path / "a", asdict(r))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_records(tmp_path / "a") == [r]  # they are the same experiment
    assert remaining([r.config], tmp_path / "a") == [r.config]  # a folder's; by name there is another
    append_line(tmp_path / "b", first_version(replace(r, data="")))
    assert remaining([r.config], tmp_path / "b") == []
    for wrong in (dict(accuracy=None), dict(accuracy="0.5"), dict(steps=0.5), dict(tried=3), dict(seconds="long")):
        append_line(tmp_path / "c", first_version(r) | wrong)
    line = first_version(r)
    for config in (dict(budget="two"), dict(budget=0), dict(lr="fast"), dict(l2=None)):
        append_line(tmp_path / "c", line | dict(config=line["config"] | config))
    del line["accuracy"]
    append_line(tmp_path / "c", line)
    with pytest.raises(ValueError, match="holds no record of an experiment"):
        read_records(tmp_path / "c")


def test_the_committed_records_lose_nothing_by_being_read(tmp_path):
    "Every number of every old line is in the record; written as today they are read as the same."
    path = ROOT / "results" / "first_edition.jsonl"
    lines, found = read_lines(path), read_records(path)
    assert len(lines) == len(found) == 438
    for line, r in zip(lines, found, strict=True):
        config = line.pop("config")
        assert {k: r.value(k) for k in line} == line
        budget, lr, l2 = (config.pop(k) for k in ("budget", "lr", "l2"))
        assert {k: getattr(r.config, k) for k in config} == config
        axis, values = ("l2", r.config.l2s) if r.config.strategy == "linear_probing" else ("lr", r.config.lrs)
        assert list(r.tried) == [f"{axis}={v:g}" for v in values] and len(values) == budget
        assert (r.config.lrs[0], r.config.l2s[0]) == (lr, l2)
    for r in found[:40]:
        append_line(tmp_path / "today", asdict(r))
    assert read_records(tmp_path / "today") == found[:40]


def test_tables_and_comparisons_of_the_committed_records_are_those_of_the_code_that_wrote_them():
    "Digests of what the version before lrs, prices and scores gave for them."
    found = read_records(ROOT / "results" / "first_edition.jsonl")
    values = ["accuracy", "source", "valid", "loss", "gap", "n", *(f.name for f in fields(Price))]
    whole = render(table(found, ["pretrained", "task", "shots", "strategy"], values), "json")
    assert digest_of(whole) == "ea17ffc663251e9f"
    pocket = [r for r in found if r.config.pretrained == "pocket"]
    text = render(table(pocket))
    assert digest_of(text) == "afdeaa97c825a137"
    assert text.splitlines()[1] == "near\t10\tlinear_probing\t3\t0.906667\t0.000721688"
    names, told = sorted({r.config.strategy for r in pocket}), []
    for a, b in combinations(names, 2):
        for value in ("accuracy", "loss", "seconds"):
            for shots in (10, 50):
                pair = ([r for r in pocket if (r.config.strategy, r.config.shots) == (s, shots)] for s in (a, b))
                told.append([a, b, value, shots, *list(vars(compare(*pair, value=value)).values())[:9]])
    assert len(told) == 330 and digest_of(json.dumps(told)) == "a68122de403dae76"


def digest_of(text):
    return sha256(text.encode()).hexdigest()[:16]


def test_other_scores_and_missing_prices_are_records_too(tmp_path):
    "A later version writes a field more, a score more, a part less: the file stays readable, and tables take them."
    old = record(0.25)
    new = replace(record(seed=1), scores=dict(perplexity=12.0), price=Price(seconds=2.0), gap=None)
    lines = [asdict(old), asdict(new)]
    del lines[1]["gap"], lines[1]["machine"], lines[1]["price"]["trained"]
    for line in lines:
        append_line(tmp_path / "a", line)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_records(tmp_path / "a") == [old, new]
    (row,) = table([old, new], ["task"], ["accuracy", "perplexity", "trained"])
    assert (row["accuracy"], row["perplexity"], row["trained"], row["accuracy sd"]) == (0.25, 12.0, 1, None)
    with pytest.raises(ValueError, match="unknown result 'perplexity'"):
        table([old], ["task"], ["perplexity"])
    header, first, second = render([old.row(), new.row()]).splitlines()
    assert len({line.count("\t") for line in (header, first, second)}) == 1 and header.endswith("perplexity")
    with pytest.raises(ValueError, match="no value of accuracy"):
        compare([old], [replace(new, config=replace(old.config, strategy="full"))])
    append_line(tmp_path / "b", asdict(old) | dict(price=asdict(old.price) | dict(watts=3), mood="good"))
    with pytest.warns(UserWarning, match="mood, watts mean nothing to this version"):
        assert read_records(tmp_path / "b") == [old]


def test_a_comparison_says_that_a_search_was_not_equal():
    more = replace(record(strategy="full"), tried={"lr=0.003": 0.5, "lr=0.009": 0.4})
    with pytest.warns(UserWarning, match=r"1 of 1 pairs the search was not equal \(2 candidates against 1\)"):
        compare([more], [record()])


def test_a_line_of_another_version_or_machine_is_a_record(tmp_path):
    "Names that mean nothing here, numbers out of today's range, no digest: none of it makes the file unreadable."
    line = asdict(record(0.5))
    line["config"] |= dict(strategy="of_tomorrow", pretrained="resnet9000", task="/not/here", shots=10**6, device="tpu")
    del line["data"], line["config"]["augment"]  # a field that came later
    append_line(tmp_path / "a", line)
    append_line(tmp_path / "a", asdict(record(0.25)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        far, near = read_records(tmp_path / "a")
    c = far.config
    assert (c.strategy, c.task, c.shots, c.augment, far.data) == ("of_tomorrow", "/not/here", 10**6, 2, "")
    assert near == record(0.25) and hash(c) != hash(near.config)
    assert [row["task"] for row in table([near, far], ["task"])] == ["digits_wild", "/not/here"]  # known names first
    assert compare([far], [replace(far, scores=dict(accuracy=0.25))]).difference == 0.25
    with pytest.raises(ValueError, match="unknown pretrained"):  # to run it is another matter
        replace(c, task="digits")


def pictures(root, n, seed=0, classes=("a", "b")):
    "A folder of noise, n pictures in each class; the first ones are the same for every n."
    for label in classes:
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            x = np.random.default_rng([seed, i, ord(label)]).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(x).save(root / label / f"{i}.png")
    return root


FOLDER = QUICK | dict(shots=2)


def test_a_folder_is_read_in_the_size_that_the_network_was_made_for(tmp_path, monkeypatch):
    root, real, sizes = pictures(tmp_path / "pics", 6), experiments.load_split, []
    size = lambda *a, **kw: inspect.signature(real).bind(*a, **kw).arguments["size"]
    monkeypatch.setattr(experiments, "load_split", lambda *a, **kw: sizes.append(size(*a, **kw)) or real(*a, **kw))
    s = experiments.prepare(Config(task=root, **FOLDER))
    assert sizes == [32] and s.task.train.x.shape[2:] == (32, 32)
    theirs = real(root, size=32)
    assert torch.equal(s.task.test.x, theirs.test.x)
    pre = load_pretrained("pocket")
    other = replace(pre, transform=torch.nn.Sequential(torchvision.transforms.v2.Resize(48), pre.transform))
    monkeypatch.setattr(experiments, "load_pretrained", lambda name: other)
    experiments.prepare(Config(task=root, **FOLDER))
    assert sizes[1] == other.size


def test_a_folder_is_known_by_what_it_holds(tmp_path, monkeypatch):
    "What a sweep runs again, and what it does not: seen in the file."
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.jsonl"

    def after(task, **more):
        before = len(read_lines(path))
        (r,) = sweep([Config(task=task, **(FOLDER | more))], path)
        return r, len(read_lines(path)) - before

    pictures(Path("pics"), 6)
    first, ran = after("pics")
    assert ran == 1 and len(first.data) == 64
    for same in ("./pics/", tmp_path / "pics", Path("pics")):
        assert after(same) == (first, 0)
    assert after("pics", seed=1)[1] == 1
    pictures(Path("pics"), 10)  # it has grown
    grown, ran = after("pics")
    assert ran == 1 and grown.n > first.n and grown.data != first.data
    pictures(tmp_path / "other" / "pics", 6, seed=5)  # another of the same relative name
    monkeypatch.chdir(tmp_path / "other")
    other, ran = after("pics")
    assert ran == 1 and other.data not in (first.data, grown.data)
    monkeypatch.chdir(tmp_path)
    Path("pics").rename("renamed")
    assert after("renamed") == (grown, 0)  # the same pictures under another name
    assert len(sweep([Config(task="renamed", **FOLDER), Config(task=Path("renamed/"), **FOLDER)], path)) == 1
    shutil.rmtree("renamed")
    records = read_records(path)  # without the folders
    assert len(records) == 4 and {r.config.task for r in records} == {"pics"}
    titles = [row["task"] for row in table(records, ["task"])]
    assert titles == sorted(f"pics ({d[:6]})" for d in {first.data, grown.data, other.data})


def test_a_moved_folder_is_one_target_in_tables_and_pairs():
    moved = [replace(record(v, task="digits", seed=i), data="d" * 64) for i, v in enumerate((0.1, 0.3))]
    move = lambda r, to: replace(r, config=records._filled(Config, asdict(r.config) | dict(task=to)))
    moved = [move(moved[0], "pics"), move(moved[1], "pics-2024")]
    (row,) = table(moved, ["task"])
    assert (row["task"], row["n"], row["accuracy"]) == ("pics-2024", 2, pytest.approx(0.2))
    others = [
        replace(r, config=records._filled(Config, asdict(r.config) | dict(strategy="full", task="old"))) for r in moved
    ]
    assert compare(moved, others).unit == "seed" and compare(moved, others).n == 2
    changed = [replace(r, data="e" * 64) for r in others]
    with pytest.raises(ValueError, match="holds other files now"):
        compare(moved, changed)


def test_a_file_that_cannot_be_written_is_found_out_before_the_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    ran = []
    for module in (experiments, sweeps):
        monkeypatch.setattr(module, "run", lambda *args: ran.append(args))
    for out in (tmp_path / "file" / "x.jsonl", tmp_path):
        with pytest.raises(OSError):
            sweep(grid(), out)
        for words in (["run"], ["sweep"]):
            assert main([*words, "--out", str(out)]) == 2
            assert capsys.readouterr().err.count("\n") == 1
    assert ran == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_record_that_no_file_takes_is_printed_all_the_same(capsys):
    assert main(["run", "--shots", "2", "--l2s", "0.1", "--out", "/dev/full", "--format", "json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["n"] == 800 and "free some space" in said.err


def test_of_equal_configs_the_last_record_counts(tmp_path):
    for value in (0.1, 0.9):
        append_line(tmp_path / "a", asdict(record(value)))
    assert [r.accuracy for r in read_records(tmp_path / "a")] == [0.9]


def test_a_forecast_adds_up():
    c = Config(strategy="full", shots=10, epochs=20)
    one = forecast([c])
    assert one.result == 1 and one.seconds > 0
    assert one.peak_bytes >= 16 * 308_826  # theta, gradients, two moments
    assert forecast([]).seconds == 0
    ten = forecast([replace(c, seed=i) for i in range(10)])
    assert ten.seconds > one.seconds


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=3, max_size=3), st.sampled_from(["linear_probing", "bitfit"]))
def test_whatever_the_clock_says_a_forecast_is_not_negative_and_no_step_takes_no_time(clock, name):
    "Three trainings whose times are noise."
    took, steps = iter(clock), iter((0, 0, 0) if name == "linear_probing" else (1, 1, 5))
    with pytest.MonkeyPatch.context() as m:
        fit = lambda s, axis, value: replace(
            experiments.candidate(s, axis, value), seconds=next(took), steps=next(steps)
        )
        m.setattr(sweeps, "trained", fit)
        m.setattr(sweeps, "step_price", lambda s, fit: Price(trained=1))
        axis, reading, start, step, look, held = sweeps._pace(Config(strategy=name, **QUICK))
    assert axis == ("l2" if name == "linear_probing" else "lr")
    assert min(reading, start, step, look) >= 0 and held > 0
    assert step == 0 if name == "linear_probing" else step == max(0, clock[2] - clock[1]) / 4
    assert start == clock[1] if name == "linear_probing" else start <= clock[1]


def test_a_forecast_reads_every_task_once(monkeypatch):
    real, read = experiments.load_split, []
    for module in (experiments, sweeps):
        monkeypatch.setattr(module, "load_split", lambda *a, **kw: read.append(a) or real(*a, **kw))
    forecast(grid(seed=range(5), **QUICK))
    assert len(read) == 2  # its numbers, and the one that is measured


# ---- tables and comparisons


def record(accuracy=0.5, source=0.9, **config):
    return Record(
        Config(**config), dict(accuracy=accuracy, source=source), 800, 0.5, "lr=0.003", {"lr=0.003": 0.5}, 1.0, None,
        Price(1, 1, 1, 1, 1, 0.1, 0.2, 0), "here", "", "now",
    )  # fmt: skip


def test_table_is_numpys_mean_and_sd_in_the_order_of_config():
    g = np.random.default_rng(0)
    cs = grid(strategy=["lora", "full"], task=["hue", "near"], shots=[50, 10], seed=range(4))
    values = g.uniform(size=len(cs))
    records = [replace(record(v), config=c) for c, v in zip(cs, values, strict=True)]
    rows = table(records)
    assert [(r["task"], r["shots"], r["strategy"]) for r in rows] == [
        (t, k, s) for t in ("near", "hue") for k in (10, 50) for s in ("full", "lora")
    ]
    for row in rows:
        mine = [
            v
            for c, v in zip(cs, values, strict=True)
            if (c.task, c.shots, c.strategy) == (row["task"], row["shots"], row["strategy"])
        ]
        assert row["n"] == 4
        assert row["accuracy"] == pytest.approx(np.mean(mine)) and row["accuracy sd"] == pytest.approx(
            np.std(mine, ddof=1)
        )
    assert sum(r["n"] for r in table(records, by=["pretrained"])) == len(cs)


def test_table_with_one_record_none_and_wrong_names():
    (row,) = table([record(source=None)], by=["strategy"], values=["accuracy", "source"])
    assert (row["accuracy sd"], row["source"], row["source sd"]) == (None, None, None)
    assert table([]) == [] and render([]) == ""
    with pytest.raises(ValueError, match="did you mean 'strategy'"):
        table([], by=["strategies"])
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        table([], values=["acc"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 800), st.integers(0, 800)), min_size=2, max_size=12))
def test_comparison_is_scipys(pairs):
    a = [record(x / 800, seed=i, strategy="full") for i, (x, _) in enumerate(pairs)]
    b = [record(y / 800, seed=i) for i, (_, y) in enumerate(pairs)]
    c = compare(a, list(reversed(b)))  # pairs by config, not by place
    x, y = np.array(pairs).T / 800
    better, worse = int((x > y).sum()), int((x < y).sum())
    assert (c.n, c.unit, c.pairs, c.better, c.worse) == (len(pairs), "seed", len(pairs), better, worse)
    assert c.difference == pytest.approx(np.mean(x - y), abs=1e-12)
    if np.std(x - y) > 1e-9:
        theirs = stats.ttest_rel(x, y).confidence_interval(0.95)
        assert (c.here_low, c.here_high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    # for new test examples: those of both, as if independent
    v = np.mean(x * (1 - x) + y * (1 - y)) / 800
    half = np.hypot((c.here_high - c.here_low) / 2, stats.norm.ppf(0.975) * np.sqrt(v))
    assert (c.low, c.high) == pytest.approx((c.difference - half, c.difference + half), abs=1e-9)
    assert c.p == pytest.approx(stats.binomtest(better, better + worse).pvalue if better + worse else 1)
    back = compare(b, a)
    assert (back.difference, back.better, back.p) == pytest.approx((-c.difference, c.worse, c.p))


def test_comparison_wants_partners():
    a, b = [record(seed=i, strategy="full") for i in range(3)], [record(seed=i) for i in range(3)]
    for left, right in ((a, b[:2]), ([], []), (a, [replace(r, config=replace(r.config, task="near")) for r in b])):
        with pytest.raises(ValueError, match="partner"):
            compare(left, right)
    with pytest.raises(ValueError, match="pair two groups"):
        compare([*a, *b], a)
    one = compare(a[:1], b[:1])
    assert (one.low, one.high) == (-float("inf"), float("inf"))
    with pytest.raises(ValueError, match="did you mean 'strategy'"):
        compare(a, b, but=["strateg"])
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        compare(a, b, value="acc")


@pytest.mark.parametrize(
    "unit, axis",
    [("target", dict(task=["near", "hue", "digits"])), ("network", dict(pretrained=["pocket", "resnet18"]))],
)
def test_the_unit_is_the_coarsest_thing_of_which_there_are_several(unit, axis):
    "Against SciPy on the means of the units; shots and seeds within a unit are averaged."
    g = np.random.default_rng(0)
    a = [scored(c, g.uniform()) for c in grid(**axis, shots=[5, 50], seed=range(3), strategy="full")]
    b = [scored(replace(r.config, strategy="lora"), g.uniform()) for r in a]
    c = compare(a, b)
    (names,) = axis
    means = [
        np.mean([x.accuracy - y.accuracy for x, y in zip(a, b, strict=True) if getattr(x.config, names) == v])
        for v in axis[names]
    ]
    ends = stats.t.interval(0.95, len(means) - 1, np.mean(means), stats.sem(means))
    assert (c.unit, c.n, c.pairs) == (unit, len(means), len(a))
    assert (c.difference, c.here_low, c.here_high) == pytest.approx((np.mean(means), *ends))
    assert (c.low < c.here_low) == (unit == "network")  # every target has test examples of its own
    assert (c.better, c.worse) == (sum(m > 0 for m in means), sum(m < 0 for m in means))
    assert f"{len(means)} {unit}s, {len(a)} pairs" in str(c)
    one = [[r for r in rs if getattr(r.config, names) == axis[names][0]] for rs in (a, b)]
    assert compare(*one).unit == "seed" and compare(*one).n == 3 and "test examples" in str(compare(*one))


def scored(config, accuracy):
    return Record(config, dict(accuracy=accuracy), 800, 0.5, "", {}, 1.0)


def test_under_no_difference_five_targets_are_told_apart_as_rarely_as_promised():
    "Three seeds on a target agree closely; where each was a pair of its own, a third of such tests found a winner."
    g, wrong, wrong_pairs, trials = np.random.default_rng(1), 0, 0, 150
    for _ in range(trials):
        favour = 0.05 * g.normal(size=5)
        d = favour[:, None] + 0.005 * g.normal(size=(5, 3))
        cs = [(t, i, Config(task=name, seed=i)) for t, name in enumerate(TASKS) for i in range(3)]
        a = [scored(c, 0.5 + d[t, i]) for t, i, c in cs]
        b = [scored(replace(c, strategy="full"), 0.5) for _, _, c in cs]
        c = compare(a, b)
        wrong += not c.low <= 0 <= c.high
        wrong_pairs += stats.ttest_1samp(d.ravel(), 0).pvalue < 0.05
    assert wrong_pairs / trials > 0.2 and wrong / trials < 0.1


@pytest.mark.parametrize(("n", "seeds"), [(200, 10), (800, 10), (800, 5), (2000, 5)])
def test_an_interval_over_seeds_holds_the_difference_on_new_pictures(n, seeds):
    "Pictures of known difficulty: on the test set at hand the t interval is right; on new ones the wider one holds."
    rng, here, narrow, wide, trials = np.random.default_rng(seeds * n), 0, 0, 0, 150
    mu, own = np.array([0.4, 0.5]), 1.0
    new = np.subtract(*stats.norm.cdf(mu / np.sqrt(4 + own**2 + 1)))
    for _ in range(trials):
        score = 2 * rng.normal(size=n) + own * rng.normal(size=(2, n)) + mu[:, None]
        right = (score[:, None] + rng.normal(size=(2, seeds, n)) > 0).mean(2)
        a, b = (
            [replace(record(float(v), seed=i, strategy=s), n=n) for i, v in enumerate(r)]
            for s, r in zip(("full", "lora"), right, strict=True)
        )
        c = compare(a, b)
        truth = np.subtract(*stats.norm.cdf(score).mean(1))
        here += c.here_low <= truth <= c.here_high
        narrow += c.here_low <= new <= c.here_high
        wide += c.low <= new <= c.high
    assert 0.88 <= here / trials <= 0.99 and narrow / trials < 0.85 and wide / trials >= 0.94


def test_what_cannot_be_compared_is_refused():
    a, b = [record(seed=i, strategy="full") for i in range(3)], [record(seed=i) for i in range(3)]
    with pytest.raises(ValueError, match="test sets of 800 and 600 examples"):
        compare(a, [replace(r, n=600) for r in b])
    assert (
        compare(a, [replace(r, config=replace(r.config, task="near"), n=600) for r in b], but=["strategy", "task"]).n
        == 3
    )
    with pytest.raises(ValueError, match="no value of source"):
        compare(a, [replace(r, scores=dict(accuracy=0.5)) for r in b], value="source")
    for level in (0, 1, 95, float("nan")):
        with pytest.raises(ValueError, match="level must lie between 0 and 1"):
            compare(a, b, level=level)
    x = [replace(r, scores=dict(accuracy=0.1 * i)) for i, r in enumerate(a)]
    sure = compare(x, b, level=1 - 1e-16)
    assert -float("inf") < sure.low < compare(x, b).low
    same = [[replace(r, scores=dict(accuracy=v)) for r in group] for v, group in ((0.1 + 0.2, a), (0.3, b))]
    assert (compare(*same).better, compare(*same).worse, compare(*same).p) == (0, 0, 1.0)  # equal, but for rounding


def test_a_table_warns_where_its_rows_pool_different_experiments():
    balanced = [record(**c) for c in map(asdict, grid(strategy=["full", "lora"], task=["near", "hue"], seed=[0, 1]))]
    more = [*balanced, record(strategy="full", pretrained="pocket-hue", task="near")]
    seeds = [*balanced, record(strategy="full", task="near", seed=2)]  # one more draw of the same experiment
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table(balanced), table(balanced, ["strategy"]), table(seeds, ["strategy"]), table(more, ["seed"][:0])
        table([r for r in more if r.config.pretrained == "pocket"], ["strategy"])
    with pytest.warns(
        UserWarning, match=r"pool different experiments.*differ in pretrained \(pocket, pocket-hue\)"
    ) as said:
        table(more, ["strategy"])
    assert len(said) == 1 and "task" not in str(said[0].message)
    crossed = [record(strategy=s, task=t, shots=k) for s, t, k in (("full", "near", 5), ("full", "hue", 9), ("lora", "near", 9), ("lora", "hue", 5))]  # fmt: skip
    with pytest.warns(UserWarning, match="pool different"):  # the same values, in other combinations
        table(crossed, ["strategy"])


def test_render_is_what_the_readers_of_each_format_expect():
    rows = [dict(strategy="full", n=3, accuracy=1 / 3), dict(strategy="lora", n=1, accuracy=None)]
    assert [json.loads(line) for line in render(rows, "json").splitlines()] == rows
    assert render(rows) == "strategy\tn\taccuracy\nfull\t3\t0.333333\nlora\t1\t\n"
    assert render(rows, "markdown").splitlines()[1] == "| --- | --- | --- |"
    with pytest.raises(ValueError, match="did you mean 'markdown'"):
        render(rows, "markdwon")
    assert render(rows, "list") == (
        "strategy  full\nn         3\naccuracy  0.333333\n\nstrategy  lora\nn         1\naccuracy  \n"
    )
    assert all(render([], f) == "" for f in FORMATS)


@pytest.mark.parametrize("name", ["left|right\tpair", "two\nlines", "cr\r\nlf", "back\\|slash", "|", "\t"])
def test_no_name_breaks_a_table(name):
    rows = [dict(task=name, n=1), dict(task="plain", n=2)]
    for f, sep in (("tsv", "\t"), ("markdown", "|")):
        lines = render(rows, f).splitlines()
        assert len(lines) == len(rows) + 1 + (f == "markdown") and len({line.count(sep) for line in lines}) == 1
    assert len(render(rows, "list").splitlines()) == 5
    assert [json.loads(line)["task"] for line in render(rows, "json").splitlines()] == [name, "plain"]


# ---- the command line


def shell(*words, **kwargs):
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "sft_nb.cli", *map(str, words)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        **kwargs,
    )


def test_the_command_prints_what_the_functions_give_to_the_byte(tmp_path, capsys):
    path, words = tmp_path / "a.jsonl", ["--shots", "4", "--epochs", "1", "--l2s", "0.1", "--lrs", "0.003"]
    assert (
        main(
            [
                "sweep",
                "--strategy",
                "linear_probing",
                "bitfit",
                "--seed",
                "0",
                "1",
                *words,
                "--out",
                str(path),
                "--format",
                "json",
            ]
        )
        == 0
    )
    said = capsys.readouterr()
    configs = grid(strategy=["linear_probing", "bitfit"], seed=[0, 1], **QUICK)
    records = read_records(path)
    assert {r.config for r in records} == set(configs)
    assert said.out == render([r.row() for r in sweep(configs, path)], "json")
    assert "4 of 4 runs to do" in said.err
    for f in ("tsv", "json", "markdown"):
        text, words_ = (
            render(table(records, ["strategy"], ["accuracy", "loss"]), f),
            ["--by", "strategy", "--values", "accuracy", "loss", "--format", f],
        )
        assert main(["table", str(path), *words_]) == 0 and capsys.readouterr().out == text
    done = shell("table", path, *words_)  # as a process of its own
    assert (done.returncode, done.stdout, done.stderr) == (0, text, "")
    assert main(["run", *words, "--seed", "7", "--out", str(tmp_path / "b"), "--format", "tsv"]) == 0
    said = capsys.readouterr()
    assert said.out == render([read_records(tmp_path / "b")[0].row()], "tsv")
    stages = ["reading pocket and digits_wild", "candidate 1 of 1: l2=0.1", "measuring l2=0.1 on 800 test pictures"]
    assert [line for line in said.err.splitlines() if line in stages] == stages
    assert main(["sweep", "--seed", "0", *words, "--out", str(path), "--forecast"]) == 0
    assert capsys.readouterr().out == "0 of 1 runs to do\n"
    assert main(["sweep", "--seed", "0", "9", *words, "--out", str(path), "--forecast"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("1 of 2 runs to do\nabout ") and "-" not in text and "seconds" in text


def test_what_run_prints_in_a_terminal_is_for_eyes(monkeypatch, capsys):
    monkeypatch.setattr("sft_nb.cli.run", lambda *args: record(0.25))
    for tty, want in ((True, "list"), (False, "tsv")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda tty=tty: tty)
        assert main(["run"]) == 0 and capsys.readouterr().out == render([record(0.25).row()], want)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["run", "--format", "tsv"]) == 0 and capsys.readouterr().out == render([record(0.25).row()], "tsv")


def test_a_search_is_one_option_and_in_a_sweep_it_is_given_again_for_another(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr("sft_nb.cli.run", lambda c, *args: ran.append(c) or record(0.25))
    assert main(["run", "--lrs", "0.01", "0.1", "--l2s", "1"]) == 0
    assert ran == [Config(lrs=(0.01, 0.1), l2s=1.0)]
    monkeypatch.setattr(sweeps, "forecast", lambda configs: ran.extend(configs) or sweeps.Cost(1, 1.0, 1))
    ran.clear()
    words = ["sweep", "--out", str(tmp_path / "a"), "--forecast", "--seed", "0", "1"]
    assert main([*words, "--lrs", "0.01", "0.1", "--lrs", "0.5"]) == 0
    assert ran == grid(seed=[0, 1], lrs=[(0.01, 0.1), (0.5,)])
    ran.clear()
    assert main(words) == 0 and ran == grid(seed=[0, 1])
    assert main(["run", "--lrs", "0.01", "0.01"]) == 2
    assert "lrs must be numbers, one at least and none twice" in capsys.readouterr().err


def test_where_keeps_some_records_and_warnings_are_one_line(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    line = ["table", "results/first_edition.jsonl", "--by", "shots", "strategy"]
    assert main([*line, "--where", "pretrained=pocket"]) == 0
    book = [r for r in read_records("results/first_edition.jsonl") if r.config.pretrained == "pocket"]
    said = capsys.readouterr()
    assert (said.out, said.err) == (render(table(book, ["shots", "strategy"])), "")
    assert main(line) == 0
    said = capsys.readouterr()
    assert (
        said.err.startswith("sft_nb: the rows of this table pool different experiments") and said.err.count("\n") == 1
    )
    assert main([*line, "--where", "pretrained=pocket", "lrs=0.003,0.009", "shots=50"]) == 0
    assert capsys.readouterr().out == render(table([r for r in book if r.config.shots == 50], ["shots", "strategy"]))
    for where, sentence in (
        ("strateg=full", "did you mean 'strategy'"),
        ("shots=some", "no value of shots"),
        ("lrs=0.003,fast", "no value of lrs"),
        ("shots=51", "none of"),
    ):
        assert main([*line, "--where", where]) == 2
        said = capsys.readouterr()
        assert said.out == "" and sentence in said.err and said.err.count("\n") == 1


def test_help_and_a_wrong_file_need_no_torch():
    for words, status in ((["--help"], 0), (["table", "nowhere.jsonl"], 2), (["table", "--help"], 0)):
        code = f"import sys\nfrom sft_nb.cli import main\ntry: status = main({words})\nexcept SystemExit as e: status = e.code"
        done = subprocess.run(
            [sys.executable, "-c", code + "\nprint(status, sorted({'torch', 'numpy', 'scipy'} & {*sys.modules}))"],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == f"{status} []", done.stderr


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for f in fields(Config):
        assert f"--{f.name.replace('_', '-')}" in text and " ".join(f.metadata["help"].split()) in text


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["run", "--strategy", "lpft"], "did you mean 'lp_ft'"),
        (["run", "--shots", "0"], "shots must be a whole number"),
        (["run", "--shots", "many"], "invalid int value"),
        (["run", "--shot", "5"], "--shot"),
        (["runn"], "runn"),
        ([], "required"),
        (["sweep"], "--out"),
        (["table", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["table", "results/first_edition.jsonl", "--by", "strateg"], "did you mean 'strategy'"),
        (["run", "--format", "xml"], "unknown format"),
        (["sweep", "--out", "nowhere", "--format", "xml"], "unknown format"),
        (["table", "README.md"], "README.md holds no record of an experiment"),
        (["table", "setup.py", "results/first_edition.jsonl"], "setup.py holds no record"),
        (["table", os.devnull], "there is no file"),
        (["run", "--device", "tpu"], "did you mean 'cpu'"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(words, sentence, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and sentence in said.err and said.err.count("\n") == 1 and said.err.startswith("sft_nb: ")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_is_status_130_and_the_sweep_goes_on(tmp_path):
    path = tmp_path / "a"
    words = ["sweep", "--seed", *range(200), "--shots", "2", "--l2s", "0.1", "--out", path]
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    p = subprocess.Popen(
        [sys.executable, "-m", "sft_nb.cli", *map(str, words)],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while p.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        time.sleep(0.02)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate()
    assert p.returncode == 130 and "Traceback" not in err and "goes on" in err and out == ""
    assert 2 <= len(read_records(path)) < 200


def test_the_installed_command_is_this_one():
    assert "sft_nb.cli:main" in (ROOT / "setup.py").read_text(encoding="utf-8")


# ---- the committed records


def test_the_records_of_the_book_cover_what_the_chapter_claims():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = read_records(ROOT / "results" / "strategies.jsonl")
    pocket = [r for r in records if r.config.pretrained == "pocket"]
    strategies = {r.config.strategy for r in pocket}
    assert {
        "linear_probing",
        "full",
        "lp_ft",
        "last_block",
        "gradual_unfreezing",
        "l2_sp",
        "bn_only",
        "bitfit",
        "lora",
        "from_scratch",
        "frozen_bn",
    } <= strategies
    full = Counter((r.config.strategy, r.config.task, r.config.shots, r.config.seed) for r in pocket)
    seeds = sorted({r.config.seed for r in pocket})
    assert seeds[:3] == [0, 1, 2]
    assert full == Counter((s, t, k, i) for s in strategies for t in TASKS for k in (10, 50) for i in seeds)
    assert {r.config.pretrained for r in records} == {"pocket", "pocket-texture", "pocket-hue"}
    for r in records:
        assert len(r.config.lrs) == len(r.config.l2s) == len(r.tried) == 4  # an equal search for all
        assert r.price.steps >= 200 or r.config.strategy == "linear_probing"
        assert r.valid == max(r.tried.values()) == r.tried[r.chosen] and r.n == 800
        assert (r.gap is not None) == (r.config.strategy == "linear_probing") and (r.gap or 0) <= 1e-8
        assert r.revision and not r.revision.endswith("+"), "made by code that was not committed"


def test_a_record_of_the_book_comes_out_again():
    book = read_records(ROOT / "results" / "strategies.jsonl")
    wanted = ("linear_probing", "near", 10, 0)  # certified optima, which do not depend on the machine
    of = lambda c: (c.strategy, c.task, c.shots, c.seed)
    old = next(r for r in book if of(r.config) == wanted and r.config.pretrained == "pocket")
    new = run(old.config)
    assert (new.accuracy, new.tried, new.chosen) == (old.accuracy, old.tried, old.chosen)
    assert new.loss == pytest.approx(old.loss, abs=1e-4)


def test_the_network_of_a_record_is_had_again_and_refused_where_its_data_are_others():
    record = run(Config(strategy="lora", lrs=(0.003, 0.01), epochs=1))
    s, fit = retrained(record)
    assert accuracy(*fit.predict(s, s.task.test)) == record.accuracy and fit.name == record.chosen
    with pytest.raises(ValueError, match="digits_wild is not what it was"):
        retrained(replace(record, data="another"))
    with pytest.raises(ValueError, match="its settings hold lr=0.003, lr=0.01"):
        retrained(replace(record, chosen="lr=0.5"))
