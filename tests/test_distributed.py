"Many processes by torchrun, on the loopback: the oracle is one process that knows nothing of the others."

import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from sft_nb.cli import _check_places, main
from sft_nb.data import Loader, few_shot, jitter, load_split
from sft_nb.evaluation import predict
from sft_nb.experiments import run
from sft_nb.features import extract
from sft_nb.models import TransferModel, adapt, load_pretrained
from sft_nb.probing import choose, cross_validate, out_of_fold, ridge_head, solve_head
from sft_nb.processes import my_rows
from sft_nb.records import Config
from sft_nb.strategies import Lora, Phase, run_phases

pytestmark = pytest.mark.xdist_group("processes")  # one worker of the suite runs all that starts several processes
ENV = os.environ | dict(
    PYTHONPATH=os.pathsep.join([str(ROOT / "tests" / "offline"), str(ROOT)]),
    OMP_NUM_THREADS="1",
    PYTHONWARNINGS="ignore",
)
WITH_TESTS = os.pathsep.join([ENV["PYTHONPATH"], str(ROOT / "tests")])  # for scripts that import this file
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
SGD = (Phase(("*",), 2, 1e-3, opt="sgd", anchor=0.01, l2=0.01),)  # everything learns, BatchNorm too
SOME = (Phase(("backbone.layer4.*", "head.*"), 1, 1e-2, opt="sgd"),)  # most of the network is frozen
PLANS = {"some": SOME, "all64": SGD}
STOP = (  # early stopping ends the first after the fifth epoch; the second draws
    Phase(("*",), 8, 0.03, opt="sgd"),
    Phase(("*.lora_[AB]", "head.*"), 1, 0.03, opt="sgd", start=Lora(2)),
)
ALL = (  # all that has a state: statistics, Adam, a schedule, an anchor, LoRA's draws after dropout's
    Phase(("*",), 2, 3e-3, anchor=0.01, l2=0.01, schedule="one_cycle"),
    Phase(("*.lora_[AB]", "head.*"), 1, 3e-3, start=Lora(2)),
)
SCRIPT = """
import shutil
import sys
from itertools import islice
from pathlib import Path
import torch
from safetensors.torch import save_file
from test_distributed import ALL, PLANS, STOP, kin, model, noisy, precise, stopping, training
from sft_nb.evaluation import predict
from sft_nb.features import extract
from sft_nb.probing import choose, cross_validate, out_of_fold, ridge_head, solve_head
from sft_nb.processes import gather, group, total
from sft_nb.resume import resumable
from sft_nb.strategies import run_phases
torch.set_num_threads(1)
with group() as (rank, world):
    net, dl = model(), training()
    plain = training(shuffle=False, augment=None)
    feats = extract(net.backbone, plain)
    head, odd = solve_head(feats, 10, 0.1), solve_head(feats, 12, 0.1)
    few = training(shuffle=False, augment=None, n=40)
    small = solve_head(extract(net.backbone, few), 10, 0.1)
    logits, y = predict(net, training(shuffle=False, augment=None, n=33))
    out = dict(x=gather(feats.x), y=gather(feats.y), W=head.W, b=head.b, gap=torch.tensor([head.gap, head.loss], dtype=torch.float64),
               oddb=odd.b, small=small.W, logits=logits, labels=y)
    out |= dict(mixed=gather(extract(net.backbone, training(n=100)).x), listed=gather(extract(net.backbone, list(plain)).x))
    out |= dict(ridge=ridge_head(feats, 10, [0.1])[0].W, folds=cross_validate(feats, 10, [0.1], 3))
    out["unseen"] = gather(out_of_fold(feats, 10, [0.1, 1.0], 3, groups=kin(feats)))
    out["chosen"] = torch.tensor(choose([odd, head, solve_head(feats, 10, 10.0)], feats).l2)
    for name, phases in PLANS.items():
        net, dl = precise(name)
        out[f"{name} losses"] = torch.tensor([s.loss for s in run_phases(net, dl, phases)])
        out |= {f"{name} {k}": v for k, v in net.state_dict().items()}

    def keep(name, net, steps):
        out[f"{name} losses"] = torch.tensor([s.loss for s in steps], dtype=torch.float64)
        out.update({f"{name} {k}": v for k, v in net.state_dict().items()})

    net, dl, valid = stopping()
    keep("stop", net, run_phases(net, dl, STOP, valid, 1))
    net, dl, valid = noisy()
    keep("whole", net, run_phases(net, dl, ALL, valid, 2))
    for seed, k in enumerate((3, 8, 99)):  # twice the lights go out
        net, dl, valid = noisy(seed)
        folder = Path(f"{sys.argv[1]}.run")
        total(torch.zeros(1))  # nobody reads while rank 0 still writes
        if k == 99:  # a disk that shows another thing to each: the last process finds the newest file cut
            folder = Path(shutil.copytree(folder, f"{folder}.{rank}"))
            newest = max(folder.iterdir())
            out["newest"] = torch.tensor(int(newest.stem))
            if rank == world - 1:
                newest.write_bytes(newest.read_bytes()[:-9])
        run = resumable(net, dl, ALL, folder, 2, valid, 2)
        keep("resumed", net, islice(run, k))
        del run
    save_file({k: v.contiguous() for k, v in out.items()}, f"{sys.argv[1]}.{rank}")
"""
KILLED = """
import os
import signal
import sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from test_distributed import ALL, noisy
from sft_nb.cache import Cache, cached
from sft_nb.processes import group
from sft_nb.resume import resumable
torch.set_num_threads(1)
folder, first = Path(sys.argv[1]), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
with group() as (rank, world):
    net, dl, valid = noisy()
    cached(net.backbone, valid, cache=Cache(folder))
    losses = []
    for s in resumable(net, dl, ALL, folder / "run", 2, valid, 2):
        losses.append(s.loss)
        if first and rank == 1 and len(losses) == 6:
            (folder / "times").write_text(" ".join(str(f.stat().st_mtime_ns) for f in sorted(folder.glob("*.safetensors"))))
            os.kill(os.getpid(), signal.SIGKILL)
    out = {"losses": torch.tensor(losses, dtype=torch.float64)} | {k: v.contiguous() for k, v in net.state_dict().items()}
    save_file(out, f"{folder}.{rank}")
"""
ROWS = 163  # five batches of 32 and one of 3: unequal shares, and for four processes one without any of its rows


