"Laws of every strategy: what is frozen stands still, what may learn is counted, step 0 is known, a seed is a run."

import copy
import math
import warnings
from dataclasses import FrozenInstanceError, replace
from fnmatch import fnmatchcase
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from sft_nb.blocks import blocks, select
from sft_nb.core import set_seed
from sft_nb.data import Loader, few_shot, load_split
from sft_nb.evaluation import accuracy, predict
from sft_nb.features import Features, extract
from sft_nb.freezing import moved, trainable
from sft_nb.models import Pretrained, TransferModel, adapt, load_pretrained, snapshot, take_apart
from sft_nb.objective import sq_dist
from sft_nb.peft import add_lora, merge_lora
from sft_nb.probing import solve_head
from sft_nb.rates import auto_rgn, lr_finder, suggest_lr
from sft_nb.sessions import block_table
from sft_nb.strategies import (
    BN_ONLY,
    FULL,
    L2_SP,
    LINEAR_PROBING,
    LORA,
    LP_FT,
    STRATEGIES,
    Lora,
    Phase,
    Redraw,
    Solve,
    Solved,
    gradual_unfreezing,
    run_phases,
    scaled,
    slanted,
    strategy,
    surgical,
)
from sft_nb.training import Step

each = pytest.mark.parametrize("name", STRATEGIES)
TASK, PRE = load_split("digits_wild"), load_pretrained("pocket")


def few(shots=1, batch_size=5, seed=0):
    return Loader(few_shot(TASK.train, shots, seed), batch_size, PRE.transform, shuffle=True, seed=seed)


def fresh(seed=0):
    set_seed(seed)
    return adapt(PRE, 10)


def drain(model, dl, phases, **kwargs):
    "Carry out phases to the end; the steps."
    return [s for s in run_phases(model, dl, phases, **kwargs) if isinstance(s, Step)]


@cache
def run(name, seed=0):
    "theta before and after the shortest run of a strategy in which everything takes two steps or more."
    model = fresh(seed)
    before, phases = snapshot(model), strategy(name, model)
    busy = sum(p.epochs > 0 for p in phases)
    drain(model, few(seed=seed), scaled(phases, epochs=busy) if busy else phases)
    return before, snapshot(model)


def named(name, model):
    "Which parameters a strategy may move, told by layer types and names, without the package."
    norms = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) for p in ("weight", "bias")}
    rules = {
        "linear_probing": lambda n: False,
        "lora": lambda n: False,
        "last_block": lambda n: n.startswith("backbone.layer4."),
        "bn_only": lambda n: n in norms,
        "frozen_bn": lambda n: n not in norms,
        "bitfit": lambda n: n.endswith(".bias"),
        **{f"surgical_layer{i}": lambda n, i=i: n.startswith(f"backbone.layer{i}.") for i in (1, 2, 3, 4)},
    }
    rule = rules.get(name, lambda n: True)
    return {n for n, _ in model.named_parameters() if n.startswith("head.") or rule(n)}


# every strategy


@each
def test_what_is_frozen_stays_to_the_bit_and_what_learns_moves(name):
    before, after = run(name)
    went, learns = set(moved(before, {n: after[n] for n in before})), named(name, fresh())
    buffers = {n for n, _ in fresh().named_buffers()}
    assert went - buffers == learns
    moving = {n.rpartition(".")[0] for n in learns}  # a BatchNorm that learns moves its statistics, no other does
    assert went & buffers == {n for n in buffers if n.rpartition(".")[0] in moving}
    assert {n.rpartition(".")[2] for n in after.keys() - before.keys()} <= {"lora_A", "lora_B", "lora_scale"}


@each
def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(name):
    first = run(name)[1]
    run.cache_clear()
    assert moved(first, run(name)[1]) == {}
    assert "head.weight" in moved(first, run(name, 1)[1])


@each
def test_the_mode_at_the_end_is_eval(name):
    model = fresh()
    drain(model, few(), [replace(p, epochs=0) for p in strategy(name, model)])
    assert not any(m.training for m in model.modules())


@each
def test_step_0_is_the_pre_trained_function(name):
    model, x = fresh(), PRE.transform(TASK.valid.x[:20])
    features, logits = model.features(x), model(x)
    drain(model, few(), [replace(p, epochs=0) for p in strategy(name, model)])
    if name == "from_scratch":
        return
    assert torch.equal(model.features(x), features)
    assert torch.equal(model(x), logits) == (name not in ("linear_probing", "lp_ft"))  # their head is solved


# A resnet18 for 10 classes; the numbers are sums of in * out * k * k and 2 * channels, written out
HEAD = 512 * 10 + 10
LAYER = {
    1: 4 * 64 * 64 * 9 + 4 * 2 * 64,
    4: 256 * 512 * 9 + 3 * 512 * 512 * 9 + 256 * 512 + 5 * 2 * 512,
}
COUNTS = dict(
    linear_probing=5_130, full=11_181_642, lp_ft=11_181_642, l2_sp=11_181_642, from_scratch=11_181_642,
    gradual_unfreezing=11_181_642, frozen_bn=11_181_642 - 9_600, bn_only=9_600 + HEAD, bitfit=4_800 + HEAD, last_block=LAYER[4] + HEAD,
    surgical_layer1=LAYER[1] + HEAD, surgical_layer4=LAYER[4] + HEAD, lora=143_692 + HEAD,
)  # fmt: skip


def resnet18():
    return TransferModel(*take_apart(torchvision.models.resnet18(num_classes=10), "fc"))


@pytest.mark.parametrize("name", COUNTS)
def test_the_count_on_resnet18_is_the_closed_form(name):
    model = resnet18()
    starts = [None if isinstance(p.start, Solve) else p.start for p in strategy(name, model)]
    drain(model, few(), [replace(p, epochs=0, start=s) for p, s in zip(strategy(name, model), starts, strict=True)])
    assert sum(p.numel() for p in trainable(model).values()) == COUNTS[name]


