"Evaluation: worked numbers, oracles that are not ours (SciPy, scikit-learn, brute force), laws, bad input."

import copy
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest
from sklearn.metrics import accuracy_score, brier_score_loss, confusion_matrix, recall_score
from torch import nn

from sft_nb.evaluation import (
    Ledger,
    accuracy,
    brier,
    calibration_error,
    confusion,
    interval,
    paired_test,
    per_class,
    predict,
    temperature,
    worst,
)

F = nn.functional
relaxed = settings(deadline=None, max_examples=60, derandomize=True)


def sample(seed, n=60, c=4, scale=2.0):
    "Logits and labels that agree about half of the time."
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(c, (n,), generator=g)
    z = torch.randn(n, c, generator=g) * scale
    z[range(n), y] += scale
    return z, y


cases = st.builds(
    sample, st.integers(0, 10_000), st.integers(1, 80), st.integers(2, 6), st.sampled_from([0.1, 1.0, 4.0])
)


def nll(z, y):
    return F.cross_entropy(z.double(), y).item()


# predict


def batches(n=7, batch=3, c=4):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 5, generator=g), torch.randint(c, (n,), generator=g)
    return list(zip(x.split(batch), y.split(batch), strict=True)), x, y


def small_net():
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Sequential(nn.ReLU(), nn.Linear(8, 4)))


def test_predict_gives_the_eval_mode_logits_of_every_example_in_order():
    dl, x, y = batches()
    net = small_net().train()
    z, labels = predict(net, dl)
    assert torch.allclose(z, copy.deepcopy(net).eval()(x), atol=1e-6)
    assert torch.equal(labels, y) and not z.requires_grad


@pytest.mark.parametrize("mask", range(8))
def test_predict_leaves_modes_statistics_and_grad_mode_as_they_were(mask):
    dl, _, _ = batches()
    net = small_net()
    for i, m in enumerate(net.modules()):
        m.training = bool(mask >> (i % 3) & 1)
    modes, state = [m.training for m in net.modules()], copy.deepcopy(net.state_dict())
    predict(net, dl)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(t, state[n]) for n, t in net.state_dict().items())
    assert torch.is_grad_enabled()


def test_predict_restores_the_modes_when_the_model_or_the_loader_fails():
    net = small_net().train()

    def broken():
        yield from batches()[0]
        raise OSError("the disk is gone")

    for dl, error in ((broken(), OSError), ([(torch.zeros(2, 6), torch.zeros(2))], RuntimeError)):
        with pytest.raises(error):
            predict(net, dl)
        assert all(m.training for m in net.modules())


