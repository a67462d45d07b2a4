"Experiments: one source for every setting, records that repeat, sweeps that survive a kill, sums that SciPy confirms."

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sft_nb import experiments
from sft_nb.cli import main
from sft_nb.data import TASKS, Images, Split
from sft_nb.experiments import (
    Config,
    Record,
    compare,
    forecast,
    grid,
    read_records,
    render,
    run,
    sweep,
    table,
)  # fmt: skip
from sft_nb.freezing import freeze, unfreeze
from sft_nb.models import adapt, load_pretrained
from sft_nb.peft import add_lora
from sft_nb.store import StoreError, append_line, read_lines
from sft_nb.strategies import STRATEGIES
from sft_nb.training import kept_bytes, step_flops

QUICK = dict(epochs=1, budget=1, shots=4)  # two steps


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
    expected = {("layer4.*", "fc.*"): (0.352, 0.371), ("layer1.*", "fc.*"): (4.227, 4.263), ("*",): (6.914, 6.951)}
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
    import warnings

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
    assert set(STRATEGIES) == set(next(f for f in fields(Config) if f.name == "strategy").metadata["known"])


@pytest.mark.parametrize("f", fields(Config), ids=lambda f: f.name)
def test_what_lies_outside_is_refused_by_name(f):
    about = f.metadata
    bad = (
        [None, "nonsense", [], ""]
        if "known" in about
        else [None, "1", True, about["high"] * 2 + 1, about["low"] - 1, float("nan"), float("inf")]
    )
    bad += [2.5] if type(f.default) is int else []
    for value in bad:
        with pytest.raises(ValueError, match=f.name):
            Config(**{f.name: value})
    for value in (about["low"], about["high"]) if "low" in about else about["known"]:
        assert getattr(Config(**{f.name: value}), f.name) == value


def test_nearest_names():
    with pytest.raises(ValueError, match="did you mean 'gradual_unfreezing'"):
        Config(strategy="gradual")
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        Config(pretrained="resnet_50")
    with pytest.raises(ValueError, match="unknown field 'epoch'; did you mean 'epochs'"):
        grid(epoch=[1])
    assert Config(task=str(ROOT)).task == str(ROOT)  # a folder of pictures


def test_grid_is_the_product():
    cs = grid(strategy=["full", "lora"], shots=(4, 5), seed=range(3), task="near")
    assert len(set(cs)) == 12 and [c.seed for c in cs[:4]] == [0, 1, 2, 0] and {c.task for c in cs} == {"near"}
    assert grid() == [Config()]


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
    assert Record(**(row | dict(config=Config(**row["config"])))) == once


def test_a_record_is_what_one_would_compute_by_hand():
    "The probe's record against scikit-learn on features that were computed plainly."
    from sklearn.linear_model import LogisticRegression

    from sft_nb.data import few_shot, load_split

    r = run(Config(task="near", seed=2, budget=3))
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
    assert r.gap <= 1e-8 and (r.trained, r.stored, r.steps) == (1290, 5160, 0)


def test_sizes_and_what_has_no_meaning_is_none():
    def of(name, **more):
        return run(Config(strategy=name, **(QUICK | more)))

    full, scratch, norm = of("full"), of("from_scratch"), of("bn_only")
    assert (full.trained, norm.trained) == (308_826, 1_440 + 1_290)
    assert full.gap is scratch.gap is scratch.source is None and 0 < full.source < 1
    assert norm.stored < full.stored and norm.kept <= full.kept and norm.flops < full.flops
    assert full.steps == 2  # forty pictures, batches of 32, one epoch
    assert of("lora", augment=0, batch_size=64).steps == 1


def test_the_search_is_equal_and_the_best_on_validation_is_chosen():
    for name in ("full", "linear_probing"):
        r = run(Config(strategy=name, shots=4, epochs=2, budget=3))
        assert len(r.tried) == 3 and r.valid == max(r.tried.values()) == r.tried[r.chosen]


def test_the_test_labels_choose_nothing(monkeypatch):
    "With other test labels everything but the test accuracy is the same."
    c = Config(strategy="bitfit", **(QUICK | dict(budget=2)))
    honest, real = run(c), experiments.load_split

    def shifted(name):
        s = real(name)
        return Split(s.train, s.valid, Images(s.test.x, (s.test.y + 1) % 10), s.classes)

    monkeypatch.setattr(experiments, "load_split", shifted)
    other = run(c)
    assert replace(other, accuracy=honest.accuracy) == honest and other.accuracy != honest.accuracy


def test_a_loss_that_runs_away_is_a_candidate_that_failed(monkeypatch):
    real = experiments.run_phases

    def stormy(model, dl, phases, **options):
        if phases[0].lr > 0.005:
            raise FloatingPointError("loss is nan")
        return real(model, dl, phases, **options)

    monkeypatch.setattr(experiments, "run_phases", stormy)
    r = run(Config(strategy="bitfit", **(QUICK | dict(budget=2))))
    assert r.tried["lr=0.009"] == 0 and r.chosen == "lr=0.003"
    with pytest.raises(ValueError, match="lower lr"):
        run(Config(strategy="bitfit", lr=0.01, **QUICK))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match="no GPU"):
        run(Config(device="cuda"))


