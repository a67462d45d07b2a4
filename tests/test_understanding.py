"What fine-tuning changed, held against definitions, SciPy, closed forms and numbers worked by hand."

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes
from scipy.special import rel_entr, softmax
from scipy.stats import spearmanr
from torch import nn

from sft_nb.data import Examples, Loader, few_shot, load_split
from sft_nb.evaluation import predict
from sft_nb.features import extract
from sft_nb.freezing import freeze
from sft_nb.maps import (
    grad_cam,
    input_gradient,
    integrated_gradients,
    randomisation_check,
    randomised,
    rank_correlation,
    upsampled,
)
from sft_nb.models import adapt, load_pretrained, snapshot
from sft_nb.peft import add_lora, merge_lora
from sft_nb.strategies import run_phases, scaled, strategy
from sft_nb.understanding import (
    cka,
    connect,
    displacement,
    effective_rank,
    function_distance,
    layer_features,
    reestimated,
    report,
)

X = np.array([[2, 0, 1], [3, 1, 0], [2, 1, 2], [1, 0, 0], [0, 2, 1], [1, 3, 0], [0, 2, 3], [-1, 2, 0], [-2, 0, 1], [-1, -1, 0], [-3, 0, 2], [-2, -1, -1]], float)  # fmt: skip
R = np.array([[0, 1, 1], [1, 0, 2], [2, 1, 0], [1, 1, 1], [3, 0, 1], [2, 2, 0], [0, 3, 1], [1, 2, 2], [-1, 0, 1], [0, -1, -1], [-2, 1, 0], [-1, -2, 1]], float)  # fmt: skip
Z2 = np.column_stack([R[:, 0] + X[:, 0], 2 * R[:, 1]])
Y = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)


@pytest.fixture(scope="module")
def pre():
    return load_pretrained("pocket")


@pytest.fixture(scope="module")
def task():
    return load_split("digits_wild")


@pytest.fixture
def some(pre, task):
    return pre.transform(task.valid.x[:12]), task.valid.y[:12]


def drawn(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


# features


def song(a, b, debiased):
    "CKA by its definition: Gram matrices, and the unbiased HSIC of Song et al. (2012), equation 5."
    K, L = a @ a.T, b @ b.T
    n = len(K)

    def hsic(K, L):
        if not debiased:
            H = np.eye(n) - 1 / n
            return np.trace(K @ H @ L @ H)
        K, L, one = K - np.diag(np.diag(K)), L - np.diag(np.diag(L)), np.ones(n)
        return (np.trace(K @ L) + K.sum() * L.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * one @ K @ L @ one) / n / (n - 3)

    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


def test_cka_worked():
    assert cka(torch.tensor([[1.0, 0], [0, 1], [-1, -1]]), torch.tensor([[1.0], [0], [-1]])) == pytest.approx(
        10**0.5 / 4, abs=1e-14
    )
    assert cka(X, Z2) == pytest.approx(0.8253712439967947, abs=1e-13)
    assert cka(X, Z2, debiased=True) == pytest.approx(0.7861045757769417, abs=1e-13)
    assert cka(X, X * [1, 10, 0.1]) == pytest.approx(0.524, abs=5e-4)  # stretched along the axes: another


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize(("n", "d", "e"), [(12, 3, 2), (9, 40, 7), (30, 5, 60), (4, 2, 2)])
def test_cka_is_its_definition(n, d, e, debiased):
    a, b = drawn(n, n, d) + 3, drawn(n + 1, n, e)
    assert cka(a, b, debiased) == pytest.approx(song(a.numpy(), b.numpy(), debiased), abs=1e-10)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_does_not_see_rotation_scale_shift_and_order(debiased):
    a, b, order = drawn(1, 20, 6), drawn(2, 20, 4), torch.randperm(20)
    Q = torch.linalg.qr(drawn(3, 6, 6))[0]
    want = cka(a, b, debiased)
    assert cka(-7 * a @ Q + 100, b, debiased) == pytest.approx(want, abs=1e-9)
    assert cka(a[order], b[order], debiased) == pytest.approx(want, abs=1e-12)
    assert cka(b, a, debiased) == pytest.approx(want, abs=1e-12)
    assert cka(a, a @ Q, debiased) == pytest.approx(1, abs=1e-12)
    assert cka(a, b[order], debiased) != pytest.approx(want, abs=1e-6)


def test_cka_of_one_direction_is_the_squared_correlation():
    a, b = drawn(5, 15, 1), drawn(6, 15, 1)
    assert cka(a, b) == pytest.approx(np.corrcoef(a[:, 0], b[:, 0])[0, 1] ** 2, abs=1e-12)
    _, _, disparity = procrustes(a.numpy().repeat(2, 1) * [1, 0], b.numpy().repeat(2, 1) * [1, 0])
    assert cka(a, b) == pytest.approx(1 - disparity, abs=1e-9)


def test_few_examples_deceive_the_plain_form_alone():
    both = [[cka(drawn(s, 10, 500), drawn(s + 100, 10, 500), d) for d in (False, True)] for s in range(20)]
    plain, fair = zip(*both, strict=True)
    assert min(plain) > 0.8 and abs(np.mean(fair)) < 0.05


@pytest.mark.parametrize(
    ("a", "b", "debiased", "says"),
    [
        (X, Z2[:5], False, r"of the same N examples"), (X[:3], Z2[:3], True, "at least 4"), (X, np.ones((12, 2)), False, "second features are the same"),
        (X[:, 0], Z2, False, r"\[N, D\]"), (np.full((12, 2), np.nan), Z2, False, "not finite"),
    ],
)  # fmt: skip
def test_cka_refuses_in_one_sentence(a, b, debiased, says):
    with pytest.raises(ValueError, match=says):
        cka(a, b, debiased)


def test_layers_in_one_pass_are_what_a_cut_network_gives(pre, some):
    x, y = some
    net = nn.Sequential(pre.backbone.conv1, pre.backbone.bn1)
    model = adapt(pre, 3).train()
    got = layer_features(model, [(x[:5], y[:5]), (x[5:], y[5:])], ["backbone.bn1", ""])
    with torch.no_grad():
        torch.testing.assert_close(got["backbone.bn1"], net.eval()(x).mean((2, 3)))  # not what the in-place ReLU left
        torch.testing.assert_close(got[""], model.eval()(x))
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match=r"unknown layer 'backbone.layer9'; did you mean 'backbone.layer"):
        layer_features(model, [(x, y)], ["backbone.layer9"])