@each
def test_the_count_on_the_pocket_network_is_the_closed_form(name):
    model = fresh()
    size = {n: p.numel() for n, p in model.named_parameters()}
    want = sum(size[n] for n in named(name, model))
    if name == "lora":
        want += sum(4 * (m.weight[0].numel() + len(m.weight)) for m in model.modules() if isinstance(m, nn.Conv2d))
    drain(model, few(), [replace(p, epochs=0) for p in strategy(name, model)])
    assert sum(p.numel() for p in trainable(model).values()) == want


@each
def test_a_strategy_is_looked_up_without_touching_the_model_or_the_random_numbers(name):
    model = fresh().train()
    before, modes, state = snapshot(model), [m.training for m in model.modules()], torch.get_rng_state()
    strategy(name, model)
    assert moved(before, snapshot(model)) == {} and len(trainable(model)) == len(list(model.parameters()))
    assert modes == [m.training for m in model.modules()] and torch.equal(state, torch.get_rng_state())


# the probe first


def test_lp_ft_is_a_sum_and_starts_at_the_certified_optimum():
    assert LP_FT == LINEAR_PROBING + FULL
    model, dl = fresh(), few(3, 30)
    assert drain(model, dl, LINEAR_PROBING) == []
    logits, y = predict(model, dl)
    l2 = LINEAR_PROBING[0].l2
    loss = F.cross_entropy(logits.double(), y) + l2 / 2 * model.head.weight.detach().double().square().sum()
    probe = solve_head(extract(model.backbone, dl), 10, l2)
    assert abs(loss.item() - probe.loss) < 1e-6 and probe.gap <= 1e-8


def test_the_probe_is_scikit_learns_optimum():
    linear = pytest.importorskip("sklearn.linear_model")
    model, dl = fresh(), few(5, 50)
    drain(model, dl, LINEAR_PROBING)
    feats = extract(PRE.backbone, dl)
    oracle = linear.LogisticRegression(C=1 / (LINEAR_PROBING[0].l2 * len(feats)), tol=1e-10, max_iter=10_000)
    oracle.fit(feats.x.double().numpy(), feats.y.numpy())
    W = model.head.weight.detach().double()
    np.testing.assert_allclose(W - W.mean(0), oracle.coef_ - oracle.coef_.mean(0), atol=2e-4)


def test_augmentation_and_the_loaders_epoch_are_not_the_probes_business():
    dl = few()
    dl.augment = lambda xb, g: torch.zeros_like(xb)
    model, plain = fresh(), fresh()
    drain(model, dl, LINEAR_PROBING)
    drain(plain, few(), LINEAR_PROBING)
    assert dl.epoch == 0
    torch.testing.assert_close(model.head.weight, plain.head.weight, atol=1e-4, rtol=0)


def test_phases_compose():
    "One run of two phases is two runs of one phase, to the bit."
    phases = (*LINEAR_PROBING, replace(FULL[0], epochs=2), replace(BN_ONLY[0], epochs=1))
    whole, parts, dl = fresh(), fresh(), few()
    drain(whole, few(), phases)
    for phase in phases:
        drain(parts, dl, (phase,))
    assert moved(snapshot(whole), snapshot(parts)) == {}