@pytest.mark.gpu
def test_on_a_gpu():
    r = run(Config(strategy="full", device="cuda", **QUICK))
    assert r.peak_bytes > 0 and r.trained == 308_826


# ---- sweeps


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_a_sweep_ends_in_the_same_records(tmp_path):
    configs = grid(strategy=["linear_probing", "bn_only"], seed=range(4), shots=2, epochs=1, budget=1)
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
    monkeypatch.setattr(experiments, "run", lambda c: pytest.fail("run again"))
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
    with pytest.raises(ValueError, match="unknown field 'acuracy'; did you mean 'accuracy'"):
        read_records(tmp_path / "a")
    append_line(tmp_path / "b", r | dict(config=r["config"] | dict(momentum=0.9)))
    with pytest.raises(ValueError, match="unknown field 'momentum'"):
        read_records(tmp_path / "b")
    append_line(tmp_path / "c", dict(benchmark="head"))
    with pytest.raises(ValueError, match="c holds a line that is no record of this version"):
        read_records(tmp_path / "c")


def test_of_equal_configs_the_last_record_counts(tmp_path):
    for value in (0.1, 0.9):
        append_line(tmp_path / "a", asdict(replace(record(), accuracy=value)))
    assert [r.accuracy for r in read_records(tmp_path / "a")] == [0.9]


def test_a_forecast_adds_up():
    c = Config(strategy="full", shots=10, epochs=20)
    one = forecast([c])
    assert one.result == 1 and one.seconds > 0
    assert one.peak_bytes >= 16 * 308_826  # theta, gradients, two moments
    assert forecast([]).seconds == 0
    ten = forecast([replace(c, seed=i) for i in range(10)])
    assert ten.seconds > one.seconds


# ---- tables and comparisons


def record(accuracy=0.5, source=0.9, **config):
    return Record(
        Config(**config), accuracy, 800, 0.5, "lr=0.003", {"lr=0.003": 0.5}, 1.0, None, source, 1, 1, 1, 1, 1,
        0.1, 0.2, 0, "here", "", "now",
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
    assert (c.n, c.better, c.worse) == (len(pairs), better, worse)
    assert c.difference == pytest.approx(np.mean(x - y), abs=1e-12)
    if np.std(x - y) > 1e-9:
        theirs = stats.ttest_rel(x, y).confidence_interval(0.95)
        assert (c.low, c.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
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


def test_render_is_what_the_readers_of_each_format_expect():
    rows = [dict(strategy="full", n=3, accuracy=1 / 3), dict(strategy="lora", n=1, accuracy=None)]
    assert [json.loads(line) for line in render(rows, "json").splitlines()] == rows
    assert render(rows) == "strategy\tn\taccuracy\nfull\t3\t0.333333\nlora\t1\t\n"
    assert render(rows, "markdown").splitlines()[1] == "| --- | --- | --- |"
    with pytest.raises(ValueError, match="did you mean 'markdown'"):
        render(rows, "markdwon")


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
    path, words = tmp_path / "a.jsonl", ["--shots", "4", "--epochs", "1", "--budget", "1"]
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
    assert capsys.readouterr().out == render([read_records(tmp_path / "b")[0].row()], "tsv")
    assert main(["sweep", "--seed", "0", *words, "--out", str(path), "--forecast"]) == 0
    assert capsys.readouterr().out.startswith("0 of 1 runs to do")


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
        (["table", "results/strategies.jsonl", "--by", "strateg"], "did you mean 'strategy'"),
        (["run", "--format", "xml"], "unknown format"),
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
    words = ["sweep", "--seed", *range(200), "--shots", "2", "--budget", "1", "--out", path]
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
    import warnings

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
    } <= strategies
    full = Counter((r.config.strategy, r.config.task, r.config.shots, r.config.seed) for r in pocket)
    assert full == Counter((s, t, k, i) for s in strategies for t in TASKS for k in (10, 50) for i in (0, 1, 2))
    assert {r.config.pretrained for r in records} == {"pocket", "pocket-texture", "pocket-hue"}
    for r in records:
        assert r.config.epochs == Config().epochs and len(r.tried) == r.config.budget == Config().budget
        assert r.valid == max(r.tried.values()) == r.tried[r.chosen] and r.n == 800
        assert (r.gap is not None) == (r.config.strategy == "linear_probing") and (r.gap or 0) <= 1e-8
        assert r.revision and not r.revision.endswith("+"), "made by code that was not committed"


def test_a_record_of_the_book_comes_out_again():
    book = {r.config: r for r in read_records(ROOT / "results" / "strategies.jsonl")}
    old = book[Config(task="near", seed=0)]  # certified optima, which do not depend on the machine
    new = run(old.config)
    assert (new.accuracy, new.tried, new.chosen) == (old.accuracy, old.tried, old.chosen)
    assert new.loss == pytest.approx(old.loss, abs=1e-4)
