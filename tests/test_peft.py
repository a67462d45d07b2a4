"Few parameters: LoRA against its closed forms, selections against the published counts, deltas to the bit."

import copy
import pickle
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sft_nb import store
from sft_nb.data import Loader, few_shot, load_split
from sft_nb.deltas import delta_about, load_delta, save_delta
from sft_nb.features import extract
from sft_nb.freezing import freeze, moved, trainable, unchanged, unfreeze
from sft_nb.models import Pretrained, TransferModel, adapt, find_head, load_pretrained, snapshot, take_apart
from sft_nb.objective import risk
from sft_nb.peft import (
    LoRA,
    add_lora,
    apply_delta,
    bitfit,
    bn_only,
    delta,
    interpolate,
    lora_size,
    merge_lora,
    num_bytes,
)
from sft_nb.sources.pocket import PocketResNet
from sft_nb.store import StoreError

import torchvision  # isort: skip (after sft_nb)

PRE = load_pretrained("pocket")
LORA = "backbone.layer1.0.conv1"


def pocket_model():
    return adapt(PRE, 10)


def count(model):
    return sum(p.numel() for p in trainable(model).values())


def same(a, b):
    return a.keys() == b.keys() and not moved(a, b)


def shake(model, size=0.05):
    "LoRA whose update is not zero any more."
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, LoRA):
                m.lora_B.normal_(0, size)
    return model


def a_step(model, lr=0.1):
    "One step of SGD on what is trainable, by a third party's loop that calls train()."
    model.train()
    x, y = PRE.transform(load_split("digits_wild").train.x[:32]), load_split("digits_wild").train.y[:32]
    risk(model(x), y).backward()
    torch.optim.SGD(trainable(model).values(), lr).step()
    return model


# --- LoRA: closed forms ---

SHAPES = [
    (nn.Linear(7, 5), (3, 7)),
    (nn.Linear(7, 5, bias=False), (2, 4, 7)),
    (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 9, 9)),
    (nn.Conv2d(4, 6, (3, 2), stride=2, dilation=2, bias=False), (2, 4, 11, 11)),
    (nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular"), (2, 4, 8, 8)),
    (nn.Conv1d(3, 5, 4, stride=3), (2, 3, 17)),
    (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 6)),
]


@pytest.mark.parametrize("layer,shape", SHAPES, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "")
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_layer_with_lora_is_the_layer_plus_two_thin_ones(layer, shape, rank):
    "conv(x, W + s B A) = conv(x, W) + s conv1x1(conv(x, A), B), with torch's own layers as the oracle."
    net = nn.Sequential(copy.deepcopy(layer)).double()
    plain, x = copy.deepcopy(net[0]), torch.randn(shape, dtype=torch.float64)
    m = shake(add_lora(net, rank, 3.0), 1.0)[0]
    thin = copy.deepcopy(plain)
    thin.weight, thin.bias = nn.Parameter(m.lora_A.view(rank, *plain.weight.shape[1:])), None
    conv = {2: F.linear, 3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[plain.weight.ndim]
    wide = m.lora_B.view(len(m.lora_B), rank, *[1] * (plain.weight.ndim - 2))
    assert (m(x) - (plain(x) + 3.0 / rank * conv(thin(x), wide))).abs().max() < 1e-10


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 3), st.integers(1, 8), st.integers(0, 99))
def test_the_update_has_at_most_the_rank_asked_for_and_reaches_it(out, inp, k, rank, seed):
    torch.manual_seed(seed)
    net = shake(add_lora(nn.Sequential(nn.Conv2d(inp, out, k)).double(), rank, 1.0), 1.0)
    update = net[0].update().flatten(1)
    assert torch.linalg.matrix_rank(update) == min(rank, out, inp * k * k)
    assert count(net) == rank * (inp * k * k + out) == lora_size(nn.Sequential(nn.Conv2d(inp, out, k)), rank)


def test_it_starts_where_the_network_is_and_a_waits_for_b():
    model = pocket_model()
    x = torch.randn(4, 3, 32, 32)
    before = model(x)
    add_lora(model, 4, 8).eval()
    assert torch.equal(model(x), before)  # not close: the same
    risk(model(x), torch.arange(4)).backward()
    for m in model.modules():
        if isinstance(m, LoRA):
            assert (m.lora_A.grad == 0).all() and (m.lora_B.grad != 0).any() and m._parameters["weight"].grad is None


