"The loop: equal to a plain one to the bit, stoppable, watchable, resumable; and pre-training that learns."

import copy
import math
from dataclasses import FrozenInstanceError
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sft_nb.core import set_seed
from sft_nb.data import Images, Loader, jitter, shuffled
from sft_nb.evaluation import accuracy, predict
from sft_nb.freezing import freeze, moved, unchanged
from sft_nb.models import adapt, load_pretrained, normalise, snapshot, source_network
from sft_nb.objective import risk, sq_dist
from sft_nb.sources.pocket import POCKET_MEAN, POCKET_STD, PocketResNet, pocket_source
from sft_nb.training import Step, fit, kept_bytes, pretrain, step_flops, steps

import torchvision  # isort: skip (after sft_nb)

TRANSFORM = normalise(POCKET_MEAN, POCKET_STD)


def pictures(n=80, classes=5):
    g = torch.Generator().manual_seed(3)
    return Images(
        torch.randint(0, 256, (n, 3, 32, 32), generator=g, dtype=torch.uint8),
        torch.randint(0, classes, (n,), generator=g),
    )


def start(seed=0, lr=0.05, **kwargs):
    "A network with BatchNorm, shuffled and augmented batches (the last one smaller), SGD with momentum."
    set_seed(seed)
    net = PocketResNet(5)
    dl = Loader(pictures(), 32, TRANSFORM, shuffle=True, augment=jitter(2), seed=seed)
    return net, dl, torch.optim.SGD(net.parameters(), lr, momentum=0.9, **kwargs)


def cosine(opt, n):
    return torch.optim.lr_scheduler.CosineAnnealingLR(opt, n)


def plain(net, dl, opt, epochs=1, schedule=None, stop=None):
    "The loop as one writes it by hand; stops after `stop` steps."
    losses = []
    for _ in range(epochs):
        net.train()
        for xb, yb in dl:
            if len(losses) == stop:
                return losses
            loss = nn.functional.cross_entropy(net(xb), yb)
            opt.zero_grad()
            loss.backward()
            opt.step()
            if schedule:
                schedule.step()
            losses.append(loss.item())
    return losses


def same(a, b):
    "Two networks, byte for byte: parameters and buffers."
    return snapshot(a).keys() == snapshot(b).keys() and moved(snapshot(a), snapshot(b)) == {}


# --- the same training as the plain loop


def test_equals_a_plain_loop_to_the_bit():
    a, b = start(), start()
    mine = fit(*a, epochs=3, schedule=cosine(a[2], 9))
    theirs = plain(*b, epochs=3, schedule=cosine(b[2], 9))
    assert [s.loss for s in mine] == theirs
    assert same(a[0], b[0])
    assert not same(a[0], start()[0])  # and it did train


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])  # an epoch has 3 steps
def test_stopped_after_k_steps_the_model_has_taken_k_steps(k):
    a, b = start(), start()
    taken = list(islice(steps(*a, epochs=3), k))
    assert [s.loss for s in taken] == plain(*b, epochs=3, stop=k)
    assert same(a[0], b[0])


def test_nothing_happens_before_the_first_step_is_asked_for():
    net, dl, opt = start()
    net.eval()
    steps(net, dl, opt)
    assert same(net, start()[0])
    assert (net.training, dl.epoch, opt.state) == (False, 0, {})


def test_closing_a_run_leaves_it_where_it_was():
    a, b = start(), start()
    run = steps(*a)
    next(run)
    run.close()
    assert list(run) == []
    plain(*b, stop=1)
    assert same(a[0], b[0])


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 23), batch_size=st.integers(1, 9), epochs=st.integers(0, 3))
def test_the_steps_account_for_every_example(n, batch_size, epochs):
    x, y = torch.randn(n, 4), torch.arange(n) % 2
    net = nn.Linear(4, 2)
    dl = [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, n, batch_size)]
    taken = fit(net, dl, torch.optim.SGD(net.parameters(), 0.1), epochs, phase="probe")
    per_epoch = math.ceil(n / batch_size)
    assert [(s.epoch, s.i) for s in taken] == [(e, i) for e in range(epochs) for i in range(per_epoch)]
    assert sum(s.n for s in taken) == epochs * n
    assert all(s.phase == "probe" and s.lr == 0.1 for s in taken)


