"The objective: worked numbers, other people's solvers, and laws that must hold everywhere."

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad, minimize
from sklearn.linear_model import LogisticRegression
from torch import tensor
from torch.func import grad

from sft_nb.objective import dual, gap_bound, head_gap, head_loss, profile_bias, risk, separable, sq_dist

f64 = torch.float64
# fmt: off
X = tensor([
    [2, 0, 1], [3, 1, 0], [2, 1, 2], [1, 0, 0],
    [0, 2, 1], [1, 3, 0], [0, 2, 3], [-1, 2, 0],
    [-2, 0, 1], [-1, -1, 0], [-3, 0, 2], [-2, -1, -1],
], dtype=f64)
W_BEST = tensor([
    [0.9367966459, -0.3734446482, -0.0128393480],
    [-0.1676346683, 1.0077836615, 0.0429079703],
    [-0.7691619776, -0.6343390133, -0.0300686224],
], dtype=f64)
# fmt: on
Y = torch.arange(3).repeat_interleave(4)
B_BEST = tensor([0.3112122698, -0.5685869199, 0.2573746502], dtype=f64)
ONES = torch.cat([X, torch.ones(12, 1, dtype=f64)], 1)
F_BEST, F_BEST_PENALISED, L2 = 0.3007164088874905, 0.3095427647095774, 0.1


def close(a, b, tol):
    assert float(abs(torch.as_tensor(a, dtype=f64) - torch.as_tensor(b, dtype=f64)).max()) <= tol, (a, b)


def penalised(W):
    "The objective with its bias penalised: a column of ones in X, no b."
    return head_loss(W, torch.zeros(3, dtype=f64), ONES, Y, L2)


def random_problem(seed, n=20, d=4, c=3, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, d, generator=g, dtype=f64), torch.randint(0, c, (n,), generator=g)
    return x, y, scale * torch.randn(c, d, generator=g, dtype=f64), torch.randn(c, generator=g, dtype=f64)


def solve(x, y, c, l2, seed=0, weights=None):
    "Another solver: SciPy's BFGS, from a random start; ours is only asked for F."
    d = x.shape[1]

    def fun(v):
        v = torch.tensor(v, requires_grad=True)
        F = head_loss(v[: c * d].view(c, d), v[c * d :], x, y, l2, weights)
        F.backward()
        return F.item(), v.grad.numpy()

    start = np.random.default_rng(seed).normal(size=c * d + c)
    v = torch.tensor(minimize(fun, start, jac=True, method="BFGS", options=dict(gtol=1e-11, maxiter=5000)).x)
    return v[: c * d].view(c, d), v[c * d :]


# --- the worked numbers -----------------------------------------------------------------------------------------


def test_worked_free_bias_argmin():
    close(head_loss(W_BEST, B_BEST, X, Y, L2), F_BEST, 1e-13)
    close(risk(X @ W_BEST.T + B_BEST, Y), 0.1478321914987642, 1e-8)
    close(profile_bias(W_BEST, X, Y), B_BEST, 1e-8)
    assert head_gap(W_BEST, B_BEST, X, Y, L2) < 1e-13


def test_worked_profiled_certificate():
    W = tensor([[0.5, -0.2, 0.1], [0, 0.3, -0.1], [-0.4, 0.1, 0.2]], dtype=f64)
    b = profile_bias(W, X, Y)
    close(b, tensor([0.11051323, 0.08645131, -0.19696454], dtype=f64), 1e-8)
    F, lower = head_loss(W, b, X, Y, L2), dual(torch.softmax(X @ W.T + b, 1), X, Y, L2)
    close(F, 0.629887256797551, 1e-13)
    close(lower, -1.4900465841554018, 1e-12)
    close(gap_bound(grad(head_loss)(W, b, X, Y, L2), L2), 2.1199338409529527, 1e-12)
    close(head_gap(W, b, X, Y, L2), 2.1199338409529527, 1e-12)
    close(F - F_BEST, 0.3291708479, 1e-10)