def test_a_is_drawn_as_torch_draws_a_layer():
    "Kaiming-uniform with a = sqrt(5): uniform in +-1/sqrt(fan_in)."
    a = add_lora(nn.Sequential(nn.Conv2d(16, 8, 3)), 64, 1.0)[0].lora_A.detach()
    bound = (16 * 9) ** -0.5
    assert (
        a.abs().max() <= bound and abs(a.std().item() - bound / 3**0.5) < 0.03 * bound and a.abs().max() > 0.99 * bound
    )
    torch.manual_seed(3)
    one = add_lora(pocket_model(), 2, 4).state_dict()
    torch.manual_seed(3)
    assert same(one, add_lora(pocket_model(), 2, 4).state_dict())


def test_doubling_alpha_doubles_the_update():
    update = []
    for alpha in (4.0, 8.0):
        torch.manual_seed(0)
        update.append(shake(add_lora(nn.Sequential(nn.Linear(6, 4)), 2, alpha), 1.0)[0].update())
    torch.testing.assert_close(update[1], 2 * update[0])


def reduced_rank(X, Y, rank):
    "The best X M with rank(M) <= rank: OLS, then projection on the top right singular vectors of its fit."
    ols = torch.linalg.lstsq(X, Y).solution
    V = torch.linalg.svd(X @ ols, full_matrices=False).Vh[:rank].T
    return ols @ V @ V.T


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_on_least_squares_lora_reaches_the_reduced_rank_regression(rank):
    "Izenman (1975) solved the problem in closed form; at full rank it is ordinary least squares."
    g = torch.Generator().manual_seed(rank)
    X = torch.randn(60, 6, dtype=torch.float64, generator=g)
    W, Y = torch.randn(4, 6, dtype=torch.float64, generator=g), torch.randn(60, 4, dtype=torch.float64, generator=g)
    net = nn.Sequential(nn.Linear(6, 4, bias=False)).double()
    net[0].weight.data = W
    want = (X @ reduced_rank(X, Y - X @ W.T, rank) + X @ W.T - Y).square().sum()
    add_lora(net, rank, 1.0)
    opt = torch.optim.LBFGS(list(trainable(net).values()), max_iter=2000, tolerance_grad=1e-12, tolerance_change=0,
                            line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        opt.zero_grad()
        loss = (net(X) - Y).square().sum()
        loss.backward()
        return loss

    opt.step(closure)
    assert abs(closure().item() / want.item() - 1) < 1e-8
    if rank == 4:
        assert abs(want.item() / (X @ torch.linalg.lstsq(X, Y).solution - Y).square().sum().item() - 1) < 1e-12


# --- LoRA: merging, freezing, bad input ---


def test_merging_keeps_the_function_and_gives_the_old_tree_back():
    model = pocket_model()
    plain, shown = snapshot(model), repr(model)
    shake(add_lora(model, 4, 8)).eval()
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        before, kept = model(x), copy.deepcopy(model)
        assert merge_lora(model) is model
        assert (model(x) - before).abs().max() < 1e-6
        assert torch.equal(kept(x), before)  # a copy made before is not touched
    assert list(model.state_dict()) == list(plain) and repr(model) == shown
    assert [type(m) for m in model.modules()] == [type(m) for m in pocket_model().modules()]
    assert count(model) == 1290  # what was frozen stays frozen
    changed = {n for n in moved(plain, snapshot(model))}
    assert changed == {f"{n}.weight" for n, m in kept.named_modules() if isinstance(m, LoRA)}
    model.load_state_dict(plain)  # the way back: theta_pre is a value


def test_merge_and_subtract_is_the_way_back():
    model = shake(add_lora(pocket_model(), 4, 8))
    updates = {n: m.update().detach() for n, m in model.named_modules() if isinstance(m, LoRA)}
    merge_lora(model)
    for n, u in updates.items():
        w = PRE.backbone.get_submodule(n.removeprefix("backbone.")).weight
        assert (model.get_submodule(n).weight - u - w).abs().max() < 1e-6


def test_a_step_moves_lora_and_the_head_and_nothing_else():
    model = add_lora(pocket_model(), 4, 8)
    before = snapshot(model)
    with unchanged(model.backbone.bn1), unchanged(model.backbone.layer2[0].downsample[1]):
        a_step(a_step(model))  # in the first step A has no gradient
    expected = {n for n in before if n.endswith((".lora_A", ".lora_B"))} | {"head.weight", "head.bias"}
    assert moved(before, snapshot(model)).keys() == expected
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert model.training and model.head.training


def test_patterns_choose_layers_and_a_second_call_adds_more():
    model = add_lora(pocket_model(), 2, 4, "backbone.layer4.*")
    assert {n.split(".")[1] for n in trainable(model)} == {"layer4", "weight", "bias"}
    add_lora(model, 4, 8, LORA)
    assert {f"{LORA}.lora_A", "backbone.layer4.0.conv1.lora_A"} <= trainable(model).keys()
    freeze(model, "*.lora_?")
    assert trainable(model).keys() == {"head.weight", "head.bias"}
    assert f"{LORA}.lora_B" in trainable(unfreeze(model, "*.lora_?"))


def test_on_a_bare_module_all_but_lora_is_frozen():
    net = add_lora(PocketResNet(), 2, 4)
    assert all(n.endswith((".lora_A", ".lora_B")) for n in trainable(net))
    assert "fc.lora_A" in trainable(net)  # here the head is a layer like others


def test_layers_whose_weight_others_read_learn_too():
    "nn.MultiheadAttention and swin's attention never call their linear layers: they read the weights."
    attention = add_lora(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)), 2, 4)
    x = torch.randn(2, 3, 8)
    before = attention(x)
    before.square().sum().backward()
    m = attention[0].self_attn.out_proj
    assert (m.lora_B.grad != 0).any()
    shake(attention)
    assert not torch.allclose(attention(x), before)
    attention.eval()
    with torch.no_grad():  # also on the fast path of inference
        before = attention(x)
        assert (merge_lora(attention)(x) - before).abs().max() < 1e-6