def test_a_head_trained_by_steps_approaches_the_solved_one_from_above():
    "One objective, two solvers: F(adam) >= F(probe) - gap, and close to it after many steps."
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    data = Features(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())
    model = TransferModel(nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    with torch.no_grad():
        model.backbone.weight.copy_(torch.eye(4))
    probe = solve_head(data, 3, l2=0.05)
    s = drain(model, Loader(data, 40), (Phase(("head.*",), 800, 0.05, l2=0.05, schedule="cosine"),))
    assert min(t.loss for t in s) >= probe.loss - probe.gap - 1e-6
    assert s[-1].loss == pytest.approx(probe.loss, abs=1e-5)


def test_loras_scale_is_two():
    "alpha = 2 rank, as in chapter 10."
    scales = {t.item() for n, t in run("lora")[1].items() if n.endswith("lora_scale")}
    assert scales == {2.0}


# the stream, the starts and a loss of one's own


def test_a_solved_head_is_in_the_stream_with_its_certificate():
    model, dl = fresh(), few(3, 30)
    solved, *rest = run_phases(model, dl, scaled(LP_FT, epochs=1))
    assert isinstance(solved, Solved) and solved.phase == "probe" and all(isinstance(s, Step) for s in rest)
    assert solved.probe.gap <= 1e-8 and solved.probe.l2 == LINEAR_PROBING[0].l2
    oracle = solve_head(extract(PRE.backbone, replace(dl, shuffle=False)), 10, LINEAR_PROBING[0].l2)
    assert solved == Solved(oracle, "probe") != Solved(oracle, "another")
    assert solved != Solved(replace(oracle, gap=1.0), "probe") and solved != "probe"


def test_when_the_solved_head_comes_out_it_is_in_its_place_and_no_step_is_taken():
    model = fresh()
    before = snapshot(model)
    solved = next(iter(run_phases(model, few(), LP_FT)))
    assert set(moved(before, snapshot(model))) == {"head.weight", "head.bias"}
    torch.testing.assert_close(model.head.weight.double(), solved.probe.W, atol=1e-6, rtol=0)


def test_features_that_are_kept_are_found_again(tmp_path, monkeypatch):
    phase = replace(LINEAR_PROBING[0], start=Solve(keep=tmp_path))
    assert phase == LINEAR_PROBING[0] and repr(phase) == repr(LINEAR_PROBING[0])  # where they lie is no part of it
    (first,) = run_phases(fresh(), few(), (phase,))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    monkeypatch.setattr(TransferModel, "features", None)
    monkeypatch.setattr("sft_nb.cache._shards", None)
    (again,) = run_phases(fresh(1), few(), (phase,))
    assert again == first == next(run_phases(fresh(), few(), LINEAR_PROBING))


class Halve:
    "A start of somebody else's."

    def begin(self, model, dl, phase):
        with torch.no_grad():
            model.head.weight.mul_(0.5)


def test_any_value_with_begin_is_a_start():
    model = fresh()
    W = model.head.weight.detach().clone()
    assert drain(model, few(), (Phase(("head.*",), 0, 0.1, start=Halve()),)) == []
    assert torch.equal(model.head.weight, W / 2)


def test_a_loss_of_its_own_sees_the_model_the_batch_and_the_logits(points):
    model, seen = mlp(), []

    def loss(m, x, y, logits):
        seen.append((m is model, torch.equal(logits, m(x)), set(y.tolist()) <= {0, 1, 2}, logits.requires_grad))
        return F.cross_entropy(logits, y)

    phase = Phase(("*",), 2, 0.01, l2=0.3, anchor=0.7)
    own = drain(model, Loader(points, 10), (replace(phase, loss=loss),))
    plain = mlp()
    assert own == drain(plain, Loader(points, 10), (phase,))  # the penalties are added as to the risk
    assert moved(snapshot(plain), snapshot(model)) == {} and seen == [(True, True, True, True)] * 6


def test_distillation_follows_the_teachers_gradient(points):
    "Hinton et al. 2015: T (softmax(z / T) - softmax(t / T)) / N, told by the first step of SGD."
    teacher, model, T = mlp(), mlp(), 3.0
    with torch.no_grad():
        teacher.head.weight.add_(torch.randn(teacher.head.weight.shape, generator=torch.Generator().manual_seed(1)))
    before = model.head.bias.detach().clone()
    z, t = model(points.x).detach(), teacher(points.x).detach()

    def loss(m, x, y, logits):
        told = F.log_softmax(teacher(x).detach() / T, 1)
        return T**2 * F.kl_div(F.log_softmax(logits / T, 1), told, reduction="batchmean", log_target=True)

    drain(model, Loader(points, 30), (Phase(("head.*",), 1, 0.1, opt="sgd", loss=loss),))
    grad = (T * ((z / T).softmax(1) - (t / T).softmax(1))).mean(0)
    torch.testing.assert_close((before - model.head.bias.detach()) / (1.9 * 0.1), grad, atol=1e-9, rtol=1e-6)


def test_delta_holds_on_to_features(points):
    "Li et al. 2019: a penalty on what the backbone says of the batch; strong enough, it says what it said."

    def away(strength):
        model, before = mlp(), mlp()
        held = lambda m, x, y, z: (
            F.cross_entropy(z, y) + strength * (m.backbone(x) - before.backbone(x)).square().mean()
        )
        drain(model, Loader(points, 30), (Phase(("*",), 60, 0.02, loss=held),))
        return (model.backbone(points.x) - before.backbone(points.x)).norm().item()

    assert away(100.0) < 0.1 * away(0.0)


def test_labels_may_be_masked():
    "Tokens without a label, -100, give no gradient: what stands in their place does not matter."
    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 7, (6, 5), generator=g), torch.randint(0, 3, (6, 5), generator=g)
    y[:, 3:] = -100
    loss = lambda m, x, y, z: F.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=-100)
    heads = []
    for last in (x, torch.cat([x[:, :3], (x[:, 3:] + 1) % 7], 1)):
        set_seed(0)
        model = TransferModel(nn.Embedding(7, 4), nn.Linear(4, 3))
        data = TensorDataset(last, y)
        assert len(drain(model, DataLoader(data, 3), (Phase(("*",), 2, 0.1, loss=loss),))) == 4
        heads.append(model.head.weight.detach().clone())
    assert torch.equal(*heads)


def test_a_schedule_may_be_a_function(points):
    phase = Phase(("*",), 4, 0.1, schedule=lambda t, total: 1 - t / total)
    assert [s.lr for s in drain(mlp(), Loader(points, 10), (phase,))] == pytest.approx(
        [0.1 * (1 - t / 12) for t in range(12)]
    )
    named = drain(mlp(), Loader(points, 10), (replace(phase, schedule="slanted"),))
    assert named == drain(mlp(), Loader(points, 10), (replace(phase, schedule=slanted),))


def test_looking_through_the_training_set_between_two_steps_changes_nothing():
    "An epoch's batches are a function of the epoch: nobody's iteration over the same loader shifts them."
    one, two, dl = fresh(), fresh(), few(2)
    phases = (replace(FULL[0], epochs=2), replace(FULL[0], epochs=1))
    plain = drain(one, few(2), phases)
    looked = []
    for s in run_phases(two, dl, phases):
        looked.append(s)
        [predict(two, dl) for _ in range(2)]
    assert looked == plain and moved(snapshot(one), snapshot(two)) == {}


def test_a_validation_set_is_looked_at_in_the_same_way_each_time():
    valid = Loader(TASK.valid[:50], 20, PRE.transform, shuffle=True)
    drain(fresh(), few(), (Phase(("head.*",), 2, 0.1),), valid=valid)
    assert valid.epoch == 0


# from scratch


def test_from_scratch_keeps_nothing_of_theta_pre():
    model = fresh()
    drain(model, few(), [replace(STRATEGIES["from_scratch"][0], epochs=0)])
    before, after = fresh().state_dict(), model.state_dict()
    for n, t in after.items():
        if n.startswith("backbone.") and t.ndim == 4:
            assert abs(np.corrcoef(t.flatten(), before[n].flatten())[0, 1]) < 0.15, n
        if n.endswith("running_mean"):
            assert not t.any(), n
        if n.endswith("num_batches_tracked"):
            assert t == 0, n


def test_from_scratch_refuses_what_it_cannot_draw_anew():
    vit = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=10)
    model = TransferModel(*take_apart(vit, "heads.head"))
    with pytest.raises(ValueError, match="class_token cannot be drawn anew"):
        strategy("from_scratch", model)


# rates


def mlp(dtype=torch.float64):
    "Three blocks without BatchNorm: two of the backbone and the head."
    set_seed(0)
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh())
    return TransferModel(body, nn.Linear(6, 3)).to(dtype)


@pytest.fixture
def points():
    g = torch.Generator().manual_seed(3)
    return Features(torch.randn(30, 4, generator=g).double(), torch.randint(0, 3, (30,), generator=g))