def training(shuffle=True, augment=jitter(2), n=ROWS):
    ds = few_shot(load_split("digits_wild").train, 17, 0)[:n]
    return Loader(ds, 32, load_pretrained("pocket").transform, shuffle=shuffle, augment=augment, seed=3)


def model():
    torch.manual_seed(0)
    return adapt(load_pretrained("pocket"), 10)


def precise(name):
    "Model and batches, in float64 where the name says so."
    net, dl = model(), training()
    if name.endswith("64"):
        net, to = net.double(), dl.transform
        dl.transform = lambda xb: to(xb).double()
    return net, dl


def mixed(n, batch_size, **kwargs):
    "Batches of all classes, and some to validate on."
    pre, task = load_pretrained("pocket"), load_split("digits_wild")
    few = few_shot(task.train, 17, 0)[torch.randperm(170, generator=torch.Generator().manual_seed(0))[:n]]
    loader = lambda ds, size, **kw: Loader(ds, size, pre.transform, **kw)
    return loader(few, batch_size, shuffle=True, seed=3, **kwargs), loader(task.valid[:50], 20)


def stopping():
    "In float64: the same epoch is the best one, whoever rounds."
    dl, valid = mixed(40, 32)
    to = dl.transform
    dl.transform = valid.transform = lambda xb: to(xb).double()
    return model().double(), dl, valid


def noisy(seed=0):
    "A network with dropout, pictures with shifts; a resumed one may begin with another head."
    net = model()
    net = TransferModel(nn.Sequential(net.backbone, nn.Dropout(0.2)), net.head)
    torch.manual_seed(seed)
    if seed:
        nn.init.normal_(net.head.weight)
    return net, *mixed(31, 11, augment=jitter(2))


def kin(feats):
    "Rows that belong together, whichever process has them."
    return (feats.x[:, 0] * 100).long()


