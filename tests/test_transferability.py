"Scores of a pre-trained network: worked numbers, oracles that are not ours, invariances, bounds, bad input."

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm, spearmanr
from sklearn.covariance import LedoitWolf
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import BayesianRidge, Ridge
from sklearn.metrics import mutual_info_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from sft_nb.transferability import (
    L2S,
    NEED_HEAD,
    SCORES,
    all_scores,
    components,
    evidence,
    gbc,
    h_score,
    h_score_shrunk,
    knn,
    leep,
    left_out,
    logme,
    n_leep,
    nce,
    parc,
    ridge_loo,
    transrate,
)

X = np.array(
    [[2, 0, 1], [3, 1, 0], [2, 1, 2], [1, 0, 0], [0, 2, 1], [1, 3, 0], [0, 2, 3], [-1, 2, 0], [-2, 0, 1],
     [-1, -1, 0], [-3, 0, 2], [-2, -1, -1]], float,
)  # fmt: skip
Y = np.repeat(np.arange(3), 4)
THETA = np.array(
    [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3],
     [0.3, 0.6, 0.1], [0.25, 0.5, 0.25], [0.1, 0.2, 0.7], [0.1, 0.1, 0.8], [0.3, 0.1, 0.6], [0.4, 0.2, 0.4]]
)  # fmt: skip
HARD = np.eye(3)[[0, 0, 0, 1, 1, 1, 1, 0, 2, 2, 2, 0]]
FREE = [name for name in SCORES if name not in NEED_HEAD]


def sample(seed, n=40, d=6, c=3, apart=1.5, s=5):
    "Features, labels of all classes, and probabilities of source classes."
    g = np.random.default_rng(seed)
    y = np.concatenate([np.arange(c).repeat(2), g.integers(c, size=n - 2 * c)])
    x = g.normal(size=(n, d)) * g.uniform(0.5, 2, d) + apart * g.normal(size=(c, d))[y] + 0.3
    p = np.exp(g.normal(size=(n, s)) + 2 * (y[:, None] == np.arange(s)))
    return x, y, p / p.sum(1, keepdims=True)


shapes = pytest.mark.parametrize(("seed", "d"), [(0, 2), (1, 6), (2, 25), (3, 90)])  # fewer and more features than rows


def test_worked_numbers():
    found = [
        h_score(X, Y),
        h_score_shrunk(X, Y),
        logme(X, Y),
        transrate(X, Y),
        transrate(X, Y, 1),
        gbc(X, Y),
        knn(X, Y),
    ]
    wanted = [
        1.6981689308919, 0.6882847236, -0.6282142029304364, 0.6828413231215, 0.1828027444602, -0.15273463303654494, 1,
    ]  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert gbc(X, Y, spherical=True) == pytest.approx(-0.7312734641535861, abs=1e-12)
    assert leep(X, Y, THETA) == pytest.approx(-0.7764408839991344, abs=1e-12)
    assert nce(X, Y, HARD) == pytest.approx(-0.583391106220117, abs=1e-12)
    alpha, beta, value = evidence(torch.tensor(X), torch.eye(3).double()[Y])
    np.testing.assert_allclose(alpha, [52.398728217, 18.708931957, 68.237181891], rtol=1e-8)
    np.testing.assert_allclose(beta, [5.039321141, 19.862486832, 4.551597383], rtol=1e-8)
    np.testing.assert_allclose(value / 12, [-0.7643963074101, -0.3344992146047, -0.7857470867765], atol=1e-12)


def test_worked_numbers_of_iris():
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    found = [h_score(x, y), logme(x, y), transrate(x, y)]
    np.testing.assert_allclose(found, [1.1918988250416597, -0.1600602434174, 0.5894054063747], rtol=1e-9)


# each against somebody else's program, or against its definition


@shapes
def test_ridge_leave_one_out_is_refitting_without_each_row(seed, d):
    x, y, _ = sample(seed, d=d)
    variance = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    unit = variance[variance > 1e-9].mean()
    refits = []
    for l2 in L2S:
        rows = [np.arange(len(y)) != i for i in range(len(y))]
        refits.append([Ridge(alpha=l2 * unit).fit(x[r], np.eye(3)[y[r]]).predict(x[~r])[0] for r in rows])
    # the hat matrix centres by all rows and a refit by the rest: with a free intercept both are one problem
    best = min(refits, key=lambda z: np.square(np.array(z) - np.eye(3)[y]).mean())
    told, own = left_out(x, y)
    assert (own.numpy() == y).all() and (told.numpy() == np.argmax(best, 1)).all()
    assert ridge_loo(x, y) == np.mean(np.argmax(best, 1) == y)