# weights


def test_effective_rank_worked():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(4 / 3**0.75)  # shares 3/4 and 1/4
    assert effective_rank(torch.zeros(2, 3)) == 0 and effective_rank(torch.ones(5)) == pytest.approx(1)
    m = drawn(0, 6, 4)
    assert effective_rank(100 * m) == pytest.approx(effective_rank(m)) == pytest.approx(effective_rank(m.T))
    assert 1 < effective_rank(m) <= 4


def test_displacement_is_zero_where_frozen_and_thin_where_lora(pre, task):
    dl = Loader(few_shot(task.train, 2, 0), 10, pre.transform)
    for name in ("last_block", "lora"):
        model = adapt(pre, 10)
        list(run_phases(model, dl, scaled(strategy(name, model), epochs=1)))
        if name == "lora":
            with pytest.raises(ValueError, match="merge_lora"):
                displacement(pre.theta, snapshot(model))
            merge_lora(model)
        found = displacement(pre.theta, snapshot(model))
        assert found.keys() == {n for n, t in pre.theta.items() if t.is_floating_point()}
        for n, d in found.items():
            if name == "last_block" and "layer4" not in n:
                assert d.distance == d.relative == d.rank == 0
            if name == "lora" and pre.theta[n].ndim == 4:
                assert 0 < d.rank < 4.02
    assert displacement({"w": torch.zeros(2)}, {"w": torch.ones(2)})["w"].relative == float("inf")
    three = displacement({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([6.0, 8.0]), "head": torch.ones(1)})["w"]
    assert (three.distance, three.relative, three.rank, three.full) == pytest.approx((5, 1, 1, 1))
    with pytest.raises(ValueError, match=r"w is of shape \[2\] in theta_pre and of shape \[3\] in theta_fine"):
        displacement({"w": torch.ones(2)}, {"w": torch.ones(3)})


# answers