@pytest.mark.parametrize(
    "W, F, certificate",
    [
        (torch.zeros(3, 4, dtype=f64), math.log(3), 6.666666666666667),
        (torch.linspace(-1, 1, 12, dtype=f64).view(3, 4), 4.108201775548132, 26.400835362730348),
    ],
)
def test_worked_penalised_bias(W, F, certificate):
    close(penalised(W), F, 1e-13)
    close(gap_bound(grad(penalised)(W), L2), certificate, 1e-12)
    close(F - dual(torch.softmax(ONES @ W.T, 1), ONES, Y, L2, free_bias=False), certificate, 1e-12)
    smooth = L2 + 0.5 * torch.linalg.eigvalsh(ONES.T @ ONES / 12).max().item()
    close(smooth, 2.0082116921, 1e-10)
    assert gap_bound(grad(penalised)(W), smooth) <= F - F_BEST_PENALISED <= certificate


def test_worked_dual_at_zero():
    close(dual(torch.full((12, 3), 1 / 3, dtype=f64), ONES, Y, L2, free_bias=False), -5.568054377998557, 1e-12)


def test_worked_runaway():
    "Data (+1, +1), (-1, -1), gradient descent with step 1 from 0: w follows log t."
    x, y, u = tensor([[1.0], [-1.0]], dtype=f64), tensor([1, 0]), torch.zeros(1, dtype=f64)
    loss = lambda u: head_loss(torch.stack([-u / 2, u / 2]), torch.zeros(2, dtype=f64), x, y, 0.0)
    seen = {}
    for t in range(1, 1001):
        u = u - grad(loss)(u)
        seen[t] = u.item()
    close(tensor([seen[10], seen[100], seen[1000]]), tensor([2.2632, 4.5892, 6.9050]), 5e-5)
    assert separable(x, y)


# --- oracles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2", [0.01, 0.1, 1.0])
def test_argmin_is_sklearns(l2):
    sk = LogisticRegression(C=1 / (12 * l2), tol=1e-12, max_iter=10_000).fit(X.numpy(), Y.numpy())
    W, b = torch.tensor(sk.coef_), torch.tensor(sk.intercept_)
    assert head_gap(W, profile_bias(W, X, Y), X, Y, l2) < 1e-10
    close(W.sum(0), torch.zeros(3), 1e-6)
    close(profile_bias(W, X, Y), b - b.mean(), 1e-5)


def test_argmin_is_scipys_from_two_starts():
    for seed in (0, 1):
        W, b = solve(X, Y, 3, L2, seed)
        close(head_loss(W, b, X, Y, L2), F_BEST, 1e-12)
        close(W, W_BEST, 1e-6)
        close(b - b.mean(), B_BEST, 1e-6)


def test_weights_are_sklearns_sample_weights():
    w = torch.linspace(0.2, 3, 12, dtype=f64)
    sk = LogisticRegression(C=1 / (w.sum().item() * L2), tol=1e-12, max_iter=10_000)
    W = torch.tensor(sk.fit(X.numpy(), Y.numpy(), sample_weight=w.numpy()).coef_)
    b = profile_bias(W, X, Y, w)
    assert head_gap(W, b, X, Y, L2, w) < 1e-10
    assert head_gap(W, b, X, Y, L2) > 1e-3  # and it is not the argmin of the unweighted problem


def test_gradient_by_finite_differences():
    x, y, W, b = random_problem(3)
    w = torch.rand(20, dtype=f64)
    view = lambda v: (torch.tensor(v[:12]).view(3, 4), torch.tensor(v[12:]))
    F = lambda v: head_loss(*view(v), x, y, 0.3, w).item()
    G = lambda v: torch.cat([g.flatten() for g in grad(head_loss, argnums=(0, 1))(*view(v), x, y, 0.3, w)]).numpy()
    assert check_grad(F, G, torch.cat([W.flatten(), b]).numpy()) < 1e-6


# --- laws -----------------------------------------------------------------------------------------------------------

seeds, scales, l2s = st.integers(0, 10_000), st.floats(0, 30), st.floats(1e-4, 10)
few = settings(max_examples=40, deadline=None)


@few
@given(seeds, scales, l2s)
def test_duality_gap_is_the_certificate(seed, scale, l2):
    "At every head, near the argmin or far from it: for a profiled bias, and where there is none."
    x, y, W, _ = random_problem(seed, scale=scale)
    b = profile_bias(W, x, y)
    G, g = grad(head_loss, argnums=(0, 1))(W, b, x, y, l2)
    present = torch.bincount(y, minlength=3) > 0
    assert g[present].abs().max() < 1e-10
    certificate = gap_bound(G, l2)
    assert abs(head_gap(W, b, x, y, l2) - certificate) <= 1e-8 * (1 + certificate)
    zero = torch.zeros(3, dtype=f64)
    certificate = gap_bound(grad(head_loss)(W, zero, x, y, l2), l2)
    difference = head_loss(W, zero, x, y, l2).item() - dual(torch.softmax(x @ W.T, 1), x, y, l2, free_bias=False)
    assert abs(difference - certificate) <= 1e-8 * (1 + certificate)