@pytest.fixture(scope="module")
def one():
    "What one process gives, by the functions of the other chapters."
    net, plain = model(), training(shuffle=False, augment=None)
    feats = extract(net.backbone, plain)
    out = dict(feats=feats, head=solve_head(feats, 10, 0.1), few=solve_head(feats[:40], 10, 0.1))
    out["logits"], out["labels"] = predict(net, training(shuffle=False, augment=None, n=33))
    out |= dict(mixed=extract(net.backbone, training(n=100)).x, ridge=ridge_head(feats, 10, [0.1])[0].W)
    out |= dict(folds=cross_validate(feats, 10, [0.1], 3))
    out["unseen"] = out_of_fold(feats, 10, [0.1, 1.0], 3, groups=kin(feats))
    out["chosen"] = choose([out["head"], solve_head(feats, 10, 10.0)], feats).l2
    for name, phases in PLANS.items():
        net, dl = precise(name)
        losses = torch.tensor([s.loss for s in run_phases(net, dl, phases)])
        out[name] = losses, net.state_dict()
    net, dl, valid = stopping()
    out["stop"] = list(run_phases(net, dl, STOP, valid, 1)), net.state_dict()
    return out


def launch(n, *args, timeout=120, **env):
    return subprocess.run(
        [*LAUNCH, f"--nproc_per_node={n}", *map(str, args)],
        env=ENV | env,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    "What n processes give, one result for each rank."
    folder, known = tmp_path_factory.mktemp("many"), {}
    (folder / "script.py").write_text(SCRIPT)

    def get(n):
        if n not in known:
            done = launch(n, folder / "script.py", folder / f"of{n}", PYTHONPATH=WITH_TESTS)
            assert done.returncode == 0, done.stderr[-3000:]
            known[n] = [load_file(folder / f"of{n}.{rank}") for rank in range(n)]
        return known[n]

    return get


each_n = pytest.mark.parametrize("n", [3, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2, 4))])


@each_n
def test_features_and_predictions_are_those_of_one_process_bit_for_bit(one, many, n):
    for got in many(n):
        assert torch.equal(got["x"], one["feats"].x) and torch.equal(got["y"], one["feats"].y)
        assert torch.equal(got["labels"], one["labels"]), "an evaluation that drops, repeats or reorders"
        assert torch.allclose(got["logits"], one["logits"], atol=1e-5)


@each_n
def test_shuffled_and_shifted_batches_and_lists_of_them_are_shared_too(one, many, n):
    for got in many(n):
        assert torch.equal(got["mixed"], one["mixed"]), "the order and the shifts of one process"
        assert torch.equal(got["listed"], one["feats"].x)


@each_n
def test_what_one_does_with_heads_is_over_all_rows(one, many, n):
    for got in many(n):
        assert torch.equal(got["ridge"], one["ridge"]) and torch.equal(got["folds"], one["folds"])
        assert torch.allclose(got["unseen"], one["unseen"], atol=1e-3)
        assert float(got["chosen"]) == pytest.approx(one["chosen"])


@each_n
def test_the_head_is_certified_over_all_rows_and_the_same_everywhere(one, many, n):
    f = one["feats"]
    oracle = LogisticRegression(C=1 / (len(f) * 0.1), tol=1e-10, max_iter=5000).fit(f.x.double(), f.y)
    ranks = many(n)
    for got in ranks:
        assert torch.equal(got["W"], ranks[0]["W"]) and torch.equal(got["b"], ranks[0]["b"])
        assert torch.equal(got["oddb"], ranks[0]["oddb"]), "classes without examples"
        gap, loss = got["gap"].tolist()
        assert gap <= 1e-8 and abs(loss - one["head"].loss) <= 2e-8
        assert torch.allclose(got["W"], torch.tensor(oracle.coef_), atol=2e-4)
        assert torch.equal(got["small"], one["few"].W), "few rows are solved whole, so every bit agrees"


@each_n
@pytest.mark.parametrize("name, tol", [("some", 1e-6), ("all64", 1e-10)])
def test_k_steps_of_sgd_agree_with_one_process(one, many, n, name, tol):
    losses, theta = one[name]
    before = model().state_dict()
    for got in many(n):
        assert torch.allclose(got[f"{name} losses"], losses, atol=1e-5)
        for k, v in theta.items():
            mine = got[f"{name} {k}"]
            assert torch.allclose(mine.double(), v.double(), rtol=tol, atol=tol), k
            if name == "some" and k.startswith(("backbone.conv1", "backbone.layer1")):
                assert torch.equal(mine, before[k]), f"{k} is frozen and moved"
            assert torch.equal(mine, many(n)[0][f"{name} {k}"]), f"{k} differs between processes"
    assert not torch.equal(theta["head.weight"], before["head.weight"])


