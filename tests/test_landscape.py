"The ground around theta_fine, held against matrices that are written down and numbers worked by hand."

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sft_nb.data import Loader, few_shot, load_split
from sft_nb.evaluation import predict
from sft_nb.landscape import Subspace, neural_collapse, plane, top_curvature
from sft_nb.models import adapt, load_pretrained, snapshot
from sft_nb.objective import risk
from sft_nb.understanding import reestimated

X = torch.tensor([[2, 0, 1], [3, 1, 0], [2, 1, 2], [1, 0, 0], [0, 2, 1], [1, 3, 0], [0, 2, 3], [-1, 2, 0], [-2, 0, 1], [-1, -1, 0], [-3, 0, 2], [-2, -1, -1]]).double()  # fmt: skip
Y = torch.arange(3).repeat_interleave(4)


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def written(net, x, y):
    "The whole Hessian of the mean cross-entropy, by torch's own function."
    ps = dict(net.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in ps.values()])

    def loss(v):
        parts = v.split([p.numel() for p in ps.values()])
        theta = {n: w.view_as(p) for (n, p), w in zip(ps.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, theta, (x,)), y)

    return torch.autograd.functional.hessian(loss, flat).numpy()


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_eigenvalue_and_its_direction_are_those_of_the_matrix(seed):
    net = mlp(seed)
    H = written(net, X, Y)
    values, vectors = np.linalg.eigh(H)
    found = top_curvature(net, [(X[:5], Y[:5]), (X[5:], Y[5:])], 1e-8)  # batches that are not equally large
    v = torch.cat([d.flatten() for d in found.direction.values()]).numpy()
    assert found.value == pytest.approx(values[-1], rel=1e-6)
    assert abs(vectors[:, -1] @ v) == pytest.approx(1, abs=1e-4) and np.linalg.norm(v) == pytest.approx(1)
    assert np.linalg.norm(H @ v - values[-1] * v) < 1e-3 * values[-1]


def test_of_a_softmax_on_features_it_is_the_worked_number_whatever_the_labels_are():
    net = nn.Linear(3, 3, bias=False).double()
    net.weight.data = torch.tensor([[0.5, -0.2, 0.1], [0.0, 0.3, -0.1], [-0.4, 0.1, 0.2]]).double()
    for y in (Y[:4], torch.tensor([2, 1, 0, 2])):
        assert top_curvature(net, [(X[:4], y)], 1e-9).value == pytest.approx(1.9940443227, abs=1e-8)


def test_only_what_requires_a_gradient_is_looked_at_and_the_modes_stay():
    net = mlp()
    net[0].requires_grad_(False)
    net.train()
    found = top_curvature(net, [(X, Y)], 1e-8)
    assert set(found.direction) == {"2.weight", "2.bias"} and all(m.training for m in net.modules())
    hidden = net[1](net[0](X)).detach()
    assert found.value == pytest.approx(np.linalg.eigvalsh(written(net[2], hidden, Y))[-1], rel=1e-6)


def test_a_curvature_of_nothing_is_one_sentence():
    net = mlp().requires_grad_(False)
    for dl in ([(X, Y)], []):
        with pytest.raises(ValueError, match="at least 3 parameters"):
            top_curvature(net, dl)


def test_every_point_of_a_plane_is_the_network_at_those_coordinates():
    "The axes by numpy's QR, from the three corners alone."
    three = {n: snapshot(mlp(s)) for s, n in enumerate("abc")}
    found = plane(mlp(), three, [(X, Y)], points=4, margin=0.3)
    flat = {n: np.concatenate([t.numpy().ravel() for t in theta.values()]) for n, theta in three.items()}
    q, r = np.linalg.qr(np.stack([flat["b"] - flat["a"], flat["c"] - flat["a"]], 1))
    q, r = q * np.sign(np.diag(r)), r * np.sign(np.diag(r))[:, None]
    assert found.corners["b"] == pytest.approx((r[0, 0], 0)) and found.corners["c"] == pytest.approx(tuple(r[:, 1]))
    shapes = [p.shape for p in mlp().parameters()]
    for i, y in enumerate(found.y.tolist()):
        for j, x in enumerate(found.x.tolist()):
            parts = torch.from_numpy(flat["a"] + q @ np.array([x, y])).split([s.numel() for s in shapes])
            theta = {n: p.view(s) for n, p, s in zip(three["a"], parts, shapes, strict=True)}
            want = F.cross_entropy(torch.func.functional_call(mlp(), theta, (X,)), Y)
            assert float(found.loss[i, j]) == pytest.approx(float(want), rel=1e-6)