@settings(max_examples=15, deadline=None)
@given(seeds, st.floats(0, 5), st.floats(0.01, 1), st.booleans())
def test_certificate_is_never_below_the_true_gap(seed, scale, l2, weighted):
    x, y, W, b = random_problem(seed, scale=scale)
    y[:3] = torch.arange(3)
    w = torch.rand(20, generator=torch.Generator().manual_seed(seed), dtype=f64) if weighted else None
    F_star = head_loss(*solve(x, y, 3, l2, weights=w), x, y, l2, w).item()
    assert head_gap(W, b, x, y, l2, w) >= head_loss(W, b, x, y, l2, w).item() - F_star - 1e-12
    b = profile_bias(W, x, y, w)
    true = head_loss(W, b, x, y, l2, w).item() - F_star
    assert gap_bound(grad(head_loss)(W, b, x, y, l2, w), l2) >= true - 1e-12


@few
@given(seeds, l2s)
def test_the_dual_is_a_lower_bound_at_any_q(seed, l2):
    "Whatever q, whatever head: weak duality."
    x, y, W, b = random_problem(seed)
    q = torch.distributions.Dirichlet(torch.full((3,), 0.3, dtype=f64)).sample((20,))
    assert dual(q, x, y, l2) <= head_loss(W, b, x, y, l2).item() + 1e-12
    assert dual(q, x, y, l2, free_bias=False) <= head_loss(W, torch.zeros(3), x, y, l2).item() + 1e-12


def test_an_unprofiled_gradient_certifies_nothing():
    "Why the bias is profiled: with features of zero the gradient of W is 0, and the gap is not."
    x, y = torch.zeros(4, 1, dtype=f64), tensor([0, 0, 0, 1])
    W, b = torch.zeros(2, 1, dtype=f64), torch.zeros(2, dtype=f64)
    true = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert gap_bound(grad(head_loss)(W, b, x, y, L2), L2) == 0 < true
    assert head_gap(W, b, x, y, L2) >= true - 1e-12
    close(profile_bias(W, x, y).diff(), -math.log(3), 1e-12)
    assert head_gap(W, profile_bias(W, x, y), x, y, L2) < 1e-12


@pytest.mark.parametrize("margin", [5.0, 20.0, 100.0, 300.0])
def test_a_bias_that_is_nearly_the_best_is_seen(margin):
    "Two sure rows and a bias off by 3, where the gradient by W vanishes: its norm claims 0, the gap counts what is owed."
    x, y = tensor([[-1.0], [1.0]], dtype=f64), tensor([0, 1])
    slope = 1 / (1 + math.exp(margin - 3)) + 1 / (1 + math.exp(margin + 3))
    l2, W = slope / margin, tensor([[-margin / 2], [margin / 2]], dtype=f64)
    b = tensor([-1.5, 1.5], dtype=f64)
    loss = lambda b: (math.log1p(math.exp(b - margin)) + math.log1p(math.exp(-b - margin))) / 2
    owed = loss(3) - loss(0)  # at least: W could be better too
    assert head_gap(W, b, x, y, l2) >= owed > 0
    if margin < 30:  # beyond, 1 - p is zero in float64
        assert gap_bound(grad(head_loss)(W, b, x, y, l2), l2) < 1e-6 * owed
    close(profile_bias(W, x, y), torch.zeros(2), 1e-6)
    assert head_gap(W, profile_bias(W, x, y), x, y, l2) < 1000 * owed  # as far in as e^-300


@few
@given(seeds, st.floats(0, 20))
def test_profiled_bias_beats_any_other(seed, scale):
    x, y, W, b = random_problem(seed, scale=scale)
    best = head_loss(W, profile_bias(W, x, y), x, y, 0.0).item()
    for other in (b, 10 * b, profile_bias(W, x, y) + 0.01 * b):
        assert best <= head_loss(W, other, x, y, 0.0).item() + 1e-12
    shift = tensor([0.0, 5.0, -3.0], dtype=f64)
    twisted = torch.cat([x, torch.ones(20, 1, dtype=f64)], 1), torch.cat([W, shift[:, None]], 1)  # a bias inside W
    moved = head_loss(twisted[1], profile_bias(twisted[1], twisted[0], y), twisted[0], y, 0.0).item()
    assert abs(moved - best) < 1e-10