@each_n
def test_early_stopping_ends_all_processes_at_the_step_of_one_process(one, many, n):
    steps, theta = one["stop"]
    assert 4 < sum(s.phase == "*" for s in steps) < 16, "it must stop, and not at once"
    assert theta["head.weight"].dtype == torch.float64 and any("lora_A" in k for k in theta)
    for got in many(n):
        assert torch.allclose(got["stop losses"], torch.tensor([s.loss for s in steps]).double(), atol=1e-7)
        for k, v in theta.items():  # the best epoch's, not the last one's
            assert torch.allclose(got[f"stop {k}"].double(), v.double(), rtol=1e-10, atol=1e-10), k


@each_n
def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bytes_in_every_process(many, n):
    "Also where one process cannot read the newest checkpoint: then all go on from the one before it."
    ranks = many(n)
    names = [k.removeprefix("whole ") for k in ranks[0] if k.startswith("whole ")]
    assert len(names) > 60 and len(ranks[0]["whole losses"]) == 9
    for got in ranks:
        assert got["newest"] == 6
        for k in names:
            assert torch.equal(got[f"whole {k}"], ranks[0][f"whole {k}"]), f"{k} differs between processes"
            assert torch.equal(got[f"resumed {k}"], got[f"whole {k}"]), k


def test_a_worker_killed_between_two_steps_is_started_again_and_goes_on_to_the_same_bytes(many, tmp_path):
    folder, script = tmp_path / "cache", tmp_path / "script.py"
    script.write_text(KILLED)
    done = launch(3, "--max-restarts=1", script, folder, PYTHONPATH=WITH_TESTS)
    assert done.returncode == 0 and "exitcode: -9" in done.stderr, done.stderr[-3000:]
    for rank in range(3):
        want, got = many(3)[rank], load_file(f"{folder}.{rank}")
        assert len(got) > 60 and all(torch.equal(v, want[f"whole {k}"]) for k, v in got.items())
    times = " ".join(str(f.stat().st_mtime_ns) for f in sorted(folder.glob("*.safetensors")))
    assert times and times == (folder / "times").read_text(), "finished features were written again"


def test_shares_cover_every_row_once():
    for n in (0, 1, 5, 64, 163):
        for batch in (1, 32):
            for world in (1, 2, 3, 4, 7):
                rows = [i for r in range(world) for i in range(n)[my_rows(n, batch, r, world)]]
                assert rows == list(range(n))
                assert all(my_rows(n, batch, r, world).start in (n, *range(0, n + 1, batch)) for r in range(world))
    with pytest.raises(ValueError, match="ranks are 0 to 1"):
        my_rows(10, 1, 2, 2)


EQUAL = ("accuracy", "n", "valid", "chosen", "tried", "source", "trained", "stored", "steps", "flops", "kept", "data")
OPTIONS = ["-m", "sft_nb.cli", "run", "--shots", "20", "--format", "json"]


@pytest.mark.slow
def test_a_run_gives_the_record_of_one_process(tmp_path):
    want = run(Config(shots=20))
    done = launch(2, *OPTIONS, "--keep", tmp_path / "cache", "--out", tmp_path / "r.jsonl")
    assert done.returncode == 0, done.stderr[-3000:]
    got, written = json.loads(done.stdout), (tmp_path / "r.jsonl").read_text().splitlines()
    assert len(written) == 1, "more than one process wrote"
    alone = json.loads(json.dumps(want.row()))
    for name in EQUAL:
        assert got[name] == alone[name], name
    assert abs(got["loss"] - want.loss) < 1e-6 and got["gap"] <= 1e-8
    assert got["machine"].startswith("2 processes")