def test_a_plane_takes_the_statistics_anew_and_leaves_the_model():
    pre, task = load_pretrained("pocket"), load_split("digits_wild")
    dl = [*Loader(few_shot(task.train, 3, 0), 30, pre.transform)]
    nets = [adapt(pre, 10).requires_grad_(True) for _ in range(3)]
    for k, net in enumerate(nets):
        g = torch.Generator().manual_seed(k)
        for p in net.parameters():
            p.data += 0.02 * torch.randn(p.shape, generator=g)
    before = snapshot(nets[0])
    found = plane(nets[0], {str(k): snapshot(net) for k, net in enumerate(nets)}, dl, points=2, margin=0.0)
    logits, y = predict(reestimated(nets[0], dl), dl)
    corner = int(found.corners["2"][0] < 0)  # where the third lies to the left of the first, the grid begins there
    if not corner:
        assert float(found.loss[0, 0]) == pytest.approx(float(risk(logits.double(), y)), abs=1e-5)
    assert found.loss.isfinite().all() and all(torch.equal(t, before[n]) for n, t in snapshot(nets[0]).items())


def test_networks_on_a_line_make_no_plane():
    a, b = snapshot(mlp(0)), snapshot(mlp(1))
    mean = {n: (t + b[n]) / 2 for n, t in a.items()}
    for three in ({"a": a, "b": b, "mean": mean}, {"a": a, "again": a, "b": b}):
        with pytest.raises(ValueError, match="no plane"):
            plane(mlp(), three, [(X, Y)])
    with pytest.raises(ValueError, match="through 3 networks"):
        plane(mlp(), {"a": a, "b": b}, [(X, Y)])


@pytest.mark.parametrize("d", [1, 7, 38])
def test_the_directions_of_a_subspace_are_orthonormal_and_the_gradient_is_the_projected_one(d):
    net = mlp().float()
    inside = Subspace(net, d, seed=3)
    n = sum(p.numel() for p in net.parameters())
    P = torch.zeros(n, d).scatter(1, inside.direction[:, None], inside.weight[:, None])
    assert torch.allclose(P.T @ P, torch.eye(d), atol=1e-6)
    x = X.float()
    assert torch.equal(inside(x), net(x))
    F.cross_entropy(inside(x), Y).backward()
    F.cross_entropy(net(x), Y).backward()
    g = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.allclose(inside.u.grad, P.T @ g, atol=1e-6)
    assert [n for n, p in inside.named_parameters() if p.requires_grad] == ["u"]


def test_least_squares_in_a_subspace_is_the_closed_form_and_all_directions_reach_the_optimum():
    g = torch.Generator().manual_seed(0)
    A, b = torch.randn(30, 8, generator=g), torch.randn(30, 1, generator=g)
    net = nn.Linear(8, 1, bias=False)
    for d in (3, 8):
        inside = Subspace(net, d)
        opt = torch.optim.LBFGS([inside.u], max_iter=200, line_search_fn="strong_wolfe")

        def closure(inside=inside, opt=opt):
            opt.zero_grad()
            loss = (inside(A) - b).square().sum()
            loss.backward()
            return loss

        opt.step(closure)
        P = torch.zeros(8, d).scatter(1, inside.direction[:, None], inside.weight[:, None])
        start = A @ net.weight.detach().T - b
        u = torch.linalg.lstsq(A @ P, -start).solution
        assert closure().item() == pytest.approx(float((start + A @ P @ u).square().sum()), rel=1e-4)
    full = torch.linalg.lstsq(A, b)
    assert closure().item() == pytest.approx(float((A @ full.solution - b).square().sum()), rel=1e-4)


@pytest.mark.parametrize("d", [0, 39])
def test_too_many_directions_or_none(d):
    with pytest.raises(ValueError, match="from 1 to that"):
        Subspace(mlp(), d)


def test_the_collapse_of_toy_12_is_the_worked_one():
    c = neural_collapse(X, Y)
    assert c.within == pytest.approx(0.14693369551507, abs=1e-12) and c.norms == pytest.approx(0.17720, abs=1e-5)
    assert c.angles == pytest.approx(np.mean([abs(v + 0.5) for v in (-0.12235, -0.77139, -0.53720)]), abs=1e-5)


def test_a_collapse_does_not_see_turning_scaling_shifting_or_the_names_of_the_classes():
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    a, b = neural_collapse(X, Y), neural_collapse(3 * X @ q + 5, 10 - 2 * Y)
    assert vars(a) == pytest.approx(vars(b))


def test_features_without_classes_or_with_the_same_means_are_one_sentence():
    with pytest.raises(ValueError, match="two classes"):
        neural_collapse(X, torch.zeros(12))
    with pytest.raises(ValueError, match="same mean"):
        neural_collapse(X[:1].repeat(4, 1), torch.tensor([0, 0, 1, 1]))