def test_a_step_is_a_value():
    s = Step("", 0, 1, 2.0, 0.1, 8)
    assert s == Step("", 0, 1, 2.0, 0.1, 8)
    with pytest.raises(FrozenInstanceError):
        s.loss = 0.0


# --- against what is known in closed form or from another library


def test_gradient_descent_on_a_parabola_shrinks_geometrically():
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(net.weight, 3.0)
    batch = [(torch.ones(1, 1).double(), torch.zeros(1).double())]
    half_square = lambda z, y: ((z[:, 0] - y) ** 2).sum() / 2
    taken = fit(net, batch, torch.optim.SGD(net.parameters(), 0.1), epochs=20, loss=half_square)
    assert net.weight.item() == pytest.approx(3 * 0.9**20, rel=1e-12)
    assert [s.loss for s in taken] == pytest.approx([4.5 * 0.81**t for t in range(20)], rel=1e-12)


X12 = [[2, 0, 1], [3, 1, 0], [2, 1, 2], [1, 0, 0], [0, 2, 1], [1, 3, 0], [0, 2, 3], [-1, 2, 0], [-2, 0, 1], [-1, -1, 0]]
X12 += [[-3, 0, 2], [-2, -1, -1]]
Y12 = [0] * 4 + [1] * 4 + [2] * 4


def decayed_head(make):
    "A linear head trained by `make(groups)` on 12 points, weight decay .1 on the weights and none on the bias."
    x, y = torch.tensor(X12).double(), torch.tensor(Y12)
    set_seed(0)
    head = nn.Linear(3, 3).double()
    opt = make([dict(params=[head.weight], weight_decay=0.1), dict(params=[head.bias], weight_decay=0.0)])
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: max(0.0, 1 - t / 3000))
    fit(head, [(x, y)], opt, epochs=3000, schedule=schedule)
    with torch.no_grad():
        return head.weight, (risk(head(x), y) + 0.1 / 2 * sq_dist({"W": head.weight})).item()


def test_weight_decay_is_an_objective_term_in_sgd_and_adam_and_not_in_adamw():
    "The oracle is scikit-learn's minimiser of the same penalised risk."
    oracle = LogisticRegression(C=1 / (12 * 0.1), tol=1e-12, max_iter=10_000).fit(X12, Y12)
    best = 0.3007164088874905  # its penalised risk, as SciPy's BFGS finds it too
    for make in (lambda g: torch.optim.SGD(g, 0.3, momentum=0.9), lambda g: torch.optim.Adam(g, 0.03)):
        W, F = decayed_head(make)
        assert torch.allclose(W, torch.tensor(oracle.coef_), atol=1e-4)
        assert best - 1e-12 <= F <= best + 1e-7
    W, F = decayed_head(lambda g: torch.optim.AdamW(g, 0.03))
    assert F > best + 0.01


def test_an_objective_sees_what_the_loss_does_not():
    a, b, seen = start(), start(), []

    def objective(net, x, y, logits):
        seen.append((net is a[0], x.dtype, len(x) == len(y) == len(logits)))
        return risk(logits, y)

    assert fit(*a, objective=objective) == fit(*b)
    assert same(a[0], b[0]) and set(seen) == {(True, torch.float32, True)}


# --- the schedule


def test_the_schedule_steps_once_after_every_batch():
    net, dl, opt = start(lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.1 * 0.5**t)
    seen = []
    for s in steps(net, dl, opt, epochs=2, schedule=schedule):
        seen.append(s.lr)
        assert schedule.last_epoch == len(seen)
    assert seen == pytest.approx([0.1 * 0.5**t for t in range(6)])