def test_predict_between_two_training_steps_does_not_change_training():
    def train(evaluate):
        torch.manual_seed(0)
        net = small_net().train()
        opt = torch.optim.SGD(net.parameters(), lr=0.1)
        for xb, yb in batches()[0][:2]:
            if evaluate:
                z, _ = predict(net, batches()[0])
                z.add_(1)  # an ordinary tensor: it may be changed, and used where gradients flow
            opt.zero_grad()
            F.cross_entropy(net(xb), yb).backward()
            opt.step()
        return net.state_dict()

    a, b = train(False), train(True)
    assert all(torch.equal(t, b[n]) for n, t in a.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_predict_gives_float32(dtype):
    dl = [(torch.randn(3, 5, dtype=dtype), torch.tensor([0, 1, 3]))]
    assert predict(nn.Linear(5, 4, dtype=dtype), dl)[0].dtype == torch.float32


def test_predict_works_without_parameters():
    z = torch.randn(3, 4)
    assert torch.equal(predict(nn.Identity(), [(z, torch.zeros(3, dtype=torch.long))])[0], z)


@pytest.mark.gpu
def test_predict_on_a_gpu_takes_batches_from_the_cpu_and_gives_cpu_tensors():
    dl, _, _ = batches()
    net = small_net()
    z, y = predict(copy.deepcopy(net).cuda(), dl)
    assert z.device.type == y.device.type == "cpu"
    assert torch.allclose(z, predict(net, dl)[0], atol=1e-4)


def test_predict_refuses_an_empty_loader():
    with pytest.raises(ValueError, match="the loader is empty"):
        predict(nn.Linear(5, 4), [])


# what every measurement refuses

MEASURES = [
    accuracy,
    confusion,
    per_class,
    calibration_error,
    temperature,
    brier,
    lambda z, y: worst(z, y, 1),
    lambda z, y: Ledger().score("a claim", z, y),
    lambda z, y: predict(nn.Identity(), [(z, y)]),
]
SCORED = [
    calibration_error,
    temperature,
    brier,
    lambda z, y, **kw: worst(z, y, 5, **kw),
]  # these take probabilities too
BAD = {
    "labels of another length": (torch.zeros(3, 2), torch.tensor([0, 1]), r"logits \[N, C\] and labels \[N\]"),
    "logits of one example": (torch.zeros(3), torch.tensor([0, 1, 1]), r"logits \[N, C\] and labels \[N\]"),
    "one-hot labels": (torch.zeros(3, 2), torch.zeros(3, 2).long(), r"logits \[N, C\] and labels \[N\]"),
    "nothing": (torch.zeros(0, 2), torch.tensor([]).long(), "the set is empty"),
    "a label too large": (torch.zeros(2, 2), torch.tensor([0, 2]), r"whole numbers in 0\.\.1"),
    "a negative label": (torch.zeros(2, 2), torch.tensor([0, -1]), r"whole numbers in 0\.\.1"),
    "fractions as labels": (torch.zeros(2, 2), torch.tensor([0.0, 1.0]), "whole numbers"),
    "a model that diverged": (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "diverged"),
    "an overflow": (torch.tensor([[0.0, math.inf]]), torch.tensor([0]), "diverged"),
    "labels in a column": (torch.zeros(3, 2), torch.zeros(3, 1).long(), r"take y\[:, 0\]"),
    "a true class that was masked": (
        torch.tensor([[0.0, -math.inf]]),
        torch.tensor([1]),
        "a class whose logit is -inf",
    ),
    "labels that are words": (torch.zeros(2, 2), np.array(["cat", "dog"]), "as numbers"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("measure", MEASURES)
def test_bad_input_is_refused_in_one_sentence(measure, bad):
    z, y, message = BAD[bad]
    with pytest.raises(ValueError, match=message) as e:
        measure(z, y)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_may_be_any_whole_numbers(dtype):
    z, y = sample(0, n=500, c=20)  # 20 x 20 does not fit into uint8
    for measure in MEASURES[:7]:
        a, b = measure(z, y), measure(z, y.to(dtype))
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else getattr(a, "ece", a) == getattr(b, "ece", b)
    ledger = Ledger()
    assert ledger.score("probe", z, y.to(dtype)) == ledger.score("probe", z, y)


@pytest.mark.parametrize("measure", MEASURES[:7])
def test_numpy_arrays_and_lists_are_measured_as_tensors_are(measure):
    z, y = sample(3)
    want = measure(z, y)
    for other in (measure(z.numpy(), y.numpy()), measure(z.tolist(), y.numpy().astype(np.uint16))):
        assert torch.equal(want, other) if isinstance(want, torch.Tensor) else str(want) == str(other)


@pytest.mark.parametrize("measure", MEASURES[:8])
def test_a_masked_class_is_as_good_as_none(measure):
    "-inf in a column that no label names: every measure agrees with the one where the column is not there."
    z, y = sample(5)
    masked = torch.cat([z, torch.full((len(z), 1), -math.inf)], 1)
    want, got = measure(z, y), measure(masked, y)
    if measure is confusion:
        got = got[:-1, :-1]
    elif measure is per_class:
        got = got[:-1]
    value = lambda v: getattr(v, "ece", getattr(v, "accuracy", v))
    assert torch.allclose(torch.as_tensor(value(got)), torch.as_tensor(value(want)), rtol=1e-9, equal_nan=True)
    assert F.cross_entropy(masked, y).item() == pytest.approx(F.cross_entropy(z, y).item())  # and so does the loss


# what predict takes


class Output:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize("wrap", [tuple, list, Output, dict], ids=lambda w: w.__name__)
def test_predict_finds_the_logits_in_what_models_return(wrap):
    dl, _, _ = batches()
    net = small_net().eval()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            z = self.net(x)
            return Output(z) if wrap is Output else dict(logits=z, loss=0) if wrap is dict else wrap([z, z.sum()])

    assert torch.equal(predict(Wrapped(), dl)[0], predict(net, dl)[0])


def test_predict_says_what_it_cannot_take():
    class Odd(nn.Module):
        def forward(self, x):
            return "logits"

    with pytest.raises(ValueError, match="the model returned a str: predict needs logits"):
        predict(Odd(), batches()[0])
    for batch in (dict(x=1, y=2), torch.zeros(2, 5), [torch.zeros(2, 5)]):
        with pytest.raises(ValueError, match=r"batches \(inputs, labels\); the loader gave a"):
            predict(small_net(), [batch])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_predict_gives_a_model_its_own_precision(dtype):
    "Batches of float32 through a model of another precision, from torch's own DataLoader."
    _, x, y = batches()
    net = nn.Linear(5, 4)
    theirs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3)
    z, labels = predict(copy.deepcopy(net).to(dtype), theirs)
    assert z.dtype == torch.float32 and torch.equal(labels, y)
    assert torch.allclose(z, net(x), atol=0.05)

    class FromBytes(nn.Module):  # whole numbers stay whole: some models begin with a table or a cast
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4, dtype=dtype)

        def forward(self, i):
            return self.table(i)

    assert predict(FromBytes(), [(torch.arange(9), torch.zeros(9).long())])[0].shape == (9, 4)


# accuracy and its interval


@relaxed
@given(cases)
def test_accuracy_is_scikit_learns(case):
    z, y = case
    assert accuracy(z, y) == pytest.approx(accuracy_score(y, z.argmax(1)), abs=1e-12)


def test_interval_worked():
    assert interval(87, 100) == pytest.approx((0.79020, 0.92243), abs=5e-6)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 7, 50, 800])