@pytest.mark.slow
def test_a_sweep_over_two_processes_writes_every_record_once_and_goes_on(tmp_path):
    out, keep = tmp_path / "r.jsonl", tmp_path / "kept"
    line = ["-m", "sft_nb.cli", "sweep", "--shots", "2", "--format", "json", "--out", out, "--keep", keep, "--seed"]
    first, second = launch(2, *line, "0", "1"), launch(2, *line, "0", "1", "2")
    assert first.returncode == second.returncode == 0, first.stderr[-2000:] + second.stderr[-2000:]
    assert "2 of 2 runs to do" in first.stderr and "1 of 3 runs to do" in second.stderr
    assert first.stderr.count("runs to do") == 1, "every process told the same"
    rows = [json.loads(row) for row in second.stdout.splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 2] and len(out.read_text().splitlines()) == 3
    for seed, row in enumerate(rows):
        alone = run(Config(shots=2, seed=seed))
        assert row["accuracy"] == alone.scores["accuracy"] and row["gap"] <= 1e-8


def children(pid):
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found.setdefault(int(words[1]), []).append(int(stat.parent.name))
    return found.get(pid, [])


TRAINING = [*OPTIONS, "--shots", "10", "--strategy", "lp_ft", "--epochs", "3", "--every", "2"]  # 12 steps a candidate


def last_states(cache):
    "The newest checkpoint of each candidate, as bytes: theta, optimiser, random streams, all losses."
    newest = {p.parent.name: p for p in sorted(cache.glob("runs/*/*.safetensors"))}
    return {name: (p.name, sha256(p.read_bytes()).hexdigest()) for name, p in newest.items()}


def reached(cache, step):
    "A finished shard of features (step 0), or a checkpoint so far in the search."
    if step == 0:
        return bool(list(cache.glob("*.safetensors")))
    done = {p.parent: int(p.stem) for p in sorted(cache.glob("runs/*/*.safetensors"))}
    return sum(done.values()) >= step


def killed(n, cache, steps, *options):
    "Run over n processes; at each of these steps of the search another worker dies. The record, and the kills."
    command = [*LAUNCH, f"--nproc_per_node={n}", f"--max-restarts={len(steps)}", *TRAINING, *options]
    command += ["--keep", str(cache)]
    p = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    dead, there = [], {}
    try:
        for i, step in enumerate(steps):
            end = time.time() + 90
            while not (reached(cache, step) and len(set(children(p.pid)) - set(dead)) == n):
                assert p.poll() is None and time.time() < end, f"step {step} was not seen"
                time.sleep(0.002)
            if i == 1:
                there = {f: f.stat().st_mtime_ns for f in cache.glob("*.safetensors") if len(f.stem) == 64}
            workers = sorted(set(children(p.pid)) - set(dead))
            os.kill(workers[i % n], signal.SIGKILL)
            dead += workers
        out, err = p.communicate(timeout=120)
    finally:
        p.kill()
    assert p.returncode == 0, err[-3000:]
    assert there and all(f.stat().st_mtime_ns == t for f, t in there.items()), "a finished shard was written again"
    return json.loads(out), err.count("exitcode: -9")