def test_every_block_takes_a_step_of_its_own_rate(points):
    "The first Nesterov step of SGD is 1.9 lr times the gradient: displacement over gradient tells the rate."
    for backbone_lr, top in ((None, 0.01), (0.002, 0.002)):
        model = mlp()
        before = snapshot(model)
        loss = F.cross_entropy(model(points.x), points.y)
        grads = dict(zip(before, torch.autograd.grad(loss, [*model.parameters()]), strict=True))
        phase = Phase(("*",), 1, 0.01, backbone_lr, decay=2.6, opt="sgd")
        drain(model, Loader(points, 30), (phase,))
        far = moved(before, snapshot(model))
        rate = {n: far[n] / (1.9 * grads[n].norm().item()) for n in far}
        want = {"head": 0.01, "backbone.2": top / 2.6, "backbone.0": top / 2.6**2}
        for n, r in rate.items():
            assert r == pytest.approx(want[n.rpartition(".")[0]], rel=1e-6), n


def test_gradual_unfreezing_divides_by_howard_and_ruders_number():
    phases = strategy("gradual_unfreezing", fresh())
    assert {p.decay for p in phases} == {2.6}


def test_the_worked_numbers_of_the_slanted_triangle():
    got = [0.01 * slanted(t, 100) for t in (0, 5, 10, 55, 100)]
    assert got == pytest.approx([0.0003125, 0.00515625, 0.01, 0.00515625, 0.0003125], rel=1e-12)


@pytest.mark.parametrize("total", [1, 2, 5, 9, 10, 19, 99, 100, 1001])
def test_the_slanted_triangle_rises_once_falls_once_and_ends_low(total):
    f = [slanted(t, total) for t in range(total + 1)]
    top = f.index(max(f))
    assert top == max(1, total // 10) and all(1 / 32 <= v <= 1 for v in f) and f[top] == 1
    assert np.all(np.diff(f[: top + 1]) > 0) and np.all(np.diff(f[top:]) < 0)
    assert total == 1 or f[-1] == pytest.approx(1 / 32)


def test_the_schedules_reach_the_optimiser(points):
    def rates(kind):
        return [s.lr for s in drain(mlp(), Loader(points, 10), (Phase(("*",), 4, 0.1, schedule=kind),))]

    T = 12
    assert rates("constant") == [0.1] * T
    assert rates("slanted") == pytest.approx([0.1 * slanted(t, T) for t in range(T)])
    assert rates("cosine") == pytest.approx([0.05 * (1 + math.cos(math.pi * t / T)) for t in range(T)])
    one = rates("one_cycle")
    assert one[0] == pytest.approx(0.1 / 25) and one.index(max(one)) == 3 and one[-1] < 1e-5


# penalties


def test_the_yielded_loss_is_the_objective(points):
    model = mlp()
    pre, W, b = snapshot(model.backbone), model.head.weight.detach().clone(), model.head.bias.detach().clone()
    phase = Phase(("*",), 1, 0.05, opt="sgd", anchor=0.7, l2=0.3)
    dl = Loader(points, 30)
    first = drain(model, dl, (phase,))[0].loss
    risk = lambda z: F.cross_entropy(z, points.y).item()
    x = torch.tanh(torch.tanh(points.x @ pre["0.weight"].T + pre["0.bias"]) @ pre["2.weight"].T + pre["2.bias"])
    assert first == pytest.approx(risk(x @ W.T + b) + 0.15 * W.square().sum().item(), rel=1e-6)  # not yet away from pre
    after = snapshot(model)
    away = sum((after[f"backbone.{n}"] - t).square().sum().item() for n, t in pre.items())
    value = risk(model(points.x)) + 0.35 * away + 0.15 * after["head.weight"].square().sum().item()
    twice = drain(mlp(), dl, (replace(phase, epochs=2),))  # the same first step, and one more
    assert away > 0 and twice[1].loss == pytest.approx(value, rel=1e-6)
    again = drain(model, dl, (phase,))  # the anchor is where the backbone stands when a run begins
    assert again[0].loss == pytest.approx(value - 0.35 * away, rel=1e-6)


def test_l2_is_on_all_that_learns_where_this_phase_has_no_anchor(points):
    model = mlp()
    square = sum(p.square().sum().item() for n, p in model.named_parameters() if n != "head.bias")
    risk = F.cross_entropy(model(points.x), points.y).item()
    phase = Phase(("*",), 1, 0.05, l2=0.3)
    first = drain(model, Loader(points, 30), (phase, replace(phase, anchor=1.0)))[0].loss  # another phase has one
    assert first == pytest.approx(risk + 0.15 * square, rel=1e-6)


def objective(theta, model, pre, points, a, b):
    "F and its gradient at a flat theta, with SciPy's arithmetic in mind."
    torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), model.parameters())
    away = sum((p - pre[n]).square().sum() for n, p in model.backbone.named_parameters())
    loss = F.cross_entropy(model(points.x), points.y) + a / 2 * away + b / 2 * model.head.weight.square().sum()
    grads = torch.autograd.grad(loss, [*model.parameters()])
    return loss.item(), torch.cat([g.flatten() for g in grads]).numpy()


def l2_sp(points, a, b=0.05, epochs=1200):
    model = mlp()
    pre = snapshot(model.backbone)
    phase = replace(L2_SP[0], epochs=epochs, lr=0.02, anchor=a, l2=b, schedule="cosine")
    last = drain(model, Loader(points, 30), (phase,))[-1].loss
    return model, pre, last


def test_l2_sp_arrives_where_scipy_does(points):
    model, pre, last = l2_sp(points, 0.5)
    start = torch.nn.utils.parameters_to_vector(mlp().parameters()).detach().numpy()
    found = minimize(
        objective, start, (copy.deepcopy(model), pre, points, 0.5, 0.05), jac=True, options=dict(gtol=1e-9)
    )
    assert last == pytest.approx(found.fun, abs=1e-6)
    mine = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    # the head's bias has a direction that changes nothing: compare the rest
    np.testing.assert_allclose(mine[:-3], found.x[:-3], atol=1e-3)