def test_interval_is_scipys_wilson(n, level):
    for k in range(0, n + 1, max(1, n // 50)):
        want = binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
        assert interval(k, n, level) == pytest.approx((want.low, want.high), abs=1e-12)


@relaxed
@given(st.integers(1, 500), st.data())
def test_interval_laws(n, data):
    k, level = data.draw(st.integers(0, n)), data.draw(st.floats(0.5, 0.999))
    lo, hi = interval(k, n, level)
    assert 0 <= lo <= k / n + 1e-12 and k / n - 1e-12 <= hi <= 1 and lo < hi
    assert interval(n - k, n, level) == pytest.approx((1 - hi, 1 - lo), abs=1e-12)  # errors instead of hits
    wider, more = interval(k, n, (1 + level) / 2), interval(4 * k, 4 * n, level)
    assert wider[0] <= lo and hi <= wider[1] and more[1] - more[0] < hi - lo


def test_interval_keeps_its_promise_where_walds_does_not():
    "Coverage, exactly, by summing the binomial distribution."
    n = 50
    table = np.array([interval(k, n) for k in range(n + 1)])
    q = np.arange(n + 1) / n
    half = 1.96 * np.sqrt(q * (1 - q) / n)
    for p in np.linspace(0.5, 0.99, 99):
        mass = binom.pmf(np.arange(n + 1), n, p)
        assert mass[(table[:, 0] <= p) & (p <= table[:, 1])].sum() > 0.88
    assert mass[(q - half <= p) & (p <= q + half)].sum() < 0.5  # p is 0.99 here


@pytest.mark.parametrize("level", [1e-300, 1e-9, 0.95, 1 - 1e-12, 1 - 1e-15, 1 - 2**-53])
def test_interval_is_finite_at_every_level(level):
    "scipy.stats.norm's own lower tail gives z."
    from scipy.stats import norm

    z, lo, hi = norm.isf((1 - level) / 2), *interval(3, 10, level)
    assert 0 <= lo <= 0.3 <= hi <= 1
    for p in (lo, hi):  # each end solves Wilson's equation
        assert abs(0.3 - p) == pytest.approx(z * math.sqrt(p * (1 - p) / 10), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    "k, n", [(5, 4), (-1, 4), (0, 0), (0.87, 100), (1, 2.5), (3, -4), (math.nan, 3), (1, math.inf), (1, math.nan)]
)
def test_interval_refuses_what_is_no_count(k, n):
    with pytest.raises(ValueError, match="as counts"):
        interval(k, n)


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, math.nan])
def test_interval_refuses_a_level_outside_0_1(level):
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        interval(1, 2, level)