def test_function_distance_is_the_mean_of_scipys_kl():
    a, b = drawn(1, 30, 5) * 3, drawn(2, 30, 5)
    got = function_distance(a, b)
    want = rel_entr(softmax(a.numpy(), 1), softmax(b.numpy(), 1)).sum(1).mean()
    assert got.kl == pytest.approx(want, abs=1e-12)
    assert got.disagreement == np.mean(a.numpy().argmax(1) != b.numpy().argmax(1))
    for same in (a, a + 7):  # softmax does not see a shift
        assert (
            function_distance(a, same).kl == pytest.approx(0, abs=1e-12) and not function_distance(a, same).disagreement
        )
    with pytest.raises(ValueError, match="at least two classes"):
        function_distance(a[:, :1], b[:, :1])
    with pytest.raises(ValueError, match="of the same examples"):
        function_distance(a, b[:5])


# the line between


def toy(hidden=0, seed=1):
    torch.manual_seed(seed)
    return (
        nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 3))
        if hidden
        else nn.Sequential(nn.Linear(3, 3))
    )


BATCH = [(torch.from_numpy(X).float(), Y)]


def test_a_convex_loss_has_no_barrier():
    line = connect(toy(), snapshot(toy(seed=1)), snapshot(toy(seed=2)), BATCH, 9)
    assert line.barrier == 0 and line.at[0] == 0 and line.at[-1] == 1
    for a, z in zip(line.at, line.loss, strict=True):
        assert z <= (1 - a) * line.loss[0] + a * line.loss[-1] + 1e-9


def test_the_same_function_in_another_order_has_one():
    net = toy(4)
    opt = torch.optim.LBFGS(net.parameters(), max_iter=60)

    def closure():
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(BATCH[0][0]), Y)
        loss.backward()
        return loss

    opt.step(closure)
    theta = snapshot(net)
    other = dict(theta, **{"0.weight": theta["0.weight"].flip(0), "0.bias": theta["0.bias"].flip(0)})
    other["2.weight"] = theta["2.weight"].flip(1)
    line = connect(net, theta, other, BATCH, 11)
    assert line.loss[0] == pytest.approx(line.loss[-1], abs=1e-5) and line.barrier > 0.1
    back = connect(net, other, theta, BATCH, 11)
    assert back.loss == pytest.approx(line.loss[::-1], abs=1e-5) and back.barrier == pytest.approx(
        line.barrier, abs=1e-5
    )
    assert connect(net, theta, theta, BATCH, 3).barrier == pytest.approx(0, abs=1e-9)


def test_connect_refuses_another_network_and_leaves_its_own():
    net = toy(4)
    before = snapshot(net)
    with pytest.raises(ValueError, match="these are two networks"):
        connect(net, before, snapshot(toy(5)), BATCH)
    with pytest.raises(ValueError, match="at least 2"):
        connect(net, before, before, BATCH, 1)
    connect(net, before, snapshot(toy(4, seed=3)), BATCH, 3)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_statistics_taken_anew_are_those_of_the_batches():
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)).eval()
    freeze(net, "1.*")
    before, x = snapshot(net), BATCH[0][0]
    new = reestimated(net, [(x[:6], Y[:6]), (x[6:], Y[6:])])
    z = net[0](x).detach()
    torch.testing.assert_close(new[1].running_mean, (z[:6].mean(0) + z[6:].mean(0)) / 2)
    torch.testing.assert_close(new[1].running_var, (z[:6].var(0) + z[6:].var(0)) / 2)
    assert new[1].momentum == net[1].momentum and not any(m.training for m in new.modules())
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert torch.equal(new[4].weight, net[4].weight)
    assert torch.equal(reestimated(net, [(x, Y)])(x), reestimated(new, [(x, Y)])(x))  # what stood there does not matter
    plain = toy(4)
    assert torch.equal(reestimated(plain, BATCH)(x), plain(x))


# where it looks


def test_grad_cam_worked():
    maps = torch.tensor([[[[1.0, 2], [0, -1]], [[3, 0], [1, 1]]]])
    net = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
    net[3].weight.data = torch.tensor([[0.5, -1], [1, 2]])
    assert grad_cam(net, maps, 0, "0").tolist() == [[[0, 0.25], [0, 0]]]
    assert grad_cam(net, maps, 1, "0").tolist() == [[[1.75, 0.5], [0.5, 0.25]]]
    last = nn.Sequential(nn.Unflatten(1, (2, 2, 3)), nn.Flatten(), nn.Linear(12, 2))  # [N, h, w, K]
    A = torch.rand(1, 12)
    by_hand = (A.view(2, 2, 3) * last[2].weight[1].view(2, 2, 3).mean((0, 1))).sum(-1).relu()
    torch.testing.assert_close(grad_cam(last, A, 1, "0")[0], by_hand.detach())