def test_l2_sp_between_its_limits(points):
    "The anchor's distance falls as it grows; without it, full fine-tuning; held fast, the probe."
    runs = {a: l2_sp(points, a, epochs=600) for a in (0.0, 0.05, 0.5, 5.0, 1e5)}
    far = [math.sqrt(sum(d**2 for d in moved(pre, snapshot(m.backbone)).values())) for m, pre, _ in runs.values()]
    assert all(x > y for x, y in pairwise(far)) and far[-1] < 1e-2
    pre = mlp()
    with torch.no_grad():
        probe = solve_head(Features(pre.features(points.x), points.y), 3, 0.05)
    held, _, _ = runs[1e5]
    assert F.cross_entropy(held(points.x), points.y).item() + 0.025 * held.head.weight.square().sum().item() == (
        pytest.approx(probe.loss, abs=1e-3)
    )


def test_the_worked_quadratic_of_l2_sp():
    A, c, pre = torch.tensor([4.0, 1.0]).double(), torch.tensor([8.0, 3.0]).double(), torch.ones(2).double()
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = lambda: (A * theta * theta).sum() / 2 - c @ theta + 0.5 / 2 * sq_dist({"t": theta}, {"t": pre})
    opt = torch.optim.LBFGS(
        [theta], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=0
    )

    def closure():
        opt.zero_grad()
        value = loss()
        value.backward()
        return value

    opt.step(closure)
    assert theta.tolist() == pytest.approx([1.888889, 2.333333], abs=1e-6)


def test_decay_is_adamws_and_not_in_the_loss(points):
    "The first AdamW step is theta - lr wd theta - lr sign(gradient)."
    model = mlp()
    before = snapshot(model)
    grads = torch.autograd.grad(F.cross_entropy(model(points.x), points.y), [*model.parameters()])
    s = drain(model, Loader(points, 30), (Phase(("*",), 1, 0.01, opt="adamw", weight_decay=0.3),))
    assert s[0].loss == pytest.approx(F.cross_entropy(mlp()(points.x), points.y).item(), rel=1e-9)
    for (n, t), g in zip(before.items(), grads, strict=True):
        torch.testing.assert_close(model.state_dict()[n], t * (1 - 0.01 * 0.3) - 0.01 * g.sign(), atol=1e-5, rtol=0)


# gradual unfreezing and blocks


def test_each_stage_leaves_the_blocks_below_it_alone():
    model, seen = fresh(), []
    phases = gradual_unfreezing(model, epochs=6)
    before, learned = snapshot(model), set()
    prefixes = [["head."], ["layer4."], ["layer3."], ["layer2."], ["layer1."], ["conv1.", "bn1."]]
    groups = [[("" if p == "head." else "backbone.") + p for p in ps] for ps in prefixes]
    for s in run_phases(model, few(), phases):
        stage = int(s.phase.split()[1])
        open_now = tuple(p for g in groups[:stage] for p in g)
        went = moved(before, snapshot(model))
        assert all(n.startswith(open_now) for n in went), (s.phase, list(went)[-1])
        learned = {next(i for i, g in enumerate(groups) if n.startswith(tuple(g))) for n in went}
        assert learned == set(range(stage))
        seen.append(stage)
    assert seen == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


NETS = dict(
    resnet18="fc", vit_b_16="heads.head", swin_t="head", swin_v2_t="head", convnext_tiny="classifier.2",
    densenet121="classifier", efficientnet_b0="classifier.1", efficientnet_v2_s="classifier.1", regnet_y_400mf="fc",
    maxvit_t="classifier.5", mobilenet_v2="classifier.1", mobilenet_v3_large="classifier.3", mnasnet1_0="classifier.1",
    shufflenet_v2_x1_0="fc", vgg11="classifier.6", alexnet="classifier.6", googlenet="fc",
)  # fmt: skip