# the paired test


def pair(b, c, both=0, neither=0):
    "Two vectors with these four counts."
    first = [True] * b + [False] * c + [True] * both + [False] * neither
    second = [False] * b + [True] * c + [True] * both + [False] * neither
    return torch.tensor(first, dtype=torch.bool), torch.tensor(second, dtype=torch.bool)


def test_paired_test_worked():
    got = paired_test(*pair(3, 11, both=70, neither=16))
    assert (got.b, got.c) == (3, 11) and got.p == pytest.approx(0.057373046875, abs=1e-15)
    assert got.p == pytest.approx(binomtest(3, 14, 0.5).pvalue, abs=1e-15)


@pytest.mark.parametrize("b, c", [(b, c) for b in range(9) for c in range(9)] + [(300, 360), (5000, 5200), (0, 1100)])
def test_paired_test_is_scipys_binomial_test(b, c):
    want = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert paired_test(*pair(b, c)).p == pytest.approx(want, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("b, c", [(0, 0), (0, 3), (2, 5), (4, 4), (1, 8)])
def test_paired_test_is_the_share_of_coin_tosses_at_least_as_lopsided(b, c):
    tosses = list(itertools.product([0, 1], repeat=b + c))
    lopsided = sum(abs(2 * sum(t) - (b + c)) >= abs(b - c) for t in tosses)
    assert paired_test(*pair(b, c)).p == pytest.approx(lopsided / len(tosses), abs=1e-15)


def test_paired_test_of_many_pictures_is_the_sum_of_whole_numbers():
    "The definition in exact arithmetic, and NumPy arrays; at fifty thousand pictures, the normal limit."
    b, c = 1450, 1550
    term, tail = 1, 0
    for k in range(b + 1):
        tail, term = tail + term, term * (b + c - k) // (k + 1)
    assert paired_test(*pair(b, c)).p == pytest.approx(float(Fraction(2 * tail, 2 ** (b + c))), rel=1e-9)
    right = np.arange(50_000) < 25_200
    z = (abs(25_200 - 24_800) - 1) / math.sqrt(50_000)
    assert paired_test(right, ~right).p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


@relaxed
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 50), st.integers(0, 50), st.integers(0, 99))
def test_paired_test_laws(b, c, both, neither, seed):
    x, y = pair(b, c, both, neither)
    got, back = paired_test(x, y), paired_test(y, x)
    assert (got.b, got.c) == (b, c) == (back.c, back.b) and got.p == back.p and 0 < got.p <= 1
    assert got == paired_test(*pair(b, c))  # the pictures on which they agree do not matter
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    assert got == paired_test(x[order], y[order])
    assert paired_test(*pair(b, c + 1)).p <= got.p + 1e-12 or c < b  # more evidence, smaller p


@pytest.mark.parametrize(
    "a, b, message",
    [
        (torch.tensor([0, 1]), torch.tensor([True, True]), "predicted == y"),
        (torch.tensor([True]), torch.tensor([1.0]), "predicted == y"),
        (torch.tensor([True]), torch.tensor([True, True]), "the same examples twice"),
        (torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool), "the same examples twice"),
    ],
)
def test_paired_test_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_test(a, b)


# confusion, per class, worst