def test_grad_cam_meets_its_closed_form_whatever_is_frozen_and_in_any_mode(pre, some):
    x, y = some
    model = adapt(pre, 10)
    with torch.no_grad():
        A = nn.Sequential(*list(pre.backbone.children())[:-2])(x)
    want = torch.einsum("nk,nkij->nij", model.head.weight.detach()[y], A).relu() / A[0, 0].numel()
    for m in (model, freeze(adapt(pre, 10)), adapt(pre, 10).train()):
        m.head.load_state_dict(model.head.state_dict())
        modes = [k.training for k in m.modules()]
        torch.testing.assert_close(grad_cam(m, x, y, "backbone.layer4"), want, rtol=1e-4, atol=1e-7)
        assert [k.training for k in m.modules()] == modes and all(p.grad is None for p in m.parameters())
        assert not any(k._forward_hooks for k in m.modules())


def test_with_another_head_the_maps_are_the_same_and_their_weights_are_not(pre, some):
    x, y = some
    one, two = adapt(pre, 10), adapt(pre, 10)
    at = ["backbone.layer3"]
    assert torch.equal(layer_features(one, [(x, y)], at)[at[0]], layer_features(two, [(x, y)], at)[at[0]])
    assert not torch.allclose(grad_cam(one, x, y, at[0]), grad_cam(two, x, y, at[0]))


def test_maps_refuse_in_one_sentence(pre, some):
    x, y = some
    model = adapt(pre, 10)
    for args, says in (
        ((x, y, "backbone.layer7"), "unknown layer 'backbone.layer7'; did you mean"),
        ((x, 10, "backbone.layer4"), r"the classes 0 to 9; got \[10\]"),
        ((x, y, "head"), "name a layer before the pooling"),
    ):
        with pytest.raises(ValueError, match=says):
            grad_cam(model, *args)
    with pytest.raises(ValueError, match="whole numbers, which have no gradient"):
        input_gradient(model, x.to(torch.uint8), y)
    idle = nn.Sequential(nn.Linear(3, 2))
    idle[0].spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="not called when the network runs"):
        grad_cam(idle, torch.rand(2, 3), 0, "0.spare")


def test_a_map_of_zeros_stays_one():
    maps = torch.stack([torch.zeros(2, 2), torch.tensor([[0.0, 3], [0, 0]])])
    big = upsampled(maps, 8)
    assert (
        big[0].eq(0).all() and big[1].max() == 1 and big[1].argmax() == 6
    )  # the corner: columns 6 and 7 lie beyond the last place's middle


def test_attributions_add_up(pre, some):
    quadratic = lambda v: torch.stack([v[:, 0] * v[:, 1], v[:, 2] ** 2], 1)
    net = nn.Sequential(nn.Identity())
    net.forward = quadratic
    v = torch.tensor([[2.0, 3.0, 5.0]])
    whole = integrated_gradients(net, v, 0, steps=1)  # the midpoint rule is exact for a gradient that is linear
    assert whole.values.tolist() == [[3, 3, 0]] and whole.gap.tolist() == [0]
    moved = integrated_gradients(net, v, 1, baseline=1.0, steps=1)
    assert moved.values.tolist() == [[0, 0, 24]] and moved.gap.tolist() == [0]
    lin = nn.Linear(3, 2, bias=False)
    assert input_gradient(lin, v, 1).sum().item() == pytest.approx(lin(v)[0, 1].item(), rel=1e-5)
    x, y = some
    model = adapt(pre, 10)
    for layer in ("", "backbone.layer3"):
        gaps = [integrated_gradients(model, x, y, layer, steps=n).gap.abs().mean().item() for n in (2, 50)]
        assert gaps[1] < gaps[0] / 3


def test_rank_correlation_is_scipys():
    a, b = drawn(1, 4, 3, 3).relu(), drawn(2, 4, 3, 3).relu()  # with ties
    want = [spearmanr(p.flatten(), q.flatten()).statistic for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b), want, atol=1e-12)
    assert rank_correlation(a, torch.zeros_like(a)).eq(0).all() and rank_correlation(a, a).allclose(
        torch.ones(4).double()
    )