def test_pretraining_runs_one_cycle_of_lr_and_momentum():
    net, dl, _ = start()
    run = list(pretrain(net, dl, epochs=4, lr=0.1))
    lrs = [s.lr for s in run]
    assert len(run) == 12 and {s.phase for s in run} == {"pretrain"}
    assert lrs[0] == pytest.approx(0.1 / 25) and lrs[-1] == pytest.approx(0.1 / 25e4)
    peak = lrs.index(max(lrs))
    assert lrs[: peak + 1] == sorted(lrs[: peak + 1]) and lrs[peak:] == sorted(lrs[peak:], reverse=True)
    assert max(lrs) <= 0.1 and 0 < peak < 6


def test_pretraining_is_the_recipe_written_out():
    a, b = start(), start()
    opt = torch.optim.SGD(b[0].parameters(), lr=0.15, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 0.15, total_steps=6)
    assert [s.loss for s in pretrain(*a[:2], epochs=2)] == plain(*b[:2], opt, epochs=2, schedule=schedule)
    assert same(a[0], b[0])


# --- looking, taking turns, going on


def test_evaluation_between_steps_changes_nothing():
    a, b = start(), start()
    for _ in steps(*a, epochs=2):
        predict(a[0], Loader(pictures(), 40, TRANSFORM))
    fit(*b, epochs=2)
    assert same(a[0], b[0])


def test_looking_through_the_same_loader_between_steps_changes_nothing():
    "Its epochs are numbered when the run begins, so nobody shifts them by iterating."
    a, b = start(), start()
    for _ in steps(*a, epochs=3):
        [len(yb) for _, yb in a[1]]
    fit(*b, epochs=3)
    assert same(a[0], b[0])


def test_a_run_that_begins_in_the_middle_takes_the_batches_that_are_left():
    a, b, c = start(), start(), start()
    later = lambda net, dl, opt: [(s.epoch, s.i) for s in steps(net, dl, opt, epochs=3, start=(1, 2))]
    a[1].epoch = 1
    assert later(*a) == [(1, 2), (2, 0), (2, 1), (2, 2)] and a[1].epoch == 3
    plain(b[0], [batch for e in (1, 2) for batch in list(b[1].batches(e))[2 * (e == 1) :]], b[2])
    assert same(a[0], b[0])
    assert later(c[0], list(c[1]), c[2]) == [(1, 2), (2, 0), (2, 1), (2, 2)]


def test_a_mode_left_in_eval_is_refused_and_one_put_back_is_not():
    net, dl, opt = start()
    run = steps(net, dl, opt)
    next(run)
    net.eval()
    now = snapshot(net)
    with pytest.raises(RuntimeError, match=r"epoch 0, step 1: the model's mode was changed between two steps"):
        next(run)
    assert moved(now, snapshot(net)) == {}  # nothing was trained in the wrong mode

    a, b = start(), start()
    for _ in steps(*a):
        a[0].eval()
        a[0].train()
    fit(*b)
    assert same(a[0], b[0])


def test_every_epoch_starts_in_train_mode():
    a, b = start(), start()
    for s in steps(*a, epochs=2):
        if s.i == 2:  # the last of its epoch
            a[0].eval()
    fit(*b, epochs=2)
    assert same(a[0], b[0])
    assert a[0].bn1.num_batches_tracked == 6


@pytest.mark.parametrize("pattern", ["backbone.*", "*"])
def test_a_frozen_backbone_stays_frozen_under_the_loop(pattern):
    model = freeze(adapt(load_pretrained("pocket"), 5), pattern)
    if pattern == "*":  # nothing learns, yet a loop over it must not wake BatchNorm; the loss needs a gradient
        outside = nn.Parameter(torch.zeros(5))
        loss = lambda z, y: risk(z + outside, y)
        with unchanged(model):
            fit(model, start()[1], torch.optim.SGD([outside], 0.1), loss=loss)
        assert outside.abs().sum() > 0
    else:
        before = model.head.weight.detach().clone()
        with unchanged(model.backbone):
            fit(model, start()[1], torch.optim.SGD(model.head.parameters(), 0.1))
        assert not torch.equal(before, model.head.weight)
    assert not model.backbone.training