class TextEncoder(nn.Module):
    "Token ids in, one vector out, as a small BERT is made."

    def __init__(self):
        super().__init__()
        self.tokens, self.place = nn.Embedding(50, 32), nn.Parameter(torch.zeros(1, 16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, nn.LayerNorm(32), enable_nested_tensor=False)
        self.pooler = nn.Linear(32, 32, bias=False)

    def forward(self, ids):
        return self.pooler(self.encoder(self.tokens(ids) + self.place[:, : ids.shape[1]])[:, 0])


def of_family(name):
    "A network without its numbers, and a batch of its input."
    if name == "text":
        return TransferModel(TextEncoder(), nn.Linear(32, 3)), torch.randint(0, 50, (1, 7))
    with (
        warnings.catch_warnings(),
        torch.device("cpu" if name in ("maxvit_t", "googlenet", "regnet_y_400mf") else "meta"),
    ):
        warnings.simplefilter("ignore")  # googlenet's, on its slow drawing
        options = dict(aux_logits=False, init_weights=False) if name == "googlenet" else {}
        net = torchvision.models.get_model(name, weights=None, **options).eval()
        return TransferModel(*take_apart(net, NETS[name])).to("meta"), torch.zeros(1, 3, 224, 224, device="meta")


@pytest.mark.parametrize("net", [*NETS, "text"])
def test_blocks_are_a_partition_in_the_order_of_the_forward_pass(net):
    "Sizes by hand from the parameters; the order from hooks, where each block is first used."
    model, x = of_family(net)
    names = [n for n, _ in model.named_parameters()]
    found = {b: [n for n in names if any(fnmatchcase(n, p) for p in ps)] for b, ps in blocks(model).items()}
    assert sorted(n for group in found.values() for n in group) == sorted(names) and all(found.values())
    assert list(found)[-1] == "head" and all(n.startswith("head.") for n in found["head"])
    size = {b: sum(model.get_parameter(n).numel() for n in group) for b, group in found.items() if b != "head"}
    last = [*size.values()][-1] / sum(size.values())
    if net == "resnet18":
        assert list(found) == ["conv1", "layer1", "layer2", "layer3", "layer4", "head"] and 0.7 < last < 0.8
    else:
        assert 0.03 < last < 0.5
    assert len(gradual_unfreezing(model)) == min(20, len(found)) > 3
    order = []
    owner = {n: b for b, group in found.items() for n in group}
    for n, m in model.named_modules():
        if own := [f"{n}.{p}".lstrip(".") for p, _ in m.named_parameters(recurse=False)]:
            m.register_forward_pre_hook(lambda m, args, b=owner[own[-1]]: order.append(b))
    model(x)
    reached = list(dict.fromkeys(order))
    assert reached == [b for b in found if b in reached] and len(reached) >= len(found) - 1


def test_what_holds_no_matrix_or_little_at_the_end_joins_the_block_before():
    maxvit, text = (blocks(of_family(n)[0]) for n in ("maxvit_t", "text"))
    assert maxvit["blocks.3.layers.1"] == ("backbone.blocks.3.layers.1.*", "backbone.classifier.*")
    assert text["tokens"] == ("backbone.place", "backbone.tokens.*")
    assert text["encoder.layers.3"] == ("backbone.encoder.layers.3.*", "backbone.encoder.norm.*", "backbone.pooler.*")
    vit = blocks(of_family("vit_b_16")[0])
    assert vit["conv_proj"] == ("backbone.class_token", "backbone.conv_proj.*", "backbone.encoder.pos_embedding")
    assert vit["encoder.layers.encoder_layer_11"][-1] == "backbone.encoder.ln.*" and len(vit) == 14


def test_the_last_block_is_what_last_block_trains():
    model, _ = of_family("vit_b_16")
    learn = trainable(select(model, ("last", "head.*")))
    assert {n.split("encoder_layer_")[-1].split(".")[0] for n in learn if "layers" in n} == {"11"}
    assert 7e6 < sum(p.numel() for p in learn.values()) < 8e6


def test_of_more_blocks_than_epochs_the_lowest_come_at_once():
    phases = gradual_unfreezing(fresh(), epochs=3)
    assert [p.epochs for p in phases] == [1, 1, 1] and phases[1].train == ("head.*", "backbone.layer4.*")
    assert {*phases[2].train} == {p for ps in blocks(fresh()).values() for p in ps}


def test_a_network_of_single_layers_has_a_block_for_each():
    assert blocks(mlp()) == {"0": ("backbone.0.*",), "2": ("backbone.2.*",), "head": ("head.*",)}
    single = blocks(TransferModel(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert single == {"backbone": ("backbone.weight", "backbone.bias"), "head": ("head.*",)}
    assert blocks(TransferModel(nn.Flatten(), nn.Linear(2, 2))) == {"head": ("head.*",)}


# other families, other batches


def tiny(name):
    "A network of each family for 32 x 32 pictures, with a head of ten."
    set_seed(0)
    make = dict(
        vit=lambda: (VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=10), "heads.head"),
        swin=lambda: (SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=10), "head"),
        convnext=lambda: (
            ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 3)], num_classes=10),
            "classifier.2",
        ),
    )
    model = TransferModel(*take_apart(*make[name]())).eval()
    nn.init.normal_(
        model.head.weight, std=0.1
    )  # torchvision's ViT starts with a head of zeros, which sends nothing down
    return model


MISFITS = dict(
    bn_only="has no BatchNorm",
    frozen_bn="has no BatchNorm",
    from_scratch="cannot be drawn anew",
    surgical="unknown parameter pattern",
)


@pytest.mark.parametrize("family", ["vit", "swin", "convnext"])
@pytest.mark.parametrize("name", [n for n in STRATEGIES if n != "lp_ft"])
def test_every_strategy_runs_on_every_family_or_says_why_not(family, name):
    model = tiny(family)
    if sentence := MISFITS.get(name.split("_layer")[0]):
        with pytest.raises(ValueError, match=sentence) as e:
            strategy(name, model)
        assert "\n" not in str(e.value)
        return
    phases = strategy(name, model)
    learns, before = named_in(model, phases), snapshot(model)
    taken = drain(model, few(batch_size=10), scaled(phases, epochs=sum(p.epochs > 0 for p in phases) or None))
    assert len(taken) == sum(p.epochs > 0 for p in phases) and all(math.isfinite(s.loss) for s in taken)
    went = {n for n in moved(before, {n: t for n, t in snapshot(model).items() if n in before})}
    assert went <= learns and any(n.startswith("head.") for n in went)
    if name != "linear_probing":
        assert any(n.startswith("backbone.") for n in went) or name == "lora"


def named_in(model, phases):
    "The parameters that some phase selects, on a copy."
    trial, names = copy.deepcopy(model), set()
    for phase in phases:
        if isinstance(phase.start, Lora):
            return {"head.weight", "head.bias"}
        names |= {*trainable(select(trial, phase.train))}
    return names


def test_the_distance_of_a_block_counts_lora_wherever_it_is():
    "q, k and v included: as far as the merged network is."
    model = tiny("vit")
    pre = {n: p.detach().clone() for n, p in model.named_parameters()}
    add_lora(model, 2, 4)
    for n, p in model.named_parameters():
        if n.endswith("lora_B"):
            nn.init.normal_(p)
    far = {r["block"]: r["distance"] for r in block_table(model, pre)}
    merged = {r["block"]: r["distance"] for r in block_table(merge_lora(copy.deepcopy(model)), pre)}
    assert far.keys() == merged.keys() and all(far[b] == pytest.approx(merged[b], rel=1e-5) for b in far)
    assert all(far[b] > 1 for b in far if "encoder_layer" in b) and far["head"] == 0


def torch_loader(batch_size=4):
    ds = few_shot(TASK.train, 1, 0)
    return DataLoader(TensorDataset(PRE.transform(ds.x), ds.y), batch_size)


def test_a_torch_dataloader_gives_the_probe_of_a_loader():
    "The solved head sees the same pictures, so it is the same; so does LP-FT's first step."
    one, two = fresh(), fresh()
    ours = drain(one, Loader(few_shot(TASK.train, 1, 0), 4, PRE.transform), scaled(LP_FT, epochs=1))
    theirs = drain(two, torch_loader(), scaled(LP_FT, epochs=1))
    assert [s.loss for s in ours] == pytest.approx([s.loss for s in theirs], abs=1e-5)
    one, two = fresh(), fresh()
    drain(one, Loader(few_shot(TASK.train, 1, 0), 4, PRE.transform), LINEAR_PROBING)
    drain(two, torch_loader(), LINEAR_PROBING)
    assert torch.equal(one.head.weight, two.head.weight)
    assert len(drain(fresh(), list(torch_loader()), scaled(FULL, epochs=1), valid=torch_loader(5))) == 3
    assert len(lr_finder(fresh(), torch_loader(), n=5)[0]) == 5