@relaxed
@given(cases)
def test_confusion_is_scikit_learns(case):
    z, y = case
    c = z.shape[1]
    m = confusion(z, y, c)
    assert m.dtype == torch.int64 and m.shape == (c, c)
    assert (m.numpy() == confusion_matrix(y, z.argmax(1), labels=range(c))).all()
    assert m.trace().item() / len(y) == pytest.approx(accuracy(z, y), abs=1e-12)
    recall = recall_score(y, z.argmax(1), labels=range(c), average=None, zero_division=np.nan)
    assert torch.equal(per_class(z, y).isnan(), m.sum(1) == 0)
    assert per_class(z, y).numpy() == pytest.approx(recall, nan_ok=True, abs=1e-12)


def test_confusion_with_room_for_classes_that_the_head_lacks():
    z, y = sample(1)
    m = confusion(z, y, 6)
    assert torch.equal(m[:4, :4], confusion(z, y)) and m.sum() == len(y)
    with pytest.raises(ValueError, match="more than num_classes=3"):
        confusion(z, y.clamp(max=2), 3)


@relaxed
@given(cases, st.integers(1, 20))
def test_worst_lists_the_surest_mistakes_first(case, k):
    z, y = case
    got = worst(z, y, k).tolist()
    sure, predicted = z.double().softmax(1).max(1)
    mistakes = [i for i in range(len(y)) if predicted[i] != y[i]]
    assert got == sorted(mistakes, key=lambda i: (-sure[i], i))[:k]


def test_worst_of_a_model_without_mistakes_is_empty_and_k_must_be_positive():
    z, y = 5 * torch.eye(3), torch.arange(3)
    assert worst(z, y, 5).shape == (0,)
    with pytest.raises(ValueError, match="at least one mistake"):
        worst(z, y, 0)


# calibration

CONF = [0.95, 0.9, 0.85, 0.8, 0.72, 0.66, 0.61, 0.55, 0.52, 0.41]
HIT = [1, 1, 0, 1, 1, 0, 1, 0, 1, 0]


def from_confidence(conf, hit, dtype=torch.float64):
    "Three-class probabilities whose largest entry is `conf`, and labels that make each right or wrong."
    conf = torch.tensor(conf, dtype=dtype)
    return torch.stack([conf, (1 - conf) / 2, (1 - conf) / 2], 1), 1 - torch.tensor(hit)


@pytest.mark.parametrize("dtype, eps", [(torch.float64, 1e-14), (torch.float32, 1e-7)])
def test_calibration_worked(dtype, eps):
    c = calibration_error(*from_confidence(CONF, HIT, dtype), bins=5, probabilities=True)
    assert c.ece == pytest.approx(139 / 1000, abs=eps)
    assert c.mce == pytest.approx(0.7 / 3, abs=eps)
    assert c.count.tolist() == [0, 0, 3, 4, 3]  # 0.8 belongs to (0.6, 0.8]
    assert c.accuracy[2:].tolist() == pytest.approx([1 / 3, 3 / 4, 2 / 3])
    assert c.confidence[2:].tolist() == pytest.approx([1.48 / 3, 2.79 / 4, 2.7 / 3], abs=eps * 10)
    assert c.accuracy[:2].isnan().all() and c.confidence[:2].isnan().all()


