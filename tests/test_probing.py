"The head's optimum: against scikit-learn, SciPy and worked numbers, and the certificate never below the true gap."

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

from sft_nb.features import Features
from sft_nb.objective import head_gap, head_loss
from sft_nb.probing import choose, cross_validate, l2_path, ridge_head, solve_head

X = torch.tensor(
    [[2, 0, 1], [3, 1, 0], [2, 1, 2], [1, 0, 0], [0, 2, 1], [1, 3, 0], [0, 2, 3], [-1, 2, 0],
     [-2, 0, 1], [-1, -1, 0], [-3, 0, 2], [-2, -1, -1]], dtype=torch.float32
)  # fmt: skip
TOY = Features(X, torch.arange(3).repeat_interleave(4))


def random_problem(n, d, c, seed=0, scale=1.0, decay=0.0, overlap=1.0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % c
    x = torch.randn(c, d, generator=g)[y] + overlap * 2 * torch.randn(n, d, generator=g)
    return Features((x * torch.arange(1, d + 1) ** -decay * scale).float(), y)


def sklearn_loss(f, l2, **kw):
    "F at scikit-learn's optimum, in float64."
    two = 2 if f.y.max() == 1 else 1  # with two classes it penalises w = W_1 - W_0, and ||W||^2 = ||w||^2 / 2
    m = LogisticRegression(C=two / (len(f) * l2), tol=1e-12, max_iter=50_000, **kw).fit(
        f.x.double().numpy(), f.y.numpy()
    )
    W, b = torch.from_numpy(m.coef_), torch.from_numpy(m.intercept_)
    if len(W) == 1:  # two classes: one row, the logit's difference
        W, b = torch.cat([-W, W]) / 2, torch.cat([-b, b]) / 2
        return head_loss(W, b, f.x.double(), f.y, l2).item()
    return head_loss(W, b, f.x.double(), f.y, l2).item()


def test_worked_numbers():
    p = solve_head(TOY, 3, l2=0.1, tol=1e-13)
    assert p.loss == pytest.approx(0.3007164088874905, abs=1e-12)
    W = [
        [0.9367966459, -0.3734446482, -0.0128393480],
        [-0.1676346683, 1.0077836615, 0.0429079703],
        [-0.7691619776, -0.6343390133, -0.0300686224],
    ]
    assert torch.allclose(p.W, torch.tensor(W, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(
        p.b - p.b.mean(), torch.tensor([0.3112122698, -0.5685869199, 0.2573746502], dtype=torch.float64), atol=1e-6
    )
    assert p.W.sum(0).abs().max() < 1e-10


PROBLEMS = {
    "plain": (random_problem(300, 20, 5), 1e-2),
    "weak penalty": (random_problem(300, 20, 5, seed=1), 1e-6),
    "ill-conditioned": (random_problem(400, 30, 4, seed=2, decay=2.0), 1e-4),
    "fewer rows than columns": (random_problem(40, 200, 4, seed=3), 1e-3),
    "huge scale": (random_problem(200, 10, 3, seed=4, scale=1e3), 1e-1),
    "tiny scale": (random_problem(200, 10, 3, seed=5, scale=1e-3), 1e-7),
    "two classes": (random_problem(200, 10, 2, seed=6), 1e-2),
    "a hundred classes": (random_problem(1000, 30, 100, seed=7), 1e-3),
    "separable": (random_problem(200, 20, 4, seed=8, overlap=0.05), 1e-5),
    "constant and dead columns": (Features(torch.cat([random_problem(200, 6, 3, seed=9).x, torch.full((200, 2), 7.0), torch.zeros(200, 2)], 1), torch.arange(200) % 3), 1e-3),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_agrees_with_scikit_learn(name):
    f, l2 = PROBLEMS[name]
    p = solve_head(f, int(f.y.max()) + 1, l2, tol=1e-10)
    assert p.gap <= 1e-10
    assert p.loss == pytest.approx(head_loss(p.W, p.b, f.x.double(), f.y, l2).item(), rel=1e-12, abs=1e-14)
    assert -1e-10 <= sklearn_loss(f, l2) - p.loss + 2e-10 and abs(sklearn_loss(f, l2) - p.loss) < 1e-6


@pytest.mark.parametrize("scale,log_l2", [(1.0, -4), (30.0, -5), (1e-3, -3)])
def test_a_large_problem_takes_float32_steps_to_a_float64_certificate(scale, log_l2):
    f, l2 = random_problem(4000, 300, 5, seed=4, scale=scale, decay=0.5), 10.0**log_l2
    assert f.x.numel() > 1e6  # the size from which on directions are computed in float32
    p = solve_head(f, 5, l2)
    assert p.gap <= 1e-8
    assert head_gap(p.W, p.b, f.x, f.y, l2) <= 1.1e-8
    assert abs(p.loss - sklearn_loss(f, l2, solver="newton-cholesky")) < 1e-6


def test_features_far_from_zero_are_no_harder():
    f = random_problem(4000, 300, 5, seed=5)
    far = Features(f.x + 50, f.y)
    p, q = solve_head(f, 5, 1e-3), solve_head(far, 5, 1e-3)
    assert q.gap <= 1e-8 and abs(p.loss - q.loss) < 1e-6


def test_a_thousand_classes():
    f = random_problem(3000, 16, 1000, seed=10)
    p = solve_head(f, 1000, 1e-2)
    assert p.gap <= 1e-8 and head_gap(p.W, p.b, f.x, f.y, 1e-2) <= 2e-8


MANY = """
import torch
from sft_nb.core import measure
from sft_nb.features import Features
from sft_nb.objective import head_gap
from sft_nb.probing import solve_head

torch.manual_seed(0)
n, c = 30_000, 500
y = torch.arange(n) % c
f = Features(torch.randn(c, 16)[y] + torch.randn(n, 16), y)
solve = measure(solve_head, f, c, 0.1)
array = measure(torch.ones, c, n, dtype=torch.float64)
p = solve.result
print(solve.peak_bytes, array.peak_bytes, p.gap, head_gap(p.W, p.b, f.x, f.y, 0.1))
"""


def test_nothing_as_large_as_all_logits_is_alive_where_classes_are_many():
    env = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # what is freed goes back at once: the mark is what was alive
    small = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    run = [sys.executable, "-c", small, MANY]  # a child begins with its parent's mark, so its parent is a small one
    out = subprocess.run(run, capture_output=True, text=True, check=True, env=env).stdout
    peak, array, said, true = map(float, out.split())
    whole = 8 * 30_000 * 500  # bytes of all logits in float64
    assert peak < 0.5 * whole
    assert array > 0.5 * whole  # one such array, after the solver, does raise the mark
    assert said <= 1e-8 and true <= 2e-8


def test_three_hundred_classes_agree_with_scikit_learn():
    f = random_problem(14_500, 12, 300, seed=15)  # so many logits that they are computed anew in every pass
    w = (torch.arange(len(f)) % 29 != 0).double()  # and some rows do not count
    p = solve_head(f, 300, 1e-2, weights=w)
    assert p.gap <= 1e-8 and abs(sklearn_loss(f[w > 0], 1e-2) - p.loss) < 1e-6


def test_newton_cholesky_is_another_route_to_the_same_optimum():
    f, l2 = PROBLEMS["plain"]
    assert sklearn_loss(f, l2, solver="newton-cholesky") == pytest.approx(
        solve_head(f, 5, l2, tol=1e-12).loss, abs=1e-9
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 5), st.integers(1, 12), st.integers(6, 60), st.floats(-5, 0), st.floats(-1, 1), st.integers(0, 10**6)
)
def test_the_certificate_is_never_below_the_true_gap(c, d, n, log_l2, log_scale, seed):
    f = random_problem(max(n, c), d, c, seed, scale=10**log_scale)
    l2 = 10**log_l2
    rough, fine = (solve_head(f, c, l2, tol) for tol in (1e-2, 1e-11))
    assert fine.gap <= 1e-11 and rough.gap <= 1e-2
    assert rough.loss - fine.loss <= rough.gap + 1e-12
    assert rough.loss >= fine.loss - fine.gap - 1e-14
    assert rough.gap == pytest.approx(head_gap(rough.W, rough.b, f.x, f.y, l2), rel=0.02, abs=1e-9)


def test_a_class_without_examples_is_improbable_and_the_rest_unchanged():
    f = Features(TOY.x, torch.tensor([0, 3, 4])[TOY.y])
    p, q = solve_head(f, 6, 0.1), solve_head(TOY, 3, 0.1)
    assert p.loss == pytest.approx(q.loss, abs=1e-9) and torch.isfinite(p.b).all()
    assert p.logits(TOY.x.double()).softmax(1)[:, [1, 2, 5]].max() < 1e-17


def test_weights_are_repeated_rows():
    weights = torch.tensor([1, 2, 3] * 4)
    a = solve_head(TOY, 3, 0.1, weights=weights, tol=1e-12)
    b = solve_head(TOY[torch.arange(12).repeat_interleave(weights)], 3, 0.1, tol=1e-12)
    assert a.loss == pytest.approx(b.loss, abs=1e-11) and torch.allclose(a.W, b.W, atol=1e-5)
    zero = weights * (torch.arange(12) != 5)
    c = solve_head(TOY[torch.arange(12) != 5], 3, 0.1, weights=weights[torch.arange(12) != 5], tol=1e-12)
    assert solve_head(TOY, 3, 0.1, weights=zero, tol=1e-12).loss == pytest.approx(c.loss, abs=1e-11)


def test_class_weights_are_weights():
    per_class = torch.tensor([1.0, 2.0, 0.5])
    a = solve_head(TOY, 3, 0.1, class_weights=per_class)
    assert torch.allclose(a.W, solve_head(TOY, 3, 0.1, weights=per_class[TOY.y]).W, atol=1e-9)


def test_half_precision_and_memory_mapped_features_are_read_not_copied():
    f = PROBLEMS["plain"][0]
    half = Features(f.x.bfloat16(), f.y)
    p = solve_head(half, 5, 1e-2)
    assert p.loss == pytest.approx(head_loss(p.W, p.b, half.x.double(), f.y, 1e-2).item(), abs=1e-12)


def test_the_path_is_the_single_solves():
    f, l2s = PROBLEMS["plain"][0], [1e-1, 1e-4, 1e-2]
    path = l2_path(f, 5, l2s)
    assert [p.l2 for p in path] == l2s and all(p.gap <= 1e-8 for p in path)
    for p in path:
        assert p.loss == pytest.approx(solve_head(f, 5, p.l2, tol=1e-11).loss, abs=2e-8)


def test_choose_takes_the_best_on_validation_and_the_larger_l2_of_equals():
    f = random_problem(200, 10, 3, seed=11)
    path, valid = l2_path(f[:100], 3, [1e-4, 1e-2, 1.0]), f[100:]
    right = [(p.logits(valid.x).argmax(1) == valid.y).sum().item() for p in path]
    best = choose(path, valid)
    assert (best.logits(valid.x).argmax(1) == valid.y).sum().item() == max(right)
    assert best.l2 == max(p.l2 for p, r in zip(path, right, strict=True) if r == max(right))


def test_cross_validation_leaves_each_fold_out():
    f = random_problem(120, 8, 3, seed=12)
    scores = cross_validate(f, 3, [1e-3, 1e-1], folds=4, seed=0)
    assert scores.shape == (2, 4) and 0 <= scores.min() and scores.max() <= 1
    assert torch.equal(scores, cross_validate(f, 3, [1e-3, 1e-1], folds=4, seed=0))
    noise = Features(f.x, f.y[torch.randperm(120, generator=torch.Generator().manual_seed(0))])
    assert cross_validate(noise, 3, [1e-1], folds=4).mean() < 0.5 < scores.mean()


def test_ridge_worked_numbers():
    (r,) = ridge_head(TOY, 3, [0.1])  # N l2 = 1.2
    W = [
        [0.2442486394, -0.0810625203, -0.1631861191],
        [-0.1749496293, 0.3530723108, -0.1781226814],
        [0.0481253026, -0.0323985321, -0.0157267705],
    ]
    assert torch.allclose(r.W.T, torch.tensor(W, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(r.b, torch.tensor([0.4284515784, 0.0928279993, 0.4787204223], dtype=torch.float64), atol=1e-9)
    assert r.loo == pytest.approx(0.0745607988387710, abs=1e-12) and r.dof == pytest.approx(3.8082091624, abs=1e-9)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (12, 40)])
def test_ridge_leave_one_out_is_refitting(n, d):
    f = random_problem(n, d, 3, seed=13)
    Y = torch.nn.functional.one_hot(f.y, 3).double().numpy()
    for r in ridge_head(f, 3, [1e-2, 1.0]):
        errors = []
        for i in range(n):
            keep = np.arange(n) != i
            m = Ridge(alpha=n * r.l2).fit(f.x[keep].double().numpy(), Y[keep])
            errors.append((m.predict(f.x[i : i + 1].double().numpy()) - Y[i]) ** 2)
        assert r.loo == pytest.approx(np.mean(errors), rel=1e-8)


BAD = {
    "nan": (
        Features(torch.tensor([[1.0], [float("nan")], [2.0]]), torch.tensor([0, 1, 0])),
        2,
        0.1,
        r"1 rows .* \[1\]",
    ),
    "labels": (TOY, 2, 0.1, "0..1; found 0 to 2"),
    "negative": (TOY, 3, -1.0, "must be >= 0; got .-1"),
    "empty": (Features(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)), 3, 0.1, "as many labels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_sentence(name):
    f, c, l2, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        solve_head(f, c, l2)


def test_a_head_of_the_wrong_width_and_bad_weights():
    p = solve_head(TOY, 3, 0.1)
    with pytest.raises(ValueError, match=r"takes features \[N, 3\]"):
        p.logits(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="not all zero"):
        solve_head(TOY, 3, 0.1, weights=torch.zeros(12))


def test_without_l2_separable_data_has_no_minimiser():
    with pytest.raises(ValueError, match="separable.*no minimiser"):
        solve_head(TOY, 3, l2=0)


def test_without_l2_overlapping_data_has_one_but_no_certificate():
    f = random_problem(200, 4, 3, seed=14)
    p = solve_head(f, 3, l2=0)
    assert np.isnan(p.gap)
    assert p.loss == pytest.approx(sklearn_loss(f, 1e-12), abs=1e-7)


def test_what_cannot_be_reached_is_said():
    with pytest.warns(UserWarning, match="certified gap is"):
        p = solve_head(PROBLEMS["plain"][0], 5, 1e-2, tol=1e-40)
    assert 0 <= p.gap < 1e-15