def test_features_of_a_network_with_lora_are_its_features():
    model = shake(add_lora(pocket_model(), 4, 8)).eval()
    valid = load_split("digits_wild").valid[:64]
    with torch.no_grad():
        want = model.features(PRE.transform(valid.x))
    torch.testing.assert_close(extract(model.backbone, Loader(valid, 32, PRE.transform)).x, want, atol=1e-4, rtol=1e-4)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight


GROUPED = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1))


@pytest.mark.parametrize(
    "make,args,message",
    [
        (pocket_model, (4, 8, "layer4.*"), r"unknown layer pattern 'layer4\.\*'; did you mean 'backbone\.layer4\.\*'"),
        (pocket_model, (4, 8, "backbone.layer4.*", "head"), "unknown layer pattern 'head'"),
        (pocket_model, (0, 8), "rank must be a whole number, at least 1; got 0"),
        (pocket_model, (1.5, 8), "rank must be a whole number"),
        (pocket_model, ("4", 8), "rank must be a whole number"),
        (pocket_model, (4, 0.0), "alpha must be a positive number"),
        (pocket_model, (4, float("nan")), "alpha must be a positive number"),
        (lambda: add_lora(pocket_model(), 4, 8), (4, 8, LORA), "has LoRA already|with LoRA already"),
        (lambda: copy.deepcopy(GROUPED), (1, 1, "0"), "grouped convolution"),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)),
            (1, 1),
            "no linear layer, attention or plain convolution",
        ),
        (lambda: nn.Sequential(nn.ReLU()), (1, 1), "no linear layer"),
        (Tied, (1, 1, "a"), "weight is not its own"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_changed(make, args, message):
    model = make()
    before, grads = snapshot(model), {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        add_lora(model, *args)
    assert same(before, snapshot(model)) and grads == {n: p.requires_grad for n, p in model.named_parameters()}


def test_grouped_and_tied_layers_are_left_out_where_nobody_names_them():
    assert list(trainable(add_lora(copy.deepcopy(GROUPED), 1, 1))) == ["1.lora_A", "1.lora_B"]
    assert list(trainable(add_lora(Tied(), 1, 1))) == ["c.lora_A", "c.lora_B"]


def test_there_must_be_something_to_merge():
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_lora(pocket_model())


# --- counts on torchvision's networks ---


def torchvision_model(name, num_classes=10):
    "Backbone and a new head; on the meta device, where only shapes count."
    with torch.device("meta"):
        net = torchvision.models.get_model(name)
        where = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
        backbone, head = take_apart(net, where)
        return TransferModel(backbone, nn.Linear(head.in_features, num_classes))


# name: all parameters, head, BatchNorm's, biases without the head's, LoRA of rank 4, the same with grouped layers
COUNTS = {
    "resnet18": (11_181_642, 5_130, 9_600, 4_800, 143_692, 143_692),
    "resnet50": (23_528_522, 20_490, 53_120, 26_560, 317_772, 317_772),
    "mobilenet_v3_small": (1_528_106, 10_250, 12_112, 9_968, 56_108, 66_840),
    "efficientnet_b0": (4_020_358, 12_810, 42_016, 30_348, 166_092, 203_084),
    "vit_b_16": (85_806_346, 7_690, 0, 102_912, 595_968, 595_968),
    "convnext_tiny": (27_827_818, 7_690, 0, 49_344, 281_664, 311_688),
}


@pytest.mark.parametrize("name", COUNTS)
def test_what_is_trained_on_torchvisions_networks(name):
    total, head, norm, biases, lora, with_groups = COUNTS[name]
    model = torchvision_model(name)
    assert count(model) == total and sum(p.numel() for p in model.head.parameters()) == head
    assert count(bitfit(model)) == biases + head
    if norm:
        assert count(bn_only(model)) == norm + head
    if name == "vit_b_16":  # q, k and v in one matrix of 3 * 768 rows, in each of 12 layers
        assert lora - 448_512 == 12 * 4 * (768 + 3 * 768)
    grouped = [m for m in model.modules() if getattr(m, "groups", 1) > 1]
    assert lora + sum(4 * (m.weight[0].numel() + len(m.weight)) for m in grouped) == with_groups
    assert lora_size(model, 4) == lora
    assert count(add_lora(model, 4, 8)) == lora + head


@pytest.mark.parametrize("name", ["vit_b_16", "convnext_tiny"])
def test_a_network_without_batchnorm_is_told_so(name):
    model = torchvision_model(name)
    with pytest.raises(ValueError, match="has no BatchNorm .*: bitfit trains its biases"):
        bn_only(model)
    assert all(p.requires_grad for p in model.parameters())


def test_biases_are_found_by_what_they_are():
    "Swin's tables of position biases are weights by shape and by use, though their name ends otherwise."
    learn = trainable(bitfit(torchvision_model("swin_t")))
    assert not any("table" in n for n in learn) and any(n.endswith("qkv.bias") for n in learn)
    assert all(p.ndim == 1 for n, p in learn.items() if not n.startswith("head"))
    with pytest.raises(ValueError, match="no biases"):
        bitfit(nn.Sequential(nn.Linear(2, 2, bias=False)))


class Oddly(nn.Module):
    "Biases as other libraries call them, and what only sounds like one."

    def __init__(self):
        super().__init__()
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.unbiased = nn.Parameter(torch.zeros(4))
        self.rnn, self.attention = nn.LSTM(4, 4, 2, bidirectional=True), nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.norm = nn.LayerNorm((2, 4))  # its bias has two dimensions


def test_biases_of_other_names_are_found():
    learn = {*trainable(bitfit(Oddly()))}
    rnn = {f"rnn.bias_{w}_l{i}{r}" for w in ("ih", "hh") for i in (0, 1) for r in ("", "_reverse")}
    assert learn == {"q_bias", "v_bias", "attention.in_proj_bias", "attention.out_proj.bias", "norm.bias"} | rnn
    assert {*trainable(bitfit(nn.LSTM(4, 4)))} == {"bias_ih_l0", "bias_hh_l0"}


def test_batchnorm_is_found_by_its_type_and_its_statistics_learn_with_it():
    model = bn_only(pocket_model())
    assert "backbone.layer2.0.downsample.1.weight" in trainable(model) and count(model) == 1440 + 1290
    before = snapshot(model)
    far = moved(before, snapshot(a_step(model)))
    norms = {n for n in before if re.search(r"\.bn\d|downsample\.1", n)}
    assert far.keys() == norms | {"head.weight", "head.bias"}
    assert model.train().backbone.bn1.training and not model.backbone.conv1.training
    with pytest.raises(ValueError, match="no BatchNorm"):
        bn_only(nn.Sequential(nn.BatchNorm2d(3, affine=False)))


# --- deltas ---


def smallest_of_each_family():
    weights = {
        n: torchvision.models.get_model_weights(n).DEFAULT for n in torchvision.models.list_models(torchvision.models)
    }
    families = {}
    for n in weights:
        family = re.match(r"[a-z]+(_v\d)?", re.sub("^(wide_resnet|resnext)", "resnet", n))[0]
        families.setdefault(family, []).append(n)
    return [min(ns, key=lambda n: weights[n].meta["num_params"]) for ns in families.values()]


FAMILIES = smallest_of_each_family()


@pytest.mark.parametrize("name", FAMILIES)
def test_delta_round_trip_on_every_family(name, tmp_path):
    "Biases, a buffer and a new tensor change; all else is left to theta_pre, and theta comes back to the bit."
    try:
        with torch.device("meta"):  # only names, shapes and types are the network's own
            net = torchvision.models.get_model(name)
    except NotImplementedError:  # a few compute their sizes with tensors
        net = torchvision.models.get_model(name)
    theta_pre = {
        n: torch.empty(t.shape, dtype=t.dtype).fill_(i % 97) for i, (n, t) in enumerate(net.state_dict().items())
    }
    fine = {
        n: t + 1 if n.endswith(("bias", "running_mean", "num_batches_tracked")) else t for n, t in theta_pre.items()
    }
    fine["head.weight"] = torch.randn(3, 5)
    d = delta(fine, theta_pre)
    assert d.keys() == {n for n in fine if n.endswith(("bias", "running_mean", "num_batches_tracked"))} | {
        "head.weight"
    }
    assert same(apply_delta(theta_pre, d), fine)
    path = tmp_path / "delta.safetensors"
    size = save_delta(path, fine, theta_pre)
    assert same(load_delta(path, theta_pre), fine) and size == path.stat().st_size
    assert 0 <= size - num_bytes(d.values()) < 300 + 200 * len(d)  # the header


VALUES = [0.0, -0.0, 1.0, float("nan"), float("inf"), 1e-45]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(VALUES), min_size=3, max_size=3), st.lists(st.sampled_from(VALUES), min_size=3, max_size=3),
       st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))  # fmt: skip