@shapes
@pytest.mark.parametrize("k", [1, 3, 5])
def test_knn_is_scikit_learns(seed, d, k):
    x, y, _ = sample(seed, d=d)
    theirs = cross_val_predict(KNeighborsClassifier(k, algorithm="brute"), x, y, cv=LeaveOneOut())
    assert knn(x, y, k) == np.mean(theirs == y)


@pytest.mark.parametrize(("seed", "d"), [(0, 2), (1, 6), (2, 25)])
def test_h_score_is_the_sum_of_squared_canonical_correlations(seed, d):
    x, y, _ = sample(seed, d=d, apart=0.7)
    a, b = x - x.mean(0), np.eye(3)[y] - np.eye(3)[y].mean(0)
    qa, qb = np.linalg.qr(a)[0], np.linalg.svd(b, full_matrices=False)[0][:, :2]
    assert h_score(x, y) == pytest.approx(np.square(np.linalg.svd(qa.T @ qb, compute_uv=False)).sum(), abs=1e-9)
    means = np.stack([x[y == c].mean(0) for c in range(3)])[y]
    formula = np.trace(np.linalg.solve(np.cov(x.T), np.cov(means.T)))
    assert h_score(x, y) == pytest.approx(formula, abs=1e-9)


def test_h_score_against_scikit_learns_cca():
    x, y, _ = sample(4, n=80, d=5)
    u, v = CCA(2, max_iter=5000, tol=1e-12).fit_transform(x, np.eye(3)[y][:, :2])
    assert h_score(x, y) == pytest.approx(sum(np.corrcoef(u[:, k], v[:, k])[0, 1] ** 2 for k in range(2)), abs=1e-6)


def test_h_score_says_nothing_where_features_are_as_many_as_rows():
    for seed in range(3):
        x, y, _ = sample(seed, n=30, d=29, apart=0)
        assert h_score(x, y) == pytest.approx(2, abs=1e-9)


@shapes
def test_shrunk_h_score_is_that_of_scikit_learns_covariance(seed, d):
    x, y, _ = sample(seed, d=d)
    lw = LedoitWolf().fit(x)
    means = np.stack([x[y == c].mean(0) for c in range(3)])[y]
    between = np.cov(means.T)
    wanted = (1 - lw.shrinkage_) * np.trace(np.linalg.solve(lw.covariance_, between))
    assert h_score_shrunk(x, y) == pytest.approx(wanted, rel=1e-9)


@shapes
def test_evidence_is_the_density_of_the_labels_at_its_maximum(seed, d):
    x, y, _ = sample(seed, d=d)
    T = np.eye(3)[y]
    alpha, beta, value = (v.numpy() for v in evidence(torch.tensor(x), torch.tensor(T)))
    at = lambda a, b, t: multivariate_normal(np.zeros(len(t)), np.eye(len(t)) / b + x @ x.T / a).logpdf(t)
    for c in range(3):
        if 1 / beta[c] > 1e-6:  # else the covariance is too near to singular for SciPy
            assert value[c] == pytest.approx(at(alpha[c], beta[c], T[:, c]), rel=1e-8)
            found = minimize(
                lambda p, t=T[:, c]: -at(*np.exp(p), t), np.log([alpha[c], beta[c]]) + 0.3, method="Nelder-Mead"
            )
            assert value[c] == pytest.approx(-found.fun, abs=1e-5) and value[c] >= -found.fun - 1e-9
    assert logme(x, y) == pytest.approx(value.mean() / len(y), abs=1e-12)


@pytest.mark.parametrize(("seed", "d"), [(0, 2), (1, 6)])
def test_evidence_is_scikit_learns(seed, d):
    x, y, _ = sample(seed, d=d)
    for c in range(3):
        prior = dict(alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, alpha_init=1, lambda_init=1)
        theirs = BayesianRidge(fit_intercept=False, tol=1e-14, max_iter=10_000, compute_score=True, **prior)
        t = (y == c).astype(float)
        alpha, beta, value = evidence(torch.tensor(x), torch.tensor(t)[:, None])
        theirs.fit(x, t)
        assert value.item() == pytest.approx(theirs.scores_[-1], abs=1e-9)
        assert (alpha.item(), beta.item()) == pytest.approx((theirs.lambda_, theirs.alpha_), rel=1e-5)


@shapes
def test_transrate_is_its_definition_and_never_negative(seed, d):
    x, y, _ = sample(seed, d=d)
    z = x - x.mean(0)
    rate = lambda z: np.linalg.slogdet(np.eye(d) + z.T @ z / (len(z) * 1e-4))[1] / 2
    wanted = rate(z) - sum(np.mean(y == c) * rate(z[y == c]) for c in range(3))
    assert transrate(x, y) == pytest.approx(wanted, rel=1e-8) and transrate(x, y) >= 0