def test_batches_that_nobody_can_count_are_refused():
    with pytest.raises(TypeError, match="batches that can be counted, and a generator cannot"):
        drain(fresh(), iter(x for x in torch_loader()), FULL)
    drain(fresh(), (b for b in torch_loader()), LINEAR_PROBING)  # a solved head counts nothing


def test_a_backbone_of_16_bits_is_fine_tuned():
    half = Pretrained(copy.deepcopy(PRE.backbone).bfloat16(), PRE.head, PRE.transform, 128, "pocket")
    set_seed(0)
    model = adapt(half, 10)
    losses = [s.loss for s in drain(model, few(5, 25), scaled(FULL, epochs=4))]
    assert model.head.weight.dtype == torch.bfloat16 and losses[-1] < losses[0]


# early stopping


def test_early_stopping_ends_at_the_best_theta():
    model, valid = fresh(), Loader(TASK.valid, 100, PRE.transform)
    seen = {}
    dl = few(2)
    now = lambda: accuracy(*predict(model, valid))
    best, start = now(), snapshot(model)
    phase = Phase(("*",), 6, 0.02)  # too fast: good epochs and bad ones
    for s in run_phases(model, dl, (phase,), valid):
        if s.i + 1 == len(dl):
            seen[s.epoch] = now(), snapshot(model)
    best_epoch = max(seen, key=lambda e: seen[e][0])
    assert len(seen) == 6 and now() == max(best, seen[best_epoch][0])
    states = [start, *(state for _, state in seen.values())]
    scores = [best, *(score for score, _ in seen.values())]
    assert moved(snapshot(model), states[scores.index(max(scores))]) == {}  # of equals the first


def test_a_phase_that_does_harm_is_undone(points):
    model = mlp()
    drain(model, Loader(points, 30), (Phase(("*",), 200, 0.02),))
    before, valid = snapshot(model), Loader(points, 30)
    wrong = Loader(Features(points.x, (points.y + 1) % 3), 30)
    s = drain(model, wrong, (Phase(("*",), 100, 0.02),), valid=valid)
    assert len(s) == 100 and s[-1].loss < s[0].loss / 2  # it learned the wrong labels
    assert moved(before, snapshot(model)) == {}


def test_patience_ends_a_phase_and_nothing_better_means_nothing_moved():
    model, valid = fresh(), Loader(TASK.valid, 100, PRE.transform)
    before = snapshot(model)
    s = drain(model, few(), (Phase(("head.*",), 9, 1e-9),), valid=valid, patience=2)
    assert [t.epoch for t in s] == [0, 0, 1, 1]
    assert moved(before, snapshot(model)) == {}


def test_without_a_validation_set_the_last_theta_stays():
    model = fresh()
    last = None
    for _ in run_phases(model, few(), (Phase(("*",), 2, 1e-2),)):
        last = snapshot(model)
    assert moved(last, snapshot(model)) == {}


# rates by measurement


def test_auto_rgn_agrees_with_finite_differences(points):
    model = mlp()
    got = auto_rgn(model, [(points.x[:15], points.y[:15]), (points.x[15:], points.y[15:])])
    want = dict.fromkeys(got, 0.0)
    for part in (slice(0, 15), slice(15, 30)):
        loss = lambda part=part: F.cross_entropy(model(points.x[part]), points.y[part]).item()
        for n, p in model.named_parameters():
            flat, square = p.data.view(-1), 0.0
            for i in range(len(flat)):
                was, values = flat[i].item(), []
                for step in (1e-5, -1e-5):
                    flat[i] = was + step
                    values.append(loss())
                flat[i] = was
                square += ((values[0] - values[1]) / 2e-5) ** 2
            want[n] += math.sqrt(square) / p.data.norm().item()
    largest = max(want.values())
    assert got == pytest.approx({n: v / largest for n, v in want.items()}, rel=1e-6)
    assert max(got.values()) == 1.0


def test_auto_rgn_scales_as_a_homogeneous_pair_must():
    "W1 -> c W1 and W2 -> W2 / c is the same function; r1 / r2 falls by c^4."
    set_seed(0)
    body = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU())
    model = TransferModel(body, nn.Linear(5, 3, bias=False)).double()
    batch = [(torch.randn(20, 4).double(), torch.randint(0, 3, (20,)))]
    ratio = lambda r: r["backbone.0.weight"] / r["head.weight"]
    before = ratio(auto_rgn(model, batch))
    with torch.no_grad():
        model.backbone[0].weight.mul_(3)
        model.head.weight.div_(3)
    assert ratio(auto_rgn(model, batch)) == pytest.approx(before / 3**4, rel=1e-9)


def test_auto_rgn_leaves_batchnorm_out_by_type_and_the_model_alone():
    model = fresh().train()
    nn.init.zeros_(model.head.bias)
    before, modes = snapshot(model), [m.training for m in model.modules()]
    got = auto_rgn(model, few())
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(got) == {n for n, _ in model.named_parameters() if n.rpartition(".")[0] not in norms}
    assert got["head.bias"] == 0 and max(got.values()) == 1 and all(math.isfinite(v) for v in got.values())
    assert moved(before, snapshot(model)) == {} and modes == [m.training for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())


def test_auto_rgn_looks_at_what_learns_only():
    model = fresh()
    drain(model, few(), [replace(p, epochs=0) for p in surgical("layer1")])
    assert {n.split(".")[1] for n in auto_rgn(model, few()) if n.startswith("backbone.")} == {"layer1"}


@pytest.mark.parametrize("phase", [FULL[0], LORA[0], BN_ONLY[0], LINEAR_PROBING[0]], ids=lambda p: p.name)
def test_lr_finder_leaves_everything_as_it_is(phase):
    model, dl = fresh().train(), few()
    before, modes, state = snapshot(model), [m.training for m in model.modules()], torch.get_rng_state()
    lrs, losses = lr_finder(model, dl, phase, low=1e-5, high=1e-2, n=6)
    assert moved(before, snapshot(model)) == {} and modes == [m.training for m in model.modules()]
    assert len(trainable(model)) == len(list(model.parameters())) and dl.epoch == 0
    assert torch.equal(state, torch.get_rng_state())
    assert lrs == pytest.approx(np.geomspace(1e-5, 1e-2, 6)) and len(losses) == 6