def test_delta_is_exact_for_every_value_a_float_has(a, b, dtype):
    pre, fine = {"w": torch.tensor(a, dtype=dtype)}, {"w": torch.tensor(b, dtype=dtype)}
    d = delta(fine, pre)
    assert same(apply_delta(pre, d), fine)
    assert bool(d) == (not torch.equal(pre["w"].view(torch.uint8), fine["w"].view(torch.uint8)))


def test_nothing_changed_is_nothing_stored(tmp_path):
    model = TransferModel(copy.deepcopy(PRE.backbone), nn.Linear(128, 10))
    theta = snapshot(model)
    assert delta(theta, theta) == {}
    assert delta(theta, {f"backbone.{n}": t for n, t in PRE.backbone.state_dict().items()}).keys() == {
        "head.weight",
        "head.bias",
    }
    save_delta(tmp_path / "a", theta, theta)
    assert same(load_delta(tmp_path / "a", theta), theta)


def test_layers_with_version_numbers_load_again(tmp_path):
    "MNASNet's layers ask a state_dict for their version; a plain dictionary has none."
    backbone, head = take_apart(torchvision.models.mnasnet0_5(weights=None).eval(), "classifier.1")
    pre = Pretrained(backbone, head, lambda x: x.float() / 255, head.in_features, "mnasnet0_5")
    model, other = adapt(pre, 2), adapt(pre, 2)
    save_delta(tmp_path / "a", model, pre)
    other.load_state_dict(load_delta(tmp_path / "a", pre))
    assert same(snapshot(other), snapshot(model))
    load_delta(tmp_path / "a", pre, adapt(pre, 2))
    theta = snapshot(model)
    other.load_state_dict(apply_delta(theta, delta(theta, theta)))
    other.load_state_dict(interpolate(theta, snapshot(other), 0.5))