def by_fractions(conf, hit, bins):
    "ECE and MCE by exact fractions: the definition, example by example."
    total, largest = Fraction(0), Fraction(0)
    for m in range(bins):
        inside = [(c, h) for c, h in zip(conf, hit, strict=True) if Fraction(m, bins) < c <= Fraction(m + 1, bins)]
        gap = abs(sum((c - h for c, h in inside), Fraction(0)))
        total, largest = total + gap, max(largest, gap / max(1, len(inside)))
    return float(total / len(conf)), float(largest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@relaxed
@given(st.lists(st.tuples(st.integers(41, 120), st.booleans()), min_size=1, max_size=30), st.sampled_from([5, 8, 15]))
def test_calibration_is_the_definition_even_on_the_edges_of_the_bins(dtype, rows, bins):
    "Confidences in steps of 1/120 hit the edges of 5, 8 and 15 bins; floats miss them by a rounding error."
    conf, hit = [Fraction(k, 120) for k, _ in rows], [int(h) for _, h in rows]
    c = calibration_error(*from_confidence([float(f) for f in conf], hit, dtype), bins=bins, probabilities=True)
    assert (c.ece, c.mce) == pytest.approx(by_fractions(conf, hit, bins), abs=1e-6)


@pytest.mark.parametrize("conf, want", [(0.6, 2), (0.6000000001, 2), (0.5999999999, 2), (0.60001, 3), (1.0, 4)])
def test_a_rounding_error_does_not_change_the_bin(conf, want):
    for dtype in (torch.float64, torch.float32):
        c = calibration_error(*from_confidence([conf], [1], dtype), bins=5, probabilities=True)
        assert c.count.argmax() == want


@relaxed
@given(cases, st.integers(1, 30), st.integers(0, 99))
def test_calibration_laws(case, bins, seed):
    z, y = case
    c = calibration_error(z, y, bins)
    assert 0 <= c.ece <= c.mce + 1e-12 <= 1 + 2e-12
    assert c.count.sum() == len(y) and len(c.count) == bins
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    again = calibration_error(z[order], y[order], bins)
    assert (again.ece, again.mce) == pytest.approx((c.ece, c.mce), abs=1e-12)
    as_probabilities = calibration_error(z.double().softmax(1), y, bins, probabilities=True)
    assert as_probabilities.ece == pytest.approx(c.ece, abs=1e-12)
    one = calibration_error(z, y, 1).ece
    assert one == pytest.approx(abs(z.double().softmax(1).amax(1).mean().item() - accuracy(z, y)), abs=1e-12)
    assert one <= c.ece + 1e-12  # merging bins lets gaps cancel


def test_calibration_extremes():
    y = torch.arange(10) % 3
    sure = F.one_hot(y, 3).double()
    ece = lambda labels: calibration_error(sure, labels, probabilities=True).ece
    assert ece(y) == 0 and ece((y + 1) % 3) == 1
    with pytest.raises(ValueError, match="at least one bin"):
        calibration_error(sure, y, 0)


# logits or probabilities


def known(n=2000, c=10):
    "Probabilities, and labels drawn from them: calibrated by construction."
    g = torch.Generator().manual_seed(0)
    p = (3 * torch.randn(n, c, generator=g)).double().softmax(1)
    return p, torch.multinomial(p, 1, generator=g)[:, 0]


ROUNDED = {
    "float32": lambda p: p.float(),
    "float16": lambda p: p.half(),
    "bfloat16": lambda p: p.bfloat16(),
    "three decimals": lambda p: (p * 1000).round() / 1000,
    "one row off by 1 %": lambda p: torch.cat([p[:1] * 0.99, p[1:]]),
    "a list of lists": lambda p: p.tolist(),
}


@pytest.mark.parametrize("way", ROUNDED)
def test_declared_probabilities_are_measured_however_they_were_rounded(way):
    p, y = known()
    q = ROUNDED[way](p)
    confidence, right = p.max(1).values, p.argmax(1) == y
    bins = (confidence * 15).ceil()
    ece = sum(abs((confidence - right.double())[bins == m].sum().item()) for m in range(1, 16)) / len(y)
    assert ece < 0.03 and calibration_error(q, y, probabilities=True).ece == pytest.approx(ece, abs=0.004)
    assert calibration_error(q, y, probabilities=False).ece > 0.3  # what a wrong guess would have said
    square = (p - F.one_hot(y, 10)).square().sum(1).mean().item()
    assert brier(q, y, probabilities=True) == pytest.approx(square, abs=0.002)
    if way != "three decimals":  # where a true class may have become 0
        assert temperature(q, y, probabilities=True) == pytest.approx(temperature(p.log(), y), rel=0.01)
    for measure in SCORED:
        with pytest.raises(ValueError, match="say probabilities=True") as e:
            measure(q, y)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("measure", SCORED)
def test_what_is_no_probability_is_refused_where_it_is_declared(measure):
    p, y = known(20)
    for q in (3 * p, p - 0.01, p.log(), torch.cat([p[:1] * 0.8, p[1:]]), p * 1.06):
        with pytest.raises(ValueError, match="probabilities must lie in 0..1 and sum to 1"):
            measure(q, y, probabilities=True)


@relaxed
@given(cases)
def test_logits_need_no_word_and_the_logarithm_of_a_probability_is_a_logit(case):
    z, y = case
    for measure in SCORED[:3]:
        told = lambda *a, **kw: getattr(v := measure(*a, **kw), "ece", v)
        want = told(z, y, probabilities=False)
        assert told(z.double().log_softmax(1), y) == pytest.approx(want, rel=1e-6, abs=1e-9)
    one = torch.tensor([[0.3, 0.7]])  # may be either
    assert brier(one, torch.tensor([1]), probabilities=True) == pytest.approx(0.18)
    assert brier(one, torch.tensor([1]), probabilities=False) == pytest.approx(2 * (1 / (1 + math.exp(0.4))) ** 2)


def test_a_temperature_needs_a_chance_for_every_true_class():
    with pytest.raises(ValueError, match="probability 0"):
        temperature(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), probabilities=True)