def test_randomised_draws_what_is_named_and_nothing_else(pre):
    torch.manual_seed(0)
    model = adapt(pre, 10)
    before, state = snapshot(model), torch.get_rng_state()
    new = randomised(model, "head.*", "backbone.layer4.*")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    for n, p in new.named_parameters():
        if p.ndim > 1:
            assert torch.equal(p, before[n]) != n.startswith(("head", "backbone.layer4")), n
    assert not torch.equal(new.head.weight, before["head.weight"])  # though the run began with seed 0, too
    with pytest.raises(ValueError, match="parameter pattern 'layer9"):
        randomised(model, "layer9.*")


def test_the_check_tells_a_map_of_the_network_from_one_of_the_picture(pre, some):
    x, y = some
    model = adapt(pre, 10)
    stays = randomisation_check(model, lambda m: x.mean(1))
    assert list(stays) == ["head", "layer4", "layer3", "layer2", "layer1", "conv1"] and min(stays.values()) > 1 - 1e-9
    gone = randomisation_check(model, lambda m: grad_cam(m, x, y, "backbone.layer3"))
    assert max(abs(v) for v in gone.values()) < 0.5


# the page


def test_a_report_says_what_was_done(pre, task, tmp_path):
    model = adapt(pre, 10)
    dl = Loader(few_shot(task.train, 2, 0), 10, pre.transform)
    list(run_phases(model, dl, scaled(strategy("last_block", model), epochs=1)))
    before = snapshot(model)
    page = report(pre, model, task.valid)
    right = (predict(model, Loader(task.valid, 100, pre.transform))[0].argmax(1) == task.valid.y).double().mean()
    assert f"Right on {right:.1%} of 200 examples" in page.html
    row = page.html.partition("layer3</th>")[2].partition("</tr>")[0]
    assert "0.0%" in row and "1.00" in row and "</i>0%" in row  # frozen: no way, no direction, the same features
    assert "</i>0.0%" not in page.html.partition("layer4</th>")[2]
    assert "Stored statistics that moved: 6 of 24" in page.html
    assert "prefers-color-scheme: dark" in page.html and "http" not in page.html and "<script" not in page.html
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    page.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.endswith(page._repr_html_())


def test_a_report_refuses_in_one_sentence(pre, task):
    model = adapt(pre, 10)
    with pytest.raises(ValueError, match="at least two classes"):
        report(pre, model, task.valid[task.valid.y == 3])
    with pytest.raises(ValueError, match="take a network and a task of one kind"):
        report(pre, model, Examples(torch.zeros(4, 9, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])))


def test_texts_have_a_report_too():
    text, names = load_pretrained("counted"), load_split("negation")
    page = report(text, adapt(text, len(names.classes)), names.test[:60])
    assert "of 60 examples" in page.html and "Stored statistics" not in page.html
    assert "what was overwritten" not in page.html  # it has no head of its own


def test_a_report_merges_lora_in_a_copy(pre, task):
    torch.manual_seed(0)
    model = add_lora(adapt(pre, 10), 2, 4)
    for n, p in model.named_parameters():
        if "lora_B" in n:
            p.data.normal_(std=0.05)
    before = snapshot(model)
    page = report(pre, model, task.valid[:50])
    assert "conv1" in page.html and all(torch.equal(t, before[n]) for n, t in snapshot(model).items())


def test_layers_over_time_are_averaged_over_time_and_layers_of_tokens_over_tokens():
    class Heard(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.turn, self.norm = nn.Conv1d(3, 5, 1), nn.Identity(), nn.LayerNorm(5)

        def forward(self, x):  # [n, 3, T]
            return self.norm(self.turn(self.conv(x)).mT).mean(1)

    net, x = Heard(), torch.randn(4, 3, 9)
    seen = layer_features(net, [(x, None)], ["conv", "norm"])
    z = net.conv(x).detach()
    assert torch.allclose(seen["conv"], z.mean(2), atol=1e-6)
    assert torch.allclose(seen["norm"], net.norm(z.mT).detach().mean(1), atol=1e-6)
    assert torch.allclose(extract(net, [(x, torch.zeros(4))], layer="conv").x, z.mean(2), atol=1e-6)