def test_a_delta_is_a_copy():
    pre, fine = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    d = delta(fine, pre)
    back = apply_delta(pre, d)
    back["w"] += 5
    d["w"] += 7
    assert fine["w"].tolist() == [1, 1] and pre["w"].tolist() == [0, 0]


def test_lora_is_stored_as_its_factors_with_its_scale(tmp_path):
    model = shake(add_lora(pocket_model(), 4, 8)).eval()
    size = save_delta(tmp_path / "a", model, PRE)
    assert size < 0.07 * save_delta(tmp_path / "merged", merge_lora(copy.deepcopy(model)), PRE)
    other = add_lora(pocket_model(), 4, 1)  # another alpha: the stored one counts
    other.load_state_dict(load_delta(tmp_path / "a", PRE))
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(other.eval()(x), model(x))
    plain = pocket_model()
    plain.load_state_dict(load_delta(tmp_path / "merged", PRE))
    assert (plain(x) - model(x)).abs().max() < 1e-6


def test_a_frozen_backbone_adds_nothing_and_a_drifting_one_does():
    base = {f"backbone.{n}": t for n, t in PRE.backbone.state_dict().items()}
    assert delta(a_step(freeze(pocket_model(), "backbone.*")).state_dict(), base).keys() == {"head.weight", "head.bias"}
    model = pocket_model()
    model.backbone.requires_grad_(False)  # and nothing else: the statistics follow whoever calls train()
    for m in model.modules():
        m.training = True
    model(torch.randn(4, 3, 32, 32))
    assert len(delta(model.state_dict(), base)) == 2 + 36