def same_run(n, folder, steps, *options):
    "How many workers died on the way to the bytes of the run that nobody stopped."
    done = launch(n, *TRAINING, *options, "--keep", folder / "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    want, (got, dead) = json.loads(done.stdout), killed(n, folder / "killed", steps, *options)
    for name in EQUAL:
        assert got[name] == want[name], name
    states = last_states(folder / "whole")
    assert states and last_states(folder / "killed") == states
    return dead


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("n", [2, 3])
def test_kills_all_along_the_way_change_nothing(tmp_path, n):
    assert same_run(n, tmp_path, [0, 2, 5, 7, 10, 13, 17, 21]) == 8


def test_a_finished_command_called_again_reads_its_steps(tmp_path, capsys, monkeypatch):
    command = [*TRAINING[2:], "--lrs", "0.003", "--keep", str(tmp_path), "--out", str(tmp_path / "r.jsonl")]
    assert main(command) == 0
    monkeypatch.setattr("sft_nb.strategies.steps", None)
    assert main(command) == 0
    first, again = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["steps"] == 12 and all(first[name] == again[name] for name in EQUAL)
    assert main([*command[:-6], "--every", "0", "--keep", str(tmp_path / "b")]) == 2
    assert "every is a number of steps" in capsys.readouterr().err


def test_a_folder_of_pictures_that_grew_is_another_run(tmp_path, capsys):
    x, y = (t[:200] for t in (load_split("digits").test.x, load_split("digits").test.y))
    for i, (picture, label) in enumerate(zip(x, y, strict=True)):
        if label < 3:
            place = tmp_path / "pics" / str(int(label)) / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(place)
    command = [
        "--task",
        str(tmp_path / "pics"),
        "--shots",
        "2",
        "--strategy",
        "lp_ft",
        "--epochs",
        "1",
        "--lrs",
        "0.003",
    ]
    command = ["run", *command, "--keep", str(tmp_path / "kept"), "--format", "json"]
    assert main(command) == main(command) == 0
    Image.new("RGB", (32, 32), "red").save(tmp_path / "pics" / "0" / "new.png")
    assert main(command) == 0
    first, again, grown = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["data"] == again["data"] != grown["data"] and first["accuracy"] == again["accuracy"]
    assert len(list((tmp_path / "kept" / "runs").iterdir())) == 2


def test_wrong_input_is_one_sentence():
    alone = subprocess.run(
        [sys.executable, *OPTIONS, "--strategy", "lp_tf"], env=ENV, capture_output=True, text=True, cwd=ROOT
    )
    assert alone.returncode == 2 and "lp_ft" in alone.stderr and len(alone.stderr.splitlines()) == 1


def said(done):
    "Our sentences in what a launch that failed has printed; nobody waited for those that were gone."
    assert done.returncode != 0 and done.stdout == ""
    return [line for line in done.stderr.splitlines() if line.startswith("sft_nb:")]


@pytest.mark.slow
def test_wrong_input_is_said_once_for_all_processes():
    done = launch(2, "-m", "sft_nb.cli", "run", "--shots", "0")
    assert said(done) == ["sft_nb: shots must be a whole number from 1 to 100000; got 0"]


BROKEN = """
import os
import sys
import sft_nb.cli as C
import sft_nb.experiments as X
import sft_nb.training as T
where, rank = sys.argv[1:3]
def broken(*args, **kwargs):
    raise ValueError("the reason")
if os.environ["RANK"] == rank or rank == "all":
    if where == "words":
        C._parser = broken
    if where == "data":  # before it has met the others
        X.load_split = broken
    if where == "work":  # when they wait for it
        X.l2_path = broken
    if where == "step":
        T._there = broken
more = ["--strategy", "bitfit", "--epochs", "1", "--lrs", "0.003"] if where == "step" else ["--l2s", "0.1"]
sys.exit(C.main(["run", "--task", "digits", "--shots", "2", *more]))
"""
OTHERS = "another process has ended, and the work of all ends with it: it has said why"


@pytest.mark.parametrize(
    ("where", "rank"),
    [("data", "1"), *(pytest.param(*p, marks=pytest.mark.slow) for p in (("words", "2"), ("data", "0"), ("data", "all"), ("work", "1"), ("work", "0"), ("step", "1")))],
)  # fmt: skip
def test_whoever_fails_says_why_and_who_it_is_and_nobody_hangs(tmp_path, where, rank):
    (tmp_path / "script.py").write_text(BROKEN)
    done = launch(3, tmp_path / "script.py", where, rank)
    reasons, others = [], []
    for line in said(done):
        (others if OTHERS in line else reasons).append(line)
    who = "" if where == "words" else f"process {rank if rank != 'all' else reasons[0][16]} of 3: "
    assert reasons == [f"sft_nb: {who}the reason"] and len(others) <= 1
    assert "[rank" not in done.stderr, "a traceback of one that only lost the others"


@pytest.mark.parametrize("option", ["--out", "--keep"])
def test_a_result_that_could_not_be_kept_is_told_before_the_work(tmp_path, capsys, monkeypatch, option):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("sft_nb.cli.run", None)
    assert main([*OPTIONS[2:], option, str(tmp_path / "file" / "x")]) == 2
    assert "could not be written (a file stands where a folder should be): name a file in a" in capsys.readouterr().err


def test_only_the_first_process_is_asked_for_a_place_for_the_record(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")  # on another machine
    _check_places(str(tmp_path), None)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(OSError, match="could not be written"):
        _check_places(str(tmp_path), None)


def test_a_tilde_in_its_options_is_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    command = ["run", "--task", "digits", "--shots", "2", "--l2s", "0.1", "--keep", "~/kept", "--out", "~/r/r.jsonl"]
    assert main(command) == 0
    assert (tmp_path / "r" / "r.jsonl").is_file() and list((tmp_path / "kept").glob("*.safetensors"))
    assert not (tmp_path / "~").exists()