@few
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12).filter(any))
def test_integer_weights_are_repetitions(counts):
    w, again = torch.tensor(counts), torch.repeat_interleave(torch.arange(12), torch.tensor(counts))
    _, _, W, b = random_problem(1, d=3)
    x, y = X[again], Y[again]
    close(risk(X @ W.T + b, Y, w), risk(x @ W.T + b, y), 1e-12)
    close(head_loss(W, b, X, Y, L2, 7.5 * w), head_loss(W, b, x, y, L2), 1e-12)
    close(profile_bias(W, X, Y, w), profile_bias(W, x, y), 1e-6)
    close(head_gap(W, b, X, Y, L2, w), head_gap(W, b, x, y, L2), 1e-9)


def test_sq_dist_is_one_function_for_two_penalties():
    theta, pre = dict(a=tensor([3.0, 4.0]), b=tensor(12.0)), dict(a=tensor([3.0, 3.0]), b=tensor(10.0), c=tensor(9.0))
    assert sq_dist(theta) == 169 and sq_dist(theta, pre) == 5 and sq_dist(theta, theta) == 0 and sq_dist({}) == 0
    p = tensor([3.0, 4.0], requires_grad=True)
    (sq_dist(dict(p=p)) / 2).backward()
    close(p.grad, p.detach(), 0)


# --- extremes -------------------------------------------------------------------------------------------------------


def test_huge_logits():
    z = tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    close(risk(z, tensor([1, 1])), 1e4, 0)
    assert risk(z, tensor([0, 1])) == 0
    assert torch.autograd.functional.jacobian(lambda z: risk(z, tensor([1, 1])), z).isfinite().all()


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_certificate_survives_huge_logits(scale, seed):
    "However far a head has run away, the bound is finite and true."
    x, y, W, b = random_problem(seed, scale=scale)
    F_star = head_loss(*solve(x, y, 3, 0.1), x, y, 0.1).item()
    for bias in (b, scale * b, profile_bias(W, x, y)):
        F = head_loss(W, bias, x, y, 0.1).item()
        assert F - F_star <= head_gap(W, bias, x, y, 0.1) * (1 + 1e-12) < math.inf


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
def test_absent_classes(scale):
    "A class without examples goes as far down as float64 can tell; the others do not notice."
    x, y, W, _ = random_problem(5, c=3, scale=scale)
    extra = scale * torch.randn(2, 4, generator=torch.Generator().manual_seed(9), dtype=f64)
    wide = torch.cat([W[:1], extra[:1], W[1:], extra[1:]])  # classes 1 and 4 never occur
    to = tensor([0, 2, 3])
    b, b_wide = profile_bias(W, x, y), profile_bias(wide, x, to[y])
    if scale <= 1:  # at huge logits the best bias is known to a flat valley only, the loss below is not
        close(b_wide[to], b, 1e-9)
    p = torch.softmax(x @ wide.T + b_wide, 1)
    assert b_wide.isfinite().all() and p[:, [1, 4]].max() <= math.exp(-40) * 1.001
    F, F_wide = head_loss(W, b, x, y, L2), head_loss(wide, b_wide, x, to[y], L2)
    close(F_wide - F, L2 / 2 * extra.square().sum(), 1e-9 * (1 + float(F_wide)))


def test_certificate_with_an_absent_class():
    "Its row of W goes to zero, its bias has no optimum; the bound still closes on the problem without it."
    W, b = solve(X, Y, 3, L2)
    wide = torch.cat([W, torch.zeros(1, 3, dtype=f64)])
    assert head_gap(wide, profile_bias(wide, X, Y), X, Y, L2) < 1e-12
    b_up = torch.cat([b, tensor([0.0], dtype=f64)])  # a bias that some optimiser left behind
    true = head_loss(wide, b_up, X, Y, L2).item() - F_BEST
    assert true > 0.1 and head_gap(wide, b_up, X, Y, L2) >= true