def test_a_wrong_base_is_refused_in_one_sentence(tmp_path):
    save_delta(tmp_path / "a", pocket_model(), PRE)
    hue = load_pretrained("pocket-hue")
    almost = copy.deepcopy(PRE.backbone)
    with torch.no_grad():
        almost.conv1.weight.view(-1)[0].nextafter_(torch.tensor(9.0))
    for wrong in (hue, Pretrained(almost, PRE.head, PRE.transform, 128, "pocket"), {}, snapshot(PRE.backbone)):
        with pytest.raises(ValueError, match="is a delta for 'pocket' with SHA-256 .* made from") as e:
            load_delta(tmp_path / "a", wrong)
        assert "\n" not in str(e.value)
    assert same(load_delta(tmp_path / "a", load_pretrained("pocket")), load_delta(tmp_path / "a", PRE))


def test_a_damaged_delta_is_refused_wherever_the_damage_is(tmp_path):
    pre = {"w": torch.zeros(3), "n": torch.tensor(1)}
    path, bad = tmp_path / "a", tmp_path / "bad"
    save_delta(path, {"w": torch.ones(3), "n": torch.tensor(1)}, pre)
    blob = path.read_bytes()
    for i in range(len(blob)):
        for damaged in (blob[:i] + bytes([blob[i] ^ (1 << i % 8)]) + blob[i + 1 :], blob[:i]):
            bad.write_bytes(damaged)
            with pytest.raises(StoreError, match="is not what save_delta wrote"):
                load_delta(bad, pre)


def test_other_files_and_other_names_are_refused(tmp_path):
    store.save(tmp_path / "features", dict(x=torch.zeros(2)))
    with pytest.raises(ValueError, match="holds no delta"):
        load_delta(tmp_path / "features", PRE)
    with pytest.raises(FileNotFoundError):
        load_delta(tmp_path / "none", PRE)
    with pytest.raises(ValueError, match="theta has no 'fc.weight', but theta_pre has"):
        save_delta(tmp_path / "b", {"w": torch.zeros(1)}, {"w": torch.zeros(1), "fc.weight": torch.zeros(1)})
    assert not (tmp_path / "b").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not be written"):
        save_delta(tmp_path / "file" / "c", pocket_model(), PRE)


CLASSES = [f"class {i}" for i in range(10)]


def test_class_names_and_the_kind_of_every_layer_travel(tmp_path):
    path = tmp_path / "a"
    model = shake(add_lora(pocket_model(), 4, 6, LORA)).eval()
    save_delta(path, model, PRE, CLASSES)
    about = delta_about(path)
    assert (about.base, about.classes) == ("pocket", tuple(CLASSES))
    assert {n: (k.kind, k.rank, k.alpha) for n, k in about.layers.items()} == {
        LORA: ("Conv2d", 4, 6.0),
        "head": ("Linear", 0, 0.0),
    }
    again = add_lora(pocket_model(), about.layers[LORA].rank, about.layers[LORA].alpha, LORA)
    assert same(load_delta(path, PRE, again, CLASSES), snapshot(model)) and same(snapshot(again), snapshot(model))


def test_names_that_are_not_the_files_are_refused(tmp_path):
    path = tmp_path / "a"
    save_delta(path, pocket_model(), PRE, CLASSES)
    for other in (CLASSES[::-1], CLASSES[:3], ["x", *CLASSES[1:]]):
        with pytest.raises(ValueError, match="tells apart class 0, class 1.*use the file's names"):
            load_delta(path, PRE, classes=other)
    for wrong, sentence in (
        (CLASSES[:9], "10 classes, and 9 names"),
        (["a"] * 10, "each once"),
        ([*range(10)], "text"),
    ):
        with pytest.raises(ValueError, match=sentence):
            save_delta(tmp_path / "b", pocket_model(), PRE, wrong)
    assert not (tmp_path / "b").exists()


class Wide(nn.Linear):
    "A layer of another type with the same tensors."