# temperature and Brier score

Z8 = torch.tensor([[3, 1, 0], [2, 2.5, 0], [0, 4, 1], [1, 0, 3], [5, 1, 1], [0, 1, 4], [2, 0, 1], [1, 3, 2]])
Y8 = torch.tensor([0, 0, 1, 2, 1, 2, 0, 1])


def test_temperature_worked():
    t = temperature(Z8, Y8)
    assert t == pytest.approx(1.48373289, abs=5e-9)
    assert nll(Z8, Y8) == pytest.approx(0.7933196414, abs=5e-11)
    assert nll(Z8.double() / t, Y8) == pytest.approx(0.7460659934, abs=1e-10)


@relaxed
@given(cases)
def test_temperature_is_the_minimum_that_another_method_finds(case):
    z, y = case
    t = temperature(z, y)
    want = minimize_scalar(
        lambda u: nll(z.double() / math.exp(u), y), bounds=(math.log(0.01), math.log(100)), method="bounded"
    )
    assert nll(z.double() / t, y) <= want.fun + 1e-9  # a value search is exact in the value, not in its place
    assert nll(z.double() / t, y) <= nll(z, y) + 1e-12


@relaxed
@given(cases, st.sampled_from([0.25, 2.0, 8.0]))
def test_temperature_laws(case, a):
    z, y = case
    z = z.double()
    t = temperature(z, y)
    assert torch.equal((z / t).argmax(1), z.argmax(1))
    assert accuracy(z / t, y) == accuracy(z, y)
    if 0.1 < t < 10:
        assert temperature(a * z, y) == pytest.approx(a * t, rel=1e-6)  # the unit of the logits
        assert temperature(z / t, y) == pytest.approx(1, rel=1e-6)  # once is enough
    assert temperature(z + 7, y) == pytest.approx(t, rel=1e-6)  # logits have no origin


def test_temperature_stays_within_its_bounds():
    z, y = torch.eye(3) * 2 - 1, torch.arange(3)
    assert temperature(z, y) == 0.01  # separable: the colder, the better
    assert temperature(z, y, bounds=(0.5, 4)) == 0.5
    assert temperature(z, (y + 1) % 3) == 100  # always wrong: the warmer, the better
    assert temperature(Z8, Y8, bounds=(2, 9)) == 2


@relaxed
@given(cases)
def test_brier_is_the_sum_of_scikit_learns_over_the_classes(case):
    z, y = case
    p = z.double().softmax(1).numpy()
    want = sum(brier_score_loss(y.numpy() == c, p[:, c], pos_label=1) for c in range(p.shape[1]))
    assert brier(z, y) == pytest.approx(want, abs=1e-12)
    assert brier(p, y, probabilities=True) == pytest.approx(want, abs=1e-9) and 0 <= want <= 2