def test_one_class_alone_and_one_example():
    W = torch.zeros(3, 3, dtype=f64)
    for x, y in ((X[:4], Y[:4]), (X[:1], Y[:1])):
        b = profile_bias(W, x, y)
        assert head_loss(W, b, x, y, L2) < 1e-15 and head_gap(W, b, x, y, L2) < 1e-15
        assert separable(x, y)


def test_certificates_are_float64_whatever_comes_in():
    W, b, x = W_BEST.float(), B_BEST.float(), X.float()
    assert profile_bias(W, x, Y).dtype == f64
    assert 0 <= head_gap(W, profile_bias(W, x, Y), x, Y, L2) < 1e-12  # float32's own noise is near 1e-7
    assert head_gap(W.requires_grad_(), b, x, Y, L2) < 1e-10
    assert not profile_bias(W, x, Y).requires_grad


# --- when there is no argmin ----------------------------------------------------------------------------------------

line = tensor([[-2.0], [-1.0], [1.0], [2.0]])


@pytest.mark.parametrize(
    "x, y, strict, quasi",
    [
        (line, [0, 0, 1, 1], True, True),
        (line, [0, 1, 0, 1], False, False),
        (line, [5, 5, 9, 9], True, True),  # class numbers need not be dense
        (tensor([[-1.0], [0.0], [0.0], [1.0]]), [0, 0, 1, 1], False, True),  # they touch
        (torch.zeros(4, 2), [0, 0, 1, 1], False, False),
        (tensor([[0.0, 0], [1, 1], [0, 1], [1, 0]]), [0, 0, 1, 1], False, False),  # exclusive or
    ],
)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_separable_on_cases_one_can_draw(x, y, strict, quasi, scale):
    assert separable(scale * x + 3 * scale, tensor(y)) is strict
    assert separable(scale * x + 3 * scale, tensor(y), quasi=True) is quasi


def test_separable_toy_and_its_exchange():
    "With two labels exchanged no head sorts the points, yet a direction remains in which the loss only falls."
    mixed = Y.clone()
    mixed[[3, 9]] = Y[[9, 3]]
    assert separable(X, Y) and not separable(X, mixed) and separable(X, mixed, quasi=True)
    norms = [solve(X, mixed, 3, l2)[0].norm().item() for l2 in (1e-3, 1e-4, 1e-5)]
    assert norms[1] > norms[0] + 1 and norms[2] > norms[1] + 1  # it runs away as the penalty goes to zero


def test_overlap_has_an_argmin():
    x, y, _, _ = random_problem(0, n=60, d=2)
    assert not separable(x, y, quasi=True)
    norms = [solve(x, y, 3, l2)[0].norm().item() for l2 in (1e-5, 1e-7)]
    assert abs(norms[1] - norms[0]) < 1e-3


def test_separable_does_not_depend_on_units():
    "A feature far from zero or in a tiny unit still separates."
    loud = tensor([[1e6], [-1e6], [1e6], [-1e6]], dtype=f64)
    quiet = line.double() * 1e-8
    assert not separable(loud, tensor([0, 0, 1, 1]))
    assert separable(torch.cat([loud, quiet], 1), tensor([0, 0, 1, 1]))
    assert separable(1e6 + 1e-6 * line.double(), tensor([0, 0, 1, 1]))


@pytest.mark.parametrize("seed", range(3))
def test_as_many_features_as_examples_separate_any_labels(seed):
    x, y, _, _ = random_problem(seed, n=15, d=14, c=4)
    assert separable(x, y)
    assert separable(torch.cat([x, x], 1), y)  # collinear features change nothing
    assert not separable(torch.cat([x, x]), torch.cat([y, (y + 1) % 4]))  # one picture, two labels


@few
@given(seeds)
def test_separable_means_a_head_that_sorts(seed):
    "Labels given by a head are separable; the LP's verdict does not depend on the features' coordinates."
    x, y, W, b = random_problem(seed, n=12, d=2)
    assert separable(x, (x @ W.T + b).argmax(1))
    A = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed + 1), dtype=f64) + 3 * torch.eye(2, dtype=f64)
    assert separable(x, y) == separable(x @ A + 7, y) and separable(x, y) <= separable(x, y, quasi=True)


# --- bad input ------------------------------------------------------------------------------------------------------