def misfits():
    lora = lambda rank: add_lora(pocket_model(), rank, 8, LORA)
    wide = pocket_model()
    wide.head = Wide(128, 10)
    yield (
        pocket_model,
        lambda: adapt(PRE, 3),
        "head has 10 classes .class 0, class 1.* and the model's 3: adapt.pre, 10. fits",
    )
    yield (
        lambda: lora(4),
        pocket_model,
        f"{LORA} has LoRA of rank 4 in the file and none in the model: call add_lora first",
    )
    yield lambda: lora(4), lambda: lora(2), r"Conv2d with .*lora_A \[4, .* in the file and Conv2d with .*lora_A \[2"
    yield pocket_model, lambda: lora(2), r"lora_A \[2, .* in the model"
    yield pocket_model, lambda: wide, "head is Linear with bias .* and Wide with bias"
    yield pocket_model, lambda: copy.deepcopy(PRE.backbone), "in the model"


@pytest.mark.parametrize("make,other,sentence", list(misfits()))
def test_a_model_that_does_not_fit_is_told_so_in_one_sentence_and_left_alone(tmp_path, make, other, sentence):
    save_delta(tmp_path / "a", make(), PRE, CLASSES)
    model = other()
    before = snapshot(model)
    with pytest.raises(ValueError, match=sentence) as e:
        load_delta(tmp_path / "a", PRE, model)
    assert "\n" not in str(e.value) and same(before, snapshot(model))


def test_old_files_without_names_load_and_a_file_without_its_base_does_not(tmp_path):
    theta, pre = pocket_model().state_dict(), {f"backbone.{n}": t for n, t in PRE.backbone.state_dict().items()}
    old = dict(kind="delta", base="pocket", base_sha256=store.digest(pre))
    store.save(tmp_path / "a", delta(theta, pre), old)
    about, model = delta_about(tmp_path / "a"), pocket_model()
    assert about.classes == () and list(about.layers) == ["head"] and about.layers["head"].kind == ""
    assert same(load_delta(tmp_path / "a", PRE, model, CLASSES), theta) and same(snapshot(model), theta)
    for lost in ("base_sha256", "base"):
        store.save(tmp_path / "b", delta(theta, pre), {k: v for k, v in old.items() if k != lost})
        for read in (delta_about, lambda p: load_delta(p, PRE)):
            with pytest.raises(ValueError, match="holds no delta of a base"):
                read(tmp_path / "b")
    for what in (dict(classes="["), dict(layers="3"), dict(classes="3"), dict(classes="[[]]"), dict(classes='"ab"')):
        store.save(tmp_path / "c", delta(theta, pre), old | what)
        with pytest.raises(ValueError, match="cannot be read"):
            delta_about(tmp_path / "c")


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save_delta("~/a", pocket_model(), PRE, CLASSES)
    assert (tmp_path / "a").exists() and delta_about("~/a").classes == tuple(CLASSES) and load_delta("~/a", PRE)


class Counting(nn.Module):
    "A layer with a buffer that state_dict leaves out."

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(1), persistent=False)


def test_a_buffer_that_no_file_holds_is_named_if_it_moved(tmp_path):
    base = Counting()
    fine = copy.deepcopy(base)
    assert same(load_delta(save_delta(tmp_path / "a", fine, base) and tmp_path / "a", base), snapshot(fine))
    fine.seen += 1
    with pytest.raises(ValueError, match="seen moved, and no file holds it"):
        save_delta(tmp_path / "b", fine, base)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_model_with_lora_can_be_pickled(protocol):
    model = shake(add_lora(pocket_model(), 2, 4)).eval()
    again = pickle.loads(pickle.dumps(model, protocol))
    x = torch.randn(2, 3, 32, 32)
    assert same(snapshot(model), snapshot(again)) and torch.equal(again(x), model(x))
    assert repr(merge_lora(again)) == repr(merge_lora(copy.deepcopy(model))) == repr(pocket_model().eval())


def encoder():
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)).eval()


def test_attention_with_lora_is_saved_whole_copied_and_read_by_another_process(tmp_path):
    model, x = shake(add_lora(encoder(), 2, 4)), torch.randn(2, 3, 8)
    torch.save(model, tmp_path / "whole")
    program = (
        "import sys, torch, sft_nb; m = torch.load(sys.argv[1], weights_only=False); "
        "x = torch.load(sys.argv[2]); torch.save(m(x).detach(), sys.argv[3])"
    )
    torch.save(x, tmp_path / "x")
    subprocess.run([sys.executable, "-c", program, *(tmp_path / n for n in ("whole", "x", "out"))], check=True)
    assert torch.allclose(torch.load(tmp_path / "out"), model(x), atol=1e-6)
    two = copy.deepcopy(model)
    assert type(two[0].self_attn) is type(model[0].self_attn) and torch.equal(two(x), model(x))