def test_two_runs_that_take_turns_end_as_if_alone():
    a, b = start(lr=0.01), start(seed=1, lr=0.1)
    for _ in zip(steps(*a, epochs=2), steps(*b, epochs=2), strict=True):
        pass
    a2, b2 = start(lr=0.01), start(seed=1, lr=0.1)
    fit(*b2, epochs=2)
    fit(*a2, epochs=2)
    assert same(a[0], a2[0]) and same(b[0], b2[0])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    a, b, c = start(), start(), start(seed=1)
    assert fit(*a) == fit(*b) != fit(*c)
    assert same(a[0], b[0]) and not same(a[0], c[0])


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_resumed_between_epochs_the_run_ends_in_the_same_bytes(make):
    options = dict(momentum=0.9) if make is torch.optim.SGD else {}

    def fresh(seed):
        net, dl, _ = start(seed)
        opt = make(net.parameters(), 0.01, **options)
        return net, dl, opt, cosine(opt, 9)

    whole = fresh(0)
    losses = [s.loss for s in fit(*whole[:3], epochs=3, schedule=whole[3])]

    net, dl, opt, schedule = fresh(0)
    fit(net, dl, opt, epochs=1, schedule=schedule)
    parts = [x.state_dict() for x in (net, opt, schedule)]
    saved = copy.deepcopy(parts), dl.seed, dl.epoch

    net, dl, opt, schedule = fresh(1)
    for thing, state in zip((net, opt, schedule), saved[0], strict=True):
        thing.load_state_dict(state)
    dl.seed, dl.epoch = saved[1:]
    rest = [s.loss for s in fit(net, dl, opt, epochs=2, schedule=schedule)]
    assert rest == losses[3:]
    assert same(net, whole[0])


# --- what bad input gets


def test_no_batches_are_refused():
    net, _, opt = start()
    with pytest.raises(ValueError, match="epoch 0 has no batches"):
        fit(net, [], opt)
    with pytest.raises(ValueError, match="the set is empty"):
        fit(net, Loader(pictures()[:0]), opt)


def test_an_iterator_that_is_used_up_is_named_and_not_passed_over():
    net, dl, opt = start()
    with pytest.raises(ValueError, match="epoch 1 has no batches"):
        fit(net, iter(list(dl)), opt, epochs=2)


def poisoned(value):
    batches = [(xb.clone(), yb) for xb, yb in start()[1]]
    batches[2][0][0, 0, 0, 0] = value
    return batches


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_named_and_its_step_not_taken(value):
    a, b = start(), start()
    with pytest.raises(FloatingPointError, match=r"loss is nan at epoch 0, step 2: lower lr"):
        fit(a[0], poisoned(value), a[2])
    fit(b[0], poisoned(0.0)[:2], b[2])
    for (name, p), q in zip(a[0].named_parameters(), b[0].parameters(), strict=True):
        assert torch.equal(p, q), name


def test_a_learning_rate_that_blows_up_is_named():
    net, dl, opt = start(lr=1e20)
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at epoch \d, step \d: lower lr"):
        fit(net, dl, opt, epochs=3)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(4, 1, 32, 32), r"cannot take a batch of shape \[4, 1, 32, 32\], torch.float32, on cpu"),
        (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), r"torch.uint8.*check the loader's transform"),
        (torch.zeros(4, 12), r"cannot take a batch of shape \[4, 12\]"),
        (torch.zeros(3, 3, 32, 32), "3 examples and 4 labels"),
    ],
)
def test_a_batch_that_does_not_fit_is_named_and_nothing_moves(x, says):
    net, _, opt = start()
    with unchanged(net), pytest.raises(ValueError, match=says) as e:
        fit(net, [(x, torch.zeros(4, dtype=torch.long))], opt)
    assert str(e.value).startswith("epoch 0, step 0:") and "\n" not in str(e.value)