def test_brier_extremes():
    y = torch.arange(10)
    told = lambda labels: brier(torch.eye(10), labels, probabilities=True)
    assert told(y) == 0 and told((y + 1) % 10) == 2
    assert brier(torch.zeros(10, 10), y) == pytest.approx(0.9)


# the ledger


def test_ledger_repeats_but_does_not_forget():
    z, y = sample(0)
    ledger = Ledger()
    first = ledger.score("probe", z, y)
    right = int((z.argmax(1) == y).sum())
    assert first.accuracy == accuracy(z, y) and (first.low, first.high) == interval(right, len(y))
    assert ledger.score("probe", z, y) == first and len(ledger.looks) == 1
    assert ledger.score("probe", z / 3.7, y) == first  # a temperature changes no prediction
    with pytest.raises(ValueError, match="claim 'probe' was already measured on the test set with other predictions"):
        ledger.score("probe", -z, y)
    assert ledger.scores() == [first]  # the refusal left nothing behind
    second = ledger.score("probe, mended", -z, y)
    assert list(ledger.looks) == ["probe", "probe, mended"] and second.accuracy != first.accuracy


def test_a_ledger_is_for_one_test_set():
    z, y = sample(0)
    ledger = Ledger()
    ledger.score("probe", z, y)
    for other in ((z[:5], y[:5]), (z, (y + 1) % 4), (z.flip(0), y.flip(0))):
        with pytest.raises(ValueError, match="one ledger for each test set"):
            ledger.score("another", *other)
    assert list(ledger.looks) == ["probe"]


def test_a_refused_first_look_leaves_the_ledger_empty():
    ledger = Ledger()
    with pytest.raises(ValueError, match="level must lie"):
        ledger.score("probe", *sample(0), level=95)
    assert ledger.looks == {} and ledger.y is None
    assert ledger.score("probe", *sample(1, n=5)).claim == "probe"


def test_later_changes_of_the_tensors_do_not_reach_the_ledger():
    z, y = sample(0)
    ledger = Ledger()
    before = ledger.score("probe", z, y)
    labels = y.clone()
    y.zero_()
    assert ledger.scores() == [before] and ledger.score("probe", z, labels) == before


@relaxed
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 3)), max_size=12))
def test_ledger_laws(looks):
    _, y = sample(0)
    models = {seed: sample(seed)[0] for seed in range(4)}
    ledger, seen = Ledger(), {}
    for claim, seed in looks:
        if seen.setdefault(claim, seed) == seed:
            assert ledger.score(claim, models[seed], y).accuracy == accuracy(models[seed], y)
        else:
            with pytest.raises(ValueError, match="choose on validation data, or name a new claim"):
                ledger.score(claim, models[seed], y)
    assert list(ledger.looks) == list(seen)
    assert 1 - ledger.level(0.95) == pytest.approx(0.05 / max(1, len(seen)))
    for s in ledger.scores():
        alone = ledger.score(s.claim, models[seen[s.claim]], y)
        assert s.low <= alone.low <= alone.high <= s.high and s.accuracy == alone.accuracy


def test_the_corrected_intervals_hold_together():
    "20 models, all of accuracy 0.7: at 95 % each, one of 20 intervals misses most of the time; corrected, seldom."
    rng, n, trials, level = np.random.default_rng(0), 400, 400, 1 - 0.05 / 20
    ledger = Ledger({str(i): torch.zeros(1) for i in range(20)})
    assert ledger.level() == pytest.approx(level)
    k = rng.binomial(n, 0.7, (trials, 20))
    ends = {each: np.array([interval(i, n, each) for i in range(n + 1)]) for each in (0.95, level)}
    all_hold = {each: ((e[k, 0] <= 0.7) & (0.7 <= e[k, 1])).all(1).mean() for each, e in ends.items()}
    assert all_hold[0.95] < 0.5 and all_hold[level] > 0.9