def test_lora_reaches_q_k_and_v():
    "Against an attention whose joint matrix is W + (alpha / rank) B A, written out; training, eval and the fast path."
    torch.manual_seed(0)
    model, x = encoder(), torch.randn(2, 3, 8)
    plain, names = copy.deepcopy(model), list(model.state_dict())
    assert lora_size(model, 2, "0.self_attn") == 2 * (8 + 24)
    before = model(x)
    add_lora(model, 2, 6, "0.self_attn").eval()
    assert set(names) <= set(model.state_dict()) and torch.equal(model(x), before)
    shake(model, 1.0)
    m = model[0].self_attn
    with torch.no_grad():
        plain[0].self_attn.in_proj_weight += 3.0 * m.lora_B @ m.lora_A
        assert torch.allclose(model(x), plain(x), atol=1e-5)  # both on the fast path of inference
    assert torch.allclose(model(x), plain(x), atol=1e-5)
    model(x).square().sum().backward()
    assert (m.lora_A.grad != 0).any() and (m.lora_B.grad != 0).any()
    merge_lora(model)
    assert type(model[0].self_attn) is nn.MultiheadAttention and list(model.state_dict()) == names
    assert all(far < 1e-5 for far in moved(snapshot(model), snapshot(plain)).values())
    three = nn.Sequential(nn.MultiheadAttention(8, 2, kdim=4, vdim=4))
    with pytest.raises(ValueError, match="q, k and v in three matrices: name its out_proj"):
        add_lora(three, 2, 4, "0")
    assert list(trainable(add_lora(three, 2, 4))) == ["0.out_proj.lora_A", "0.out_proj.lora_B"]


# --- WiSE-FT ---


def test_interpolation_ends_exactly_and_copies_whole_numbers():
    zero, one = snapshot(pocket_model()), snapshot(a_step(unfreeze(pocket_model())))
    one["backbone.bn1.weight"][0] = float("inf")  # 0 * inf would be nan
    zero["backbone.bn1.bias"][0] = -0.0
    assert same(interpolate(zero, one, 0), zero) and same(interpolate(zero, one, 1), one)
    half = interpolate(zero, one, 0.5)
    assert half["backbone.bn1.num_batches_tracked"].dtype == torch.int64
    count = "backbone.bn1.num_batches_tracked"
    assert half[count] == one[count] == zero[count] + 1
    torch.testing.assert_close(half["head.bias"], (zero["head.bias"] + one["head.bias"]) / 2)
    half["head.bias"] += 1
    assert not torch.equal(half["head.bias"], zero["head.bias"])


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.integers(0, 99))
def test_interpolated_heads_give_interpolated_logits_and_equal_ends_stay(a, seed):
    g = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, dtype=torch.float64, generator=g)
    X, zero, one = draw(7, 4), dict(W=draw(3, 4), b=draw(3)), dict(W=draw(3, 4), b=draw(3))
    logits = lambda t: X @ t["W"].T + t["b"]
    mixed = interpolate(zero, one, a)
    torch.testing.assert_close(logits(mixed), (1 - a) * logits(zero) + a * logits(one))
    assert all(torch.equal(t, zero[n]) for n, t in interpolate(zero, zero, a).items())


def test_two_networks_are_not_interpolated():
    w = {"w": torch.zeros(2)}
    for other in (
        {"w": torch.zeros(3)},
        {},
        {"w": torch.zeros(2).double()},
        {"w": torch.zeros(2), "v": torch.zeros(1)},
    ):
        with pytest.raises(ValueError, match="two networks"):
            interpolate(w, other, 0.5)
    for a in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            interpolate(w, w, a)


# --- training with few parameters ---


@pytest.mark.parametrize("way", [bn_only, bitfit, lambda m: add_lora(m, 4, 8)], ids=["bn_only", "bitfit", "lora"])
def test_each_way_lowers_the_loss_from_the_pre_trained_function(way):
    ds = few_shot(load_split("digits_wild").train, 10, 0)
    x, model = PRE.transform(ds.x), way(pocket_model())
    opt = torch.optim.Adam(trainable(model).values(), 3e-3)
    losses = []
    for _ in range(15):
        loss = risk(model.train()(x), ds.y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_find_head_still_finds_it_with_lora():
    net = add_lora(PocketResNet(10), 2, 4)
    assert find_head(net, torch.zeros(1, 3, 32, 32)) == "fc"