def test_running_out_of_memory_keeps_its_own_name():
    class Hungry(nn.Linear):
        def forward(self, x):
            raise torch.OutOfMemoryError("out of memory")

    net = Hungry(2, 2)
    with pytest.raises(torch.OutOfMemoryError):
        fit(net, [(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))], torch.optim.SGD(net.parameters(), 0.1))


# --- pre-training learns what the labels say, and only that


def pretrained_on(split, train, seed=0, epochs=2):
    set_seed(seed)
    net = PocketResNet(len(split.classes))
    dl = Loader(train, 128, TRANSFORM, shuffle=True, augment=jitter(2), seed=seed)
    losses = [s.loss for s in pretrain(net, dl, epochs)]
    return accuracy(*predict(net, Loader(split.test, 500, TRANSFORM))), losses


# --- batches and models as they come ---


def small(norm=True):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6) if norm else nn.ReLU(), nn.Linear(6, 3))


def rows(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 2, 2, generator=g), torch.arange(n) % 3


@pytest.mark.parametrize("n", [33, 65])
def test_a_last_batch_of_one_is_a_step_with_running_statistics(n):
    "Against the same step written out: the row goes through BatchNorm in eval mode, everything else as ever."
    torch.manual_seed(0)
    net, (x, y) = small(), rows(n)
    mine, opt = copy.deepcopy(net), torch.optim.SGD(net.parameters(), 0.1)
    taken = fit(net, list(zip(x.split(32), y.split(32), strict=True)), opt)
    assert [s.n for s in taken] == [32] * (n // 32) + [1] and net[2].training
    opt = torch.optim.SGD(mine.parameters(), 0.1)
    for xb, yb in zip(x.split(32), y.split(32), strict=True):
        mine[2].train(len(xb) > 1)
        opt.zero_grad()
        F.cross_entropy(mine(xb), yb).backward()
        opt.step()
    assert not moved(snapshot(mine), snapshot(net)) and net[2].num_batches_tracked == n // 32
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_one_picture_with_many_places_keeps_its_own_statistics():
    "BatchNorm2d over 4 x 4 places has sixteen values to average: there torch never refused, and nothing changes."
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    fit(net, [(torch.randn(1, 3, 4, 4), torch.tensor([0]))], torch.optim.SGD(net.parameters(), 0.1))
    assert net[1].num_batches_tracked == 1 and net[1].running_mean.any()


def test_without_running_statistics_one_row_is_refused_in_a_sentence():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="epoch 0, step 0: .* choose a batch_size that leaves no single row") as e:
        fit(net, [(torch.randn(1, 4), torch.tensor([0]))], torch.optim.SGD(net.parameters(), 0.1))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_type_takes_the_batch_in_its_own(dtype):
    net, (x, y) = small(norm=False).to(dtype), rows(8)
    before = [s.loss for s in fit(net, [(x, y)], torch.optim.SGD(net.parameters(), 0.1), epochs=5)]
    assert before[-1] < before[0] and net[1].weight.dtype == dtype
    again = small(norm=False).to(dtype)
    with torch.no_grad():
        want = F.cross_entropy(again(x.to(dtype)).to(torch.float32 if dtype.itemsize < 4 else dtype), y)
    assert fit(again, [(x, y)], torch.optim.SGD(again.parameters(), 0.1))[0].loss == pytest.approx(
        want.item(), rel=1e-6
    )


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = small(norm=False), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