def test_gbc_is_an_integral():
    "The Bhattacharyya coefficient of independent features is the product of integrals of sqrt(p q)."
    mean = [X[Y == c].mean(0) for c in range(3)]
    sd = [np.sqrt(np.maximum(X[Y == c].var(0), 1e-4)) for c in range(3)]

    def overlap(a, b):
        one = lambda k: quad(
            lambda t: np.sqrt(norm.pdf(t, mean[a][k], sd[a][k]) * norm.pdf(t, mean[b][k], sd[b][k])), -15, 15
        )[0]
        return np.prod([one(k) for k in range(3)])

    assert gbc(X, Y) == pytest.approx(-2 * (overlap(0, 1) + overlap(0, 2) + overlap(1, 2)), abs=1e-7)


@shapes
def test_gbc_lies_in_its_range(seed, d):
    x, y, _ = sample(seed, d=d, apart=0.1)
    assert -6 <= gbc(x, y) <= 0 and -6 <= gbc(x, y, spherical=True) <= 0
    twice = np.concatenate([x[:8]] * 3), np.arange(3).repeat(8)
    assert gbc(*twice) == pytest.approx(-6)  # the same rows under three names


@pytest.mark.parametrize(("seed", "d"), [(1, 6), (2, 25), (3, 90)])
def test_parc_is_spearmans_correlation_of_two_distances(seed, d):
    x, y, _ = sample(seed, d=d)
    i, j = np.triu_indices(len(y), 1)
    rdm = (1 - np.corrcoef((x - x.mean(0)) / x.std(0)))[i, j]
    assert parc(x, y) == pytest.approx(spearmanr(rdm, y[i] != y[j]).statistic, abs=1e-9)
    assert parc(np.eye(3)[Y], Y) == pytest.approx(1)  # the labels themselves


def test_parc_does_not_rank_rounding():
    "The correlations of one-hot rows differ in their last digit, which is no order."
    i, j = np.triu_indices(12, 1)
    labels = (1 - np.corrcoef(np.eye(3)[Y]))[i, j]
    features = (1 - np.corrcoef((X - X.mean(0)) / X.std(0)))[i, j]
    assert parc(X, Y) == pytest.approx(spearmanr(features, labels.round(9)).statistic, abs=1e-12)
    assert parc(X, Y) == pytest.approx(0.32502072902384355, abs=1e-12)


def test_leep_and_nce_by_their_definitions():
    _, y, p = sample(5)
    joint = np.array([[p[y == c, z].sum() / len(y) for z in range(5)] for c in range(3)])
    given = joint / joint.sum(0)
    wanted = np.mean([np.log(sum(given[y[i], z] * p[i, z] for z in range(5))) for i in range(len(y))])
    assert leep(p, y, p) == pytest.approx(wanted, abs=1e-12)
    share = np.bincount(y) / len(y)
    entropy = -(share * np.log(share)).sum()
    assert nce(p, y, p) == pytest.approx(mutual_info_score(y, p.argmax(1)) - entropy, abs=1e-9)
    middle = (joint * np.log(given)).sum()
    assert -entropy <= middle <= leep(p, y, p) <= 0
    assert leep(p, y, np.eye(5)[p.argmax(1)]) == pytest.approx(nce(p, y, p), abs=1e-12)
    split = np.concatenate(
        [p[:, :1] * 0.3, p[:, :1] * 0.7, p[:, 1:][:, ::-1]], 1
    )  # one class in two, the others turned round
    assert leep(p, y, split) == pytest.approx(leep(p, y, p), abs=1e-12)
    assert leep(p, y, np.pad(p, ((0, 0), (0, 2)))) == pytest.approx(leep(p, y, p), abs=1e-12)  # classes that nobody is


def test_n_leep_is_leep_of_a_mixture():
    x, y, _ = sample(6, n=90, d=12)
    z = components(x).numpy()
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    k = np.searchsorted(np.cumsum(s**2) / (s**2).sum(), 0.8) + 1
    np.testing.assert_allclose(np.abs(z), np.abs(u[:, :k] * s[:k]), atol=1e-9)
    mixture = GaussianMixture(15, covariance_type="diag", random_state=0, reg_covar=1e-6 * z.var()).fit(z)
    assert n_leep(x, y) == pytest.approx(leep(x, y, mixture.predict_proba(z)), abs=1e-9)
    assert -np.log(3) - 0.2 <= n_leep(x, y) <= 0


# laws


def score(name, x, y, p):
    return SCORES[name](x, y, p) if name in NEED_HEAD else SCORES[name](x, y)