W, B = torch.zeros(3, 3, dtype=f64), torch.zeros(3, dtype=f64)
Q = torch.full((12, 3), 1 / 3, dtype=f64)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: gap_bound(W, 0.0), "needs strong convexity"),
        (lambda: gap_bound(W, -1.0), "needs strong convexity"),
        (lambda: gap_bound(W, math.nan), "needs strong convexity"),
        (lambda: gap_bound(W * math.nan, 1.0), "finite gradient"),
        (lambda: risk(torch.zeros(2, 3), tensor([0, 3])), "labels must lie in 0..2 for 3 classes; found 3"),
        (lambda: risk(torch.zeros(2, 3), tensor([0, -100])), "found -100"),
        (lambda: risk(torch.zeros(2, 3), tensor([0])), "2 examples need 2 labels"),
        (lambda: risk(torch.zeros(2, 3), tensor([[0], [1]])), "2 examples need 2 labels"),
        (lambda: risk(torch.zeros(2, 3), tensor([0.0, 1.0])), "labels must be integers"),
        (lambda: risk(torch.zeros(0, 3), tensor([], dtype=torch.int64)), "one at least"),
        (lambda: risk(torch.zeros(3), tensor([0])), "risk needs logits"),
        (lambda: risk(torch.zeros(2, 3), tensor([0, 1]), tensor([1.0])), "weights must be 2 numbers"),
        (lambda: risk(torch.zeros(2, 3), tensor([0, 1]), tensor([1.0, -1.0])), "weights must be"),
        (lambda: risk(torch.zeros(2, 3), tensor([0, 1]), tensor([0.0, 0.0])), "weights must be"),
        (lambda: risk(torch.zeros(2, 3), tensor([0, 1]), tensor([1.0, math.nan])), "weights must be"),
        (lambda: head_loss(W[:, :2], B, X, Y, L2), "a head needs W"),
        (lambda: head_loss(W, B[:2], X, Y, L2), "a head needs W"),
        (lambda: head_loss(W, B, X, Y, -0.1), "must be >= 0"),
        (lambda: head_loss(W[:2], B[:2], X, Y, L2), "labels must lie in 0..1"),
        (lambda: dual(Q, X, Y, 0.0), "dual needs l2 > 0"),
        (lambda: dual(Q[:5], X, Y, L2), "dual needs"),
        (lambda: dual(2 * Q, X, Y, L2), "probability distribution"),
        (lambda: dual(Q * math.nan, X, Y, L2), "probability distribution"),
        (lambda: head_gap(W, B, X, Y, 0.0), "l2 > 0"),
        (lambda: head_gap(W * math.inf, B, X, Y, L2), "no gap to bound"),
        (lambda: profile_bias(W[:, :2], X, Y), "profile_bias needs"),
        (lambda: profile_bias(W * math.nan, X, Y), "finite logits"),
        (lambda: profile_bias(W, X, Y + 1), "labels must lie in"),
        (lambda: separable(X * math.nan, Y), "finite features"),
        (lambda: separable(X[0], Y), "features [N, D]"),
        (lambda: separable(X, Y - 1), "labels must lie in"),
        (lambda: separable(X, Y[:3]), "12 examples need 12 labels"),
        (lambda: sq_dist(dict(a=B), dict(b=B)), "a is [3] but its anchor is nothing"),
        (lambda: sq_dist(dict(a=B), dict(a=B[:1])), "a is [3] but its anchor is [1]"),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, says):
    with pytest.raises(ValueError) as e:
        call()
    assert says in str(e.value) and "\n" not in str(e.value)


# --- the chain of constraints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_freezing_never_lowers_the_minimum(seed):
    "min over everything <= min over the head <= the start: the sets are nested."
    g = torch.Generator().manual_seed(seed)
    A, y = torch.randn(2, 3, generator=g, dtype=f64), torch.arange(12) % 3
    F = lambda W, A: head_loss(W, B, torch.tanh(X @ A.T), y, 0.01) + 0.005 * sq_dist(dict(A=A))
    ends = [F(torch.zeros(3, 2, dtype=f64), A).item()]
    W = torch.zeros(3, 2, dtype=f64, requires_grad=True)
    for learn in ([W], [W, A]):
        opt = torch.optim.LBFGS([p.requires_grad_() for p in learn], max_iter=500, line_search_fn="strong_wolfe")

        def closure(opt=opt):
            opt.zero_grad()
            loss = F(W, A)
            loss.backward()
            return loss

        opt.step(closure)
        ends.append(F(W, A).item())
    assert ends[2] < ends[1] < ends[0]