@pytest.mark.parametrize(
    "wrap",
    [lambda z: SimpleNamespace(logits=z, loss=None), lambda z: dict(logits=z), lambda z: (z, None), lambda z: [z]],
    ids=["attribute", "dict", "tuple", "list"],
)
def test_wrapped_logits_are_found(wrap):
    torch.manual_seed(0)
    plain = small(norm=False)
    net, (x, y) = Wrapped(wrap), rows(6)
    net.net = copy.deepcopy(plain)
    steps = [fit(m, [(x, y)], torch.optim.SGD(m.parameters(), 0.1), epochs=2) for m in (net, plain)]
    assert [s.loss for s in steps[0]] == [s.loss for s in steps[1]]
    strange = Wrapped(lambda z: "logits")
    with pytest.raises(ValueError, match="the model returned a str; the loss needs logits"):
        fit(strange, [(x, y)], torch.optim.SGD(strange.parameters(), 0.1))


# --- what a step costs: products counted by hand ---


class Op(nn.Module):
    "One operator on a batch [2, 5, 8] and a weight [8, 8] that learns."

    def __init__(self, f):
        super().__init__()
        self.w, self.f = nn.Parameter(torch.randn(8, 8)), f

    def forward(self, x):
        return self.f(x, self.w)


P = 2 * 10 * 8 * 8  # ten rows times the weight
ATTENTION = 2 * 2 * (2 * 5 * 5 * 8)  # queries by keys, then weights by values, for two sequences of five
PRODUCTS = {
    "matmul": (lambda x, w: x @ w, 2 * P),
    "einsum": (lambda x, w: torch.einsum("bij,jk->bik", x, w), 2 * P),
    "mm": (lambda x, w: torch.mm(x[0], w), P),
    "addmm": (lambda x, w: torch.addmm(x[0], x[0], w), P),
    "baddbmm": (lambda x, w: torch.baddbmm(x, x, w.expand(2, 8, 8)), 2 * P),
    "keywords": (lambda x, w: F.linear(weight=w, input=x), 2 * P),
    "mv": (lambda x, w: w @ x[0, 0], 2 * 64),  # the weight's gradient is an outer product: it has no sum
    "dot": (lambda x, w: w[0] @ x[0, 0], 2 * 8),
    "transposed": (lambda x, w: F.conv_transpose1d(x.mT, w[:, :, None].repeat(1, 1, 3)), 3 * 2 * P),
    "attention": (
        lambda x, w: F.scaled_dot_product_attention(x @ w, x, x),
        2 * P + 2 * ATTENTION,
    ),  # keys and values learn nothing
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_flops_of_an_operator_are_those_by_hand(name):
    f, wanted = PRODUCTS[name]
    assert step_flops(Op(f), torch.randn(2, 5, 8)) == wanted


def by_hand(learns):
    "TransformerEncoderLayer(8, 2, 16) on three sequences of two: q, k, v; scores; mix; out; two layers."
    joint, score, out, wide = 2 * 6 * 8 * 24, 2 * 3 * 2 * 2 * 8, 2 * 6 * 8 * 8, 2 * 2 * 6 * 8 * 16
    forward = joint + 2 * score + out + wide
    return forward + learns * (joint + 2 * 2 * score + 2 * out + 2 * wide)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_attention_is_counted_with_and_without_its_short_cut(batch_first, learns, training):
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first).requires_grad_(learns).train(training)
    x = torch.randn((3, 2, 8) if batch_first else (2, 3, 8))
    random = torch.get_rng_state()
    assert step_flops(net, x) == by_hand(learns)
    assert torch.equal(random, torch.get_rng_state()) and torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("kind,gates", [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("learns", [True, False])
def test_recurrent_layers_are_counted(kind, gates, learns):
    "Two steps of five sequences; the first hidden state needs no gradient."
    one = 2 * 5 * 8 * 8 * gates  # one product of one step
    wanted = 4 * one + learns * (4 * one + one)
    assert step_flops(kind(8, 8).requires_grad_(learns), torch.randn(2, 5, 8)) == wanted


def test_a_small_vit_is_counted_as_torch_counts_the_plain_products():
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)
    x = torch.randn(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        vit(x).sum().backward()
    assert step_flops(vit, x) == step_flops(vit.eval(), x) == counter.get_total_flops()
    still = step_flops(vit.requires_grad_(False), x)
    tokens = 2 * 17
    layer = 2 * tokens * 32 * (96 + 32 + 2 * 64) + 2 * 2 * 2 * 17 * 17 * 32
    assert still == 2 * 2 * 16 * 32 * 192 + 2 * layer + 2 * 2 * 32 * 10
    with torch.inference_mode():  # a training step is meant, wherever one asks
        assert step_flops(vit.requires_grad_(True), x) == counter.get_total_flops()


class Reads(nn.Module):
    "Its way depends on the numbers, which the device meta does not have."

    def __init__(self):
        super().__init__()
        self.lin, self.drop, self.table = nn.Linear(8, 8), nn.Dropout(0.5), torch.ones(8)

    def forward(self, x):
        y = self.drop(self.lin(x + self.table))
        return dict(logits=self.lin(y) if float(x.sum()) > 0 else y)


def test_a_model_that_reads_numbers_is_counted_on_a_real_step():
    net, x = Reads(), torch.ones(3, 8)
    one, random = 2 * 3 * 8 * 8, torch.get_rng_state()
    assert step_flops(net, x) == 2 * one + 3 * one and step_flops(net, -x) == 2 * one
    assert torch.equal(random, torch.get_rng_state()) and net.lin.weight.grad is None


STRANGE = {
    "aten._trilinear": lambda x, w: F.bilinear(x, x, w[:, :, None].expand(8, 8, 8)),
    "aten.conv_tbc": lambda x, w: torch.conv_tbc(x, w[None], torch.zeros(8)),
    "aten._sparse_addmm": lambda x, w: torch.sparse.mm(torch.eye(8).to_sparse(), w),
}


@pytest.mark.parametrize("name", STRANGE)
def test_products_without_a_formula_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"no formula for the operator {name}"):
        step_flops(Op(STRANGE[name]), torch.randn(2, 5, 8))


def test_another_librarys_operator_is_refused():
    with torch.library._scoped_library("sft_nb_test", "FRAGMENT") as lib:
        lib.define("fancy(Tensor x, Tensor w) -> Tensor")
        lib.impl("fancy", lambda x, w: x @ w, "CPU")
        net = Op(lambda x, w: torch.ops.sft_nb_test.fancy(x, w.detach()))
        with pytest.raises(ValueError, match="no formula for the operator sft_nb_test.fancy"):
            step_flops(net, torch.randn(2, 5, 8))


def test_what_attention_keeps_is_counted():
    "A frozen layer keeps nothing; of a linear one that learns its input is kept, and of dropout no random number drawn."
    encoder, x = nn.TransformerEncoderLayer(8, 2, 16), torch.randn(2, 3, 8)
    random = torch.get_rng_state()
    assert kept_bytes(copy.deepcopy(encoder).requires_grad_(False), x) == 0 < kept_bytes(encoder, x)
    assert torch.equal(random, torch.get_rng_state())


@pytest.fixture(scope="module")
def hues():
    return pocket_source("hue", n=4000)


@pytest.mark.parametrize("seed", range(2))
def test_a_short_pretraining_learns(hues, seed):
    found, losses = pretrained_on(hues, hues.train, seed)
    assert found >= 0.4  # chance is 1/12; measured .58
    assert sum(losses[-5:]) / 5 < math.log(12) - 0.5


def test_and_learns_nothing_from_labels_that_mean_nothing(hues):
    train = Images(hues.train.x, hues.train.y[shuffled(len(hues.train), 5)])
    assert pretrained_on(hues, train)[0] <= 0.15


@pytest.mark.slow
def test_the_whole_recipe_makes_theta_pre():
    source = pocket_source("shape")
    found, _ = pretrained_on(source, source.train, epochs=10)
    shipped = accuracy(*predict(source_network("pocket")[0], Loader(source.test, 500, TRANSFORM)))
    assert found >= 0.88 and abs(found - shipped) <= 0.02