@shapes
@pytest.mark.parametrize("name", [n for n in SCORES if n != "n_leep"])
def test_the_order_of_the_rows_does_not_matter(name, seed, d):
    x, y, p = sample(seed, d=d)
    i = np.random.default_rng(9).permutation(len(y))
    assert score(name, x[i], y[i], p[i]) == pytest.approx(score(name, x, y, p), rel=1e-6, abs=1e-9)


@shapes
@pytest.mark.parametrize("name", [n for n in FREE if n not in ("gbc", "parc", "n_leep")])
def test_a_rotation_does_not_matter(name, seed, d):
    x, y, _ = sample(seed, d=d)
    turn = np.linalg.qr(np.random.default_rng(8).normal(size=(d, d)))[0]
    assert SCORES[name](x @ turn, y) == pytest.approx(SCORES[name](x, y), rel=1e-6, abs=1e-8)


@shapes
@pytest.mark.parametrize("name", [n for n in FREE if n not in ("gbc", "transrate")])
def test_the_scale_of_the_features_does_not_matter(name, seed, d):
    x, y, _ = sample(seed, d=d)
    for factor in (1024.0, 2.0**-10):
        assert SCORES[name](factor * x, y) == pytest.approx(SCORES[name](x, y), rel=1e-6, abs=1e-8)


@shapes
@pytest.mark.parametrize("name", [n for n in FREE if n not in ("logme", "n_leep")])
def test_a_shift_does_not_matter_but_to_logme(name, seed, d):
    x, y, _ = sample(seed, d=d)
    assert SCORES[name](x + 3.0, y) == pytest.approx(SCORES[name](x, y), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", SCORES)
def test_names_of_classes_and_number_types_do_not_matter(name):
    x, y, p = sample(7)
    x = x.astype(np.float32)
    plain = score(name, x, y, p)
    assert type(plain) is float
    assert score(name, torch.tensor(x), torch.tensor(y * 3 + 4, dtype=torch.int32), torch.tensor(p)) == plain


@pytest.mark.parametrize("name", SCORES)
def test_features_that_know_more_score_higher(name):
    "Six classes apart by nothing, by a little and by a lot."
    found = []
    for apart in (0.0, 1.0, 4.0):
        x, y, _ = sample(11, n=150, d=8, c=6, apart=apart, s=6)
        p = np.exp(apart * (y[:, None] == np.arange(6)) + np.random.default_rng(0).normal(size=(150, 6)))
        found.append(score(name, x, y, p / p.sum(1, keepdims=True)))
    assert found[0] < found[1] < found[2]


def test_all_scores_brings_transrate_to_one_scale():
    x, y, p = sample(12)
    with_head, without = all_scores(100 * x, y, p), all_scores(x, y)
    assert set(with_head) == set(SCORES) and set(without) == set(FREE)
    assert with_head["transrate"] == pytest.approx(without["transrate"], rel=1e-9)
    assert with_head["logme"] == pytest.approx(logme(x, y), rel=1e-9)


# bad input

BAD = [
    (X, Y * 0, "1 class:"),
    (X[:3], [0, 1, 2], "more rows than classes"),
    (X * 0 + 5, Y, "the same features"),
    (X + np.array([[np.nan]] + [[0]] * 11), Y, "nan or inf"),
    (X[:5], Y, "as many labels"),
    (X[:, 0], Y, "a row for each"),
]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("x", "y", "says"), BAD, ids=[b[2].replace(" ", "-") for b in BAD])
def test_bad_input_is_one_sentence(name, x, y, says):
    with pytest.raises(ValueError, match=says) as e:
        score(name, x, y, THETA)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", NEED_HEAD)
@pytest.mark.parametrize("p", [None, THETA[:5], THETA * 2, THETA - 0.5, THETA[:, 0]])
def test_a_source_head_that_is_missing_or_no_head_is_one_sentence(name, p):
    with pytest.raises(ValueError, match="source_probs"):
        SCORES[name](X, Y, p)


def test_knn_and_parc_say_what_they_cannot():
    with pytest.raises(ValueError, match="1 to 11 neighbours"):
        knn(X, Y, 12)
    with pytest.raises(ValueError, match="correlate with nothing"):
        parc(X[:, :1], Y)


def test_a_constant_feature_and_a_perfect_fit_are_no_accident():
    x = np.concatenate([np.eye(3)[Y], np.ones((12, 2))], 1)
    found = all_scores(x, Y, THETA)
    assert all(np.isfinite(v) for v in found.values())
    assert found["ridge_loo"] == found["knn"] == 1 and found["h_score"] == pytest.approx(2)