def test_lr_finder_stops_where_the_loss_runs_away(points):
    lrs, losses = lr_finder(mlp(), Loader(points, 10), Phase(("*",), 1, 1.0, opt="sgd"), low=1e-3, high=1e9, n=60)
    assert len(lrs) < 60 and max(losses[:-1]) <= 4 * losses[0]


def test_the_suggestion_is_a_tenth_of_the_smooth_minimum():
    lrs = np.geomspace(1e-6, 1, 61).tolist()
    losses = [(math.log10(r) + 2) ** 2 for r in lrs]
    assert suggest_lr(lrs, losses) == pytest.approx(1e-3)
    losses[5] = -1.0  # one lucky batch does not decide
    assert suggest_lr(lrs, losses) == pytest.approx(1e-3)


# scaled


@pytest.mark.parametrize("epochs", [6, 7, 11, 20, 61])
def test_scaled_keeps_ratios_and_sums(epochs):
    phases = LINEAR_PROBING + gradual_unfreezing(fresh())
    out = scaled(phases, lr=0.5, epochs=epochs, l2=0.02)
    assert sum(p.epochs for p in out) == epochs and all(p.epochs >= 1 for p in out[1:])
    assert out[0] == replace(LINEAR_PROBING[0], l2=0.02) and max(p.lr for p in out[1:]) == pytest.approx(0.5)
    two = (Phase(("*",), 4, 0.1, backbone_lr=0.01), Phase(("*",), 2, 0.05, anchor=1.0))
    out = scaled(two, lr=0.2, anchor=3.0)
    assert [(p.lr, p.backbone_lr, p.anchor) for p in out] == [(0.2, 0.02, 0.0), (0.1, None, 3.0)]
    assert scaled(phases) == phases


# errors

ONE = Phase(("*",), 1, 0.1)
BAD = [
    (dict(train="head.*"), "a tuple of patterns"),
    (dict(train=()), "a tuple of patterns"),
    (dict(epochs=-1), "epochs is a whole number"),
    (dict(epochs=1.5), "epochs is a whole number"),
    (dict(lr=0.0), "rates must be > 0"),
    (dict(lr=math.nan), "rates must be > 0"),
    (dict(backbone_lr=-1.0), "rates must be > 0"),
    (dict(decay=0.5), "decay >= 1"),
    (dict(anchor=-1.0), "anchor is a strength"),
    (dict(l2=math.nan), "l2 is a strength"),
    (dict(opt="adamm"), "unknown optimiser 'adamm'; did you mean 'adam"),
    (dict(schedule="one-cycle"), "unknown schedule 'one-cycle'; did you mean 'one_cycle'"),
    (dict(weight_decay=0.1), "weight_decay is AdamW's"),
    (dict(start="lora"), "start is None, Solve(), Redraw(), Lora(rank) or a value like these; got 'lora'"),
    (dict(start=""), "start is None, Solve(), Redraw(), Lora(rank) or a value like these; got ''"),
    (dict(start=Redraw), "start is None, Solve(), Redraw(), Lora(rank) or a value like these; got <class"),
    (dict(start=Solve()), "needs l2 > 0"),
    (dict(loss=3), "loss is None or a function (model, x, y, logits) -> scalar; got 3"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD, ids=lambda v: str(v))
def test_a_phase_that_cannot_be_is_refused_in_a_sentence(change, sentence):
    with pytest.raises(ValueError) as e:
        replace(ONE, **change)
    assert sentence in str(e.value) and "\n" not in str(e.value)


CALLS = [
    (lambda: strategy("lpft", fresh()), "did you mean 'lp_ft'"),
    (lambda: strategy("bn_only", mlp()), "has no BatchNorm"),
    (lambda: strategy("surgical_layer1", mlp()), "unknown parameter pattern 'backbone.layer1.*'"),
    (lambda: strategy("lora", TransferModel(nn.Flatten(), nn.Linear(2, 2))), "could take LoRA"),
    (lambda: drain(PRE.backbone, few(), FULL), "needs a backbone and a head"),
    (lambda: drain(fresh(), few(), FULL[0]), "a tuple of phases"),
    (lambda: drain(fresh(), few(), "full"), "a tuple of phases"),
    (lambda: drain(fresh(), few(), ()), "a tuple of phases"),
    (lambda: drain(fresh(), few(), surgical("layer9")), "unknown parameter pattern 'backbone.layer9.*'"),
    (lambda: gradual_unfreezing(fresh(), epochs=1), "an epoch for its first stage and one for its last; got 1"),
    (lambda: scaled(gradual_unfreezing(fresh()), epochs=5), "need an epoch each"),
    (lambda: slanted(0, 0), "total >= 1"),
    (lambda: Lora(0), "a rank >= 1 and an alpha > 0; got 0"),
    (lambda: Lora(1.5), "a rank >= 1 and an alpha > 0; got 1.5"),
    (lambda: Lora(4, -1.0), "a rank >= 1 and an alpha > 0; got 4 and -1.0"),
    (lambda: auto_rgn(fresh(), []), "found no gradient"),
    (lambda: lr_finder(fresh(), few(), low=1.0, high=0.1), "0 < low < high"),
    (lambda: suggest_lr([0.1], [1.0]), "five rates or more"),
]


@pytest.mark.parametrize(("call", "sentence"), CALLS, ids=[s for _, s in CALLS])
def test_errors_are_one_sentence(call, sentence):
    with pytest.raises((ValueError, TypeError)) as e:
        call()
    assert sentence in str(e.value) and "\n" not in str(e.value)


def test_a_phase_is_a_value():
    with pytest.raises(FrozenInstanceError):
        ONE.lr = 1.0
    assert hash(FULL) == hash((replace(FULL[0]),)) and eval(repr(LP_FT)) == LP_FT
