"Backbone and head: the law h(phi(x)) == f(x) for every torchvision family, and files that are not what they say."

import copy
import hashlib
import pickle
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sft_nb.core import set_seed
from sft_nb.data import Loader, few_shot, load_split
from sft_nb.freezing import freeze, unchanged
from sft_nb.models import (
    Pretrained,
    TransferModel,
    adapt,
    architecture,
    find_head,
    load_pretrained,
    load_theta,
    read_weights,
    snapshot,
    source_network,
    take_apart,
)
from sft_nb.objective import risk
from sft_nb.sources import pocket
from sft_nb.sources.pocket import POCKET

import torchvision  # isort: skip (after sft_nb)

WEIGHTS = {
    n: torchvision.models.get_model_weights(n).DEFAULT
    for n in torchvision.models.list_models(module=torchvision.models)
}
HEADLESS = {"squeezenet1_0", "squeezenet1_1"}


def smallest_of_each_family():
    "resnext and wide_resnet are ResNets; a second version (swin_v2, efficientnet_v2) is a family of its own."
    families = {}
    for n in WEIGHTS:
        family = re.sub("^(wide_resnet|resnext)", "resnet", n)
        families.setdefault(re.match(r"[a-z]+(_v\d)?", family)[0], []).append(n)
    return [min(ns, key=lambda n: WEIGHTS[n].meta["num_params"]) for ns in families.values()]


SMALL = [n for n in smallest_of_each_family() if n not in HEADLESS]


def blank(transform, n=1):
    x = torch.randint(0, 256, (n, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return transform(x)


def same(a, b):
    "Two state dicts, to the bit."
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def payload(module):
    "Every byte of every parameter and buffer."
    return {n: t.numpy().tobytes() for n, t in module.state_dict().items()}


# --- the law, for every family -----------------------------------------------------------------------------------


def check_law(name):
    net, transform = architecture(name)
    assert not any(m.training for m in net.modules())
    x = blank(transform)
    assert list(x.shape[-2:]) == WEIGHTS[name].transforms().crop_size * 2
    where = find_head(net, x)
    entered = []  # what enters the head, seen from outside
    hook = net.get_submodule(where).register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    with torch.no_grad():
        logits = net(x)
    hook.remove()
    backbone, head = take_apart(net, where)
    with torch.no_grad():
        z = backbone(x)
        assert torch.equal(z, entered[0]) and z.shape == (1, head.in_features) and z.any()
        assert torch.equal(head(z), logits) and logits.shape == (1, 1000)
        del net
        model = adapt(Pretrained(backbone, head, transform, head.in_features, name), 7)
        assert torch.equal(model.features(x), z) and model(x).shape == (1, 7)


@pytest.mark.parametrize("name", SMALL)
def test_head_after_backbone_is_the_network(name):
    check_law(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WEIGHTS.keys() - set(SMALL) - HEADLESS))
def test_head_after_backbone_is_the_network_for_all_others(name):
    check_law(name)


def test_all_families_are_there():
    assert len(SMALL) >= 18 and {"resnet18", "vit_b_16", "swin_v2_t", "maxvit_t", "vgg11"} <= set(SMALL)


@pytest.mark.parametrize("name", sorted(HEADLESS))
def test_squeezenet_is_refused_before_anything_is_fetched(name, hub):
    with pytest.raises(ValueError, match=r"^SqueezeNet does not end in a linear layer, so it has no head to replace$"):
        load_pretrained(name)
    assert not hub.exists()


def count(name, device):
    with torch.device(device):
        net, _ = architecture(name)
    return sum(p.numel() for p in net.parameters())


def published_count(name):
    "torchvision's own count; its inception_v3 counts the classifier half-way, which we leave out."
    if name != "inception_v3":
        return WEIGHTS[name].meta["num_params"]
    with torch.device("meta"):
        whole = torchvision.models.inception_v3(weights=None, init_weights=False)
    return WEIGHTS[name].meta["num_params"] - sum(p.numel() for p in whole.AuxLogits.parameters())


@pytest.mark.parametrize("name", [n for n in WEIGHTS if not n.startswith("regnet")])
def test_the_architecture_is_the_one_that_the_weights_were_made_for(name):
    assert count(name, "meta") == published_count(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in WEIGHTS if n.startswith("regnet")])  # they need numbers to be built
def test_the_architecture_is_the_one_that_the_weights_were_made_for_regnet(name):
    assert count(name, "cpu") == published_count(name)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_no_auxiliary_outputs_in_train_mode(name):
    net, transform = architecture(name)
    backbone, head = take_apart(net, find_head(net, blank(transform)))
    model = adapt(Pretrained(backbone, head, transform, head.in_features, name), 7).train()
    out = model(torch.randn(2, 3, 96, 96))
    assert isinstance(out, torch.Tensor) and out.shape == (2, 7)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters()), "a parameter that training never reaches"


def test_a_head_without_bias_gets_one():
    with torch.device("meta"):
        net, transform = architecture("maxvit_t")
    backbone, head = take_apart(net, find_head(net, blank(transform).to("meta")))
    assert head.bias is None
    assert adapt(Pretrained(backbone, head, transform, head.in_features, "maxvit_t"), 7).head.bias.shape == (7,)


# --- finding the head of any network -----------------------------------------------------------------------------


class Chain(nn.Module):
    "Linear layers that run in one order and are registered in another, with BatchNorm and dropout between."

    def __init__(self, widths, order):
        super().__init__()
        self.n = len(widths) - 1
        for i in order:
            self.add_module(f"bn{i}", nn.BatchNorm1d(widths[i]))
            self.add_module(f"l{i}", nn.Linear(widths[i], widths[i + 1]))

    def forward(self, x):
        for i in range(self.n):
            x = self.get_submodule(f"l{i}")(torch.relu(self.get_submodule(f"bn{i}")(x)))
        return x


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_found_by_what_it_does(data):
    widths = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=6))
    order = data.draw(st.permutations(range(len(widths) - 1)))
    training = data.draw(st.booleans())
    net, x = Chain(widths, order).train(training), torch.randn(4, widths[0])
    before = payload(net)
    where = find_head(net, x)
    assert where == f"l{len(widths) - 2}"
    assert payload(net) == before, "a look moved something"
    assert all(m.training == training and not m._forward_hooks for m in net.modules())
    net.eval()
    backbone, head = take_apart(net, where)
    assert torch.equal(head(backbone(x)), net(x))
    assert payload(net) == before and isinstance(net.get_submodule(where), nn.Linear)


@pytest.mark.parametrize(
    "tail",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.Softmax(1), nn.Conv1d(1, 1, 1), nn.BatchNorm1d(2)],
    ids=lambda m: repr(m).split("(")[0] + ("_inplace" if getattr(m, "inplace", False) else ""),
)
def test_something_after_the_last_linear_layer(tail):
    "With h cut out the rest would still run, and h(phi(x)) would not be f(x)."
    net = nn.Sequential(nn.Linear(4, 2), *([nn.Unflatten(1, (1, 2))] if isinstance(tail, nn.Conv1d) else []), tail)
    with pytest.raises(ValueError, match="Sequential does not end in a linear layer"):
        find_head(net, torch.randn(3, 4))


@pytest.mark.parametrize("tail", [nn.Identity(), nn.Dropout(0.5), nn.Dropout(0.5, inplace=True)])
def test_what_does_nothing_in_eval_mode_may_follow(tail):
    net, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), tail), torch.randn(3, 4)
    assert find_head(net, x) == "1"
    assert net.training, "the mode must be left as it was"


def test_a_network_that_fails_is_left_as_it_was():
    net = Chain([4, 3, 2], [0, 1]).train()
    with pytest.raises(RuntimeError):
        find_head(net, torch.randn(2, 5))
    assert all(m.training and not m._forward_hooks for m in net.modules())


# --- the shipped weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POCKET)
def test_shipped(name):
    labels, num_classes, digest = POCKET[name]
    path = ROOT / "sft_nb" / "weights" / f"pocket-{labels}.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest and path.stat().st_size < 1_300_000
    file, theta = safetensors.torch.load_file(path), read_weights(name)
    assert file.keys() == theta.keys()
    for n, t in theta.items():
        assert t.dtype in (torch.float32, torch.int64) and torch.equal(t, file[n].to(t.dtype))
    net, transform = source_network(name)
    assert same(net.state_dict(), theta)
    pre, x = load_pretrained(name), blank(transform, 3)
    assert (pre.name, pre.num_features, pre.head.out_features) == (name, 128, num_classes)
    assert not any(m.training for m in [*pre.backbone.modules(), pre.head])
    with torch.no_grad():
        assert torch.equal(pre.head(pre.backbone(x)), net(x))
    assert torch.equal(pre.transform(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)), transform(torch.zeros(1, 3, 2, 2)))


@pytest.fixture
def copied_weights(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    shutil.copytree(ROOT / "sft_nb" / "weights", folder)
    monkeypatch.setattr(pocket, "_WEIGHTS", folder)
    assert load_pretrained("pocket").name == "pocket"  # the copy is good
    return folder / "pocket-shape.safetensors"


@pytest.mark.parametrize("where", [0, 9, 20_000, 300_001, -1])
def test_one_changed_byte_is_refused(copied_weights, where):
    blob = bytearray(copied_weights.read_bytes())
    blob[where] ^= 1
    copied_weights.write_bytes(blob)
    with pytest.raises(ValueError, match=r"pocket-shape\.safetensors is not the file that was shipped"):
        load_pretrained("pocket")
    assert load_pretrained("pocket-hue").name == "pocket-hue"  # the others are as good as before


@pytest.mark.parametrize("cut", [slice(0, 0), slice(0, -1), slice(0, 1000)])
def test_a_shortened_file_is_refused(copied_weights, cut):
    copied_weights.write_bytes(copied_weights.read_bytes()[cut])
    with pytest.raises(ValueError, match="is not the file that was shipped"):
        read_weights("pocket")


def test_one_source_under_the_name_of_another_is_refused(copied_weights):
    shutil.copy(copied_weights.with_name("pocket-hue.safetensors"), copied_weights)
    with pytest.raises(ValueError, match="is not the file that was shipped"):
        source_network("pocket")


def test_a_missing_file_is_named(copied_weights):
    copied_weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"pocket-shape\.safetensors is missing: install the package again"):
        load_pretrained("pocket")


# --- published weights: files of the same format, made here -----------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "An empty cache of torch.hub."
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "hub"


@pytest.fixture
def publish(hub, tmp_path, monkeypatch):
    "Write `content` as the published file of `name`, its hash in its name, and put it into the cache."

    def write(name, content, cached=True, save=torch.save, host="https://download.pytorch.org/models"):
        save(content, tmp_path / "file")
        blob = (tmp_path / "file").read_bytes()
        file = f"{name}-{hashlib.sha256(blob).hexdigest()[:8]}.pth"
        monkeypatch.setattr(WEIGHTS[name].value, "url", f"{host}/{file}")
        path = (hub / "hub" / "checkpoints" if cached else tmp_path / "served") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)
        return path

    return write


def by_torchvision(name, **options):
    "What torchvision itself makes of the cached file: the oracle."
    return torchvision.models.get_model(name, weights=WEIGHTS[name], **options).eval()


def original(name):
    "torchvision's own network as its authors would have saved it: here random, but no two pictures look alike to it."
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net = torchvision.models.get_model(name, weights=None, **options)
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, 0, 0.1)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return net


def old_names(theta):
    "densenet's published files come from a time when a layer could be called norm.1, and nobody counted batches."
    rename = lambda n: re.sub(r"(denselayer\d+\.(?:norm|conv))(?=\d)", r"\1.", n)
    return {rename(n): t for n, t in theta.items() if not n.endswith("num_batches_tracked")}


legacy = partial(torch.save, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("resnet18", torch.save),
        ("resnet18", legacy),
        ("densenet121", legacy),
        ("googlenet", torch.save),
        ("inception_v3", torch.save),
        ("mnasnet0_5", torch.save),
        ("mobilenet_v3_small", torch.save),
        ("regnet_y_400mf", torch.save),
    ],
    ids=lambda v: v if isinstance(v, str) else "legacy" if v is legacy else "zip",
)
def test_published_from_end_to_end(name, save, publish):
    theta = original(name).state_dict()
    path = publish(name, old_names(theta) if name.startswith("densenet") else theta, save=save)
    before = path.read_bytes()
    net, transform = source_network(name)
    x = blank(transform, 2)
    with torch.no_grad():
        logits = by_torchvision(name)(x)
        assert not torch.allclose(logits[0], logits[1], rtol=1e-3), "any network would pass"
        assert torch.equal(net(x), logits)
        pre = load_pretrained(name)
        assert torch.equal(pre.head(pre.backbone(pre.transform(blank(lambda x: x, 2)))), logits)
    assert repr(pre.transform) == repr(WEIGHTS[name].transforms())
    theta, now = read_weights(name), net.state_dict()
    assert all(torch.equal(theta[n], t) for n, t in now.items() if n in theta) and theta.keys() <= now.keys()
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_offline_names_the_file_the_place_and_the_way_out(hub):
    with pytest.raises(OSError) as e:
        load_pretrained("resnet50")
    file = WEIGHTS["resnet50"].url.rsplit("/", 1)[1]
    for part in (
        f"{file} could not be downloaded",
        WEIGHTS["resnet50"].url,
        str(hub / "hub" / "checkpoints" / file),
        'load_pretrained("pocket")',
    ):
        assert part in str(e.value)
    assert "\n" not in str(e.value)
    assert not [p for p in hub.rglob("*") if p.is_file()]


def test_a_cache_that_cannot_be_made(hub):
    hub.write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"resnet18-f37072fd\.pth could not be downloaded .* put it at"):
        read_weights("resnet18")


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "page"])
def test_a_damaged_or_wrong_file_in_the_cache_is_refused(harm, publish):
    path = publish("mnasnet0_5", original("mnasnet0_5").state_dict())
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes({"flip": blob, "cut": blob[:5000], "empty": b"", "page": b"<html>Sign in</html>"}[harm])
    with pytest.raises(ValueError, match=r"mnasnet0_5-[0-9a-f]{8}\.pth is damaged or not the published file .* delete"):
        load_pretrained("mnasnet0_5")


def test_the_hash_is_checked_on_every_load(publish):
    path = publish("mnasnet0_5", original("mnasnet0_5").state_dict())
    load_pretrained("mnasnet0_5")
    torch.save(original("mnasnet0_5").state_dict(), path)  # a good file, but another one
    with pytest.raises(ValueError, match="is damaged or not the published file"):
        load_pretrained("mnasnet0_5")


class Touch:
    "A pickle that writes a file when it is read."

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("save", [torch.save, legacy, lambda o, f: Path(f).write_bytes(pickle.dumps(o))])
def test_a_program_in_place_of_weights_is_refused_and_not_run(save, publish, tmp_path):
    mark = tmp_path / "it ran"
    path = publish("mnasnet0_5", {"features.0.weight": Touch(mark)}, save=save)
    with pytest.raises(ValueError, match="was refused, and no code in it was run") as e:
        load_pretrained("mnasnet0_5")
    assert str(path) in str(e.value) and not mark.exists()
    pickle.loads(pickle.dumps(Touch(mark))).close()
    assert mark.exists(), "the trap does not work, so the test shows nothing"


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {1: torch.zeros(3)}])
def test_tensors_that_are_no_dictionary_are_refused(content, publish):
    publish("mnasnet0_5", content)
    with pytest.raises(ValueError, match="is not a dictionary of tensors"):
        read_weights("mnasnet0_5")


@pytest.fixture
def server(tmp_path):
    "The folder `served`, over HTTP, on this machine."

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


def test_downloaded_once(publish, server, hub):
    theta = original("mnasnet0_5").state_dict()
    served = publish("mnasnet0_5", theta, cached=False, host=server)
    assert same(read_weights("mnasnet0_5"), theta)
    cached = hub / "hub" / "checkpoints" / served.name
    assert cached.read_bytes() == served.read_bytes() and list(cached.parent.iterdir()) == [cached]
    served.unlink()
    assert same(read_weights("mnasnet0_5"), theta)  # from the cache


@pytest.mark.parametrize("harm", [b"", b"<html>Sign in</html>", None])
def test_a_bad_download_leaves_nothing_behind(harm, publish, server, hub):
    served = publish("mnasnet0_5", original("mnasnet0_5").state_dict(), cached=False, host=server)
    served.unlink() if harm is None else served.write_bytes(harm)
    with pytest.raises(OSError, match="could not be downloaded"):
        load_pretrained("mnasnet0_5")
    assert not [p for p in hub.rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_published_file_carries_its_hash(name):
    assert re.search(r"-[0-9a-f]{8,}\.pth$", WEIGHTS[name].url)


# --- names and random numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_pretrained, source_network, architecture, read_weights])
@pytest.mark.parametrize(
    ("name", "near"), [("resnet5", "'resnet50'"), ("Pocket", "'pocket'"), ("vit", "'vit_"), ("", "'"), (None, "'")]
)
def test_unknown_names(load, name, near, hub):
    with pytest.raises(ValueError, match=re.escape(f"unknown model {name!r}; did you mean")) as e:
        load(name)
    assert near in str(e.value)


@pytest.mark.parametrize("load", [load_pretrained, source_network, read_weights])
def test_loading_draws_no_random_numbers(load):
    state = torch.get_rng_state()
    load("pocket")
    assert torch.equal(torch.get_rng_state(), state)


def test_an_architecture_is_drawn_from_the_seed():
    set_seed(1)
    a = architecture("pocket")[0].state_dict()
    b = architecture("pocket")[0].state_dict()
    set_seed(1)
    assert same(a, architecture("pocket")[0].state_dict()) and not same(a, b)


# --- adapt, TransferModel, snapshot ------------------------------------------------------------------------------


def train(model, pre, n=6):
    "A loop of somebody else: it calls train() and knows nothing of freezing."
    few = few_shot(load_split("digits_wild").train, 2, seed=0)
    opt = torch.optim.SGD(model.parameters(), 0.05)
    for xb, yb in list(Loader(few, 10, pre.transform, shuffle=True)) * (n // 2):
        model.train()
        opt.zero_grad()
        risk(model(xb), yb).backward()
        opt.step()
    return model


def test_adapt_gives_the_target_its_logits_and_keeps_the_features():
    pre = load_pretrained("pocket")
    x = blank(pre.transform, 4)
    for num_classes in (1, 2, 10, 1000):
        model = adapt(pre, num_classes)
        assert model(x).shape == (4, num_classes) and model.head.in_features == pre.num_features
        assert torch.equal(model.features(x), pre.backbone(x))
        assert torch.equal(model(x), model.head(model.features(x)))
        assert all(p.requires_grad for p in model.parameters()) and not any(m.training for m in model.modules())


@pytest.mark.parametrize("num_classes", [0, -3])
def test_adapt_refuses_a_head_without_classes(num_classes):
    with pytest.raises(ValueError, match=f"a head needs at least one class; got num_classes={num_classes}"):
        adapt(load_pretrained("pocket"), num_classes)


def test_theta_pre_is_never_changed():
    pre = load_pretrained("pocket")
    before = payload(pre.backbone), payload(pre.head)
    model = train(adapt(pre, 10), pre)
    moved = {n for n, b in payload(model.backbone).items() if b != before[0][n]}
    assert moved == set(before[0]), "everything was free to move, and should have"
    assert (payload(pre.backbone), payload(pre.head)) == before
    assert not any(m.training for m in pre.backbone.modules())
    assert all(p.grad is None for p in [*pre.backbone.parameters(), *pre.head.parameters()])
    addresses = lambda m: {t.data_ptr() for t in m.state_dict().values() if t.numel() > 1}
    assert not addresses(pre.backbone) & addresses(model)
    with pytest.raises(AttributeError):
        pre.backbone = model.backbone


def test_one_seed_one_head():
    pre = load_pretrained("pocket")
    heads = []
    for seed in (0, 0, 1):
        set_seed(seed)
        heads.append(adapt(pre, 10).head.state_dict())
    assert same(heads[0], heads[1]) and not same(heads[0], heads[2])


@pytest.mark.parametrize("name", POCKET)
def test_a_frozen_backbone_stays_asleep(name):
    pre = load_pretrained(name)
    model = freeze(adapt(pre, 10), "backbone.*")
    head, before = payload(model.head), payload(model.backbone)
    with unchanged(model.backbone):
        train(model, pre)
    assert payload(model.backbone) == before == payload(pre.backbone)
    assert payload(model.head) != head
    assert model.training and model.head.training and not any(m.training for m in model.backbone.modules())


def test_half_frozen():
    pre = load_pretrained("pocket")
    model = freeze(adapt(pre, 10), "backbone.conv1.*", "backbone.bn1.*", "backbone.layer[12].*")
    before = payload(model.backbone)
    train(model, pre)
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.")
    moved = {n for n, b in payload(model.backbone).items() if b != before[n]}
    assert moved == {n for n in before if not n.startswith(frozen)}


def test_eval_and_train_follow():
    model = adapt(load_pretrained("pocket"), 10)
    assert model.train() is model and all(m.training for m in model.modules())
    assert model.eval() is model and not any(m.training for m in model.modules())
    freeze(model)
    assert not any(m.training for m in model.train().modules())
    wrapped = nn.Sequential(freeze(adapt(load_pretrained("pocket"), 10), "backbone.*")).train()
    assert not any(m.training for m in wrapped[0].backbone.modules()), "train() comes from outside here"


def test_a_transfer_model_of_ones_own():
    model = TransferModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), nn.Linear(5, 3))
    x = torch.randn(4, 3, 2, 2)
    assert model.features(x).shape == (4, 5) and torch.equal(model(x), model.head(model.backbone(x)))
    clone = copy.deepcopy(model)
    clone.load_state_dict(snapshot(model))
    assert torch.equal(clone(x), model(x))


def test_a_snapshot_is_a_value():
    pre = load_pretrained("pocket")
    model = adapt(pre, 10)
    theta = snapshot(model)
    assert same(theta, dict(model.state_dict())) and not any(t.requires_grad for t in theta.values())
    bytes_then = {n: t.numpy().tobytes() for n, t in theta.items()}
    train(model, pre)
    assert {n: t.numpy().tobytes() for n, t in theta.items()} == bytes_then
    assert all(not torch.equal(t, theta[n]) for n, t in model.state_dict().items())
    trained = snapshot(model)
    for t in theta.values():
        t.zero_()
    assert same(trained, dict(model.state_dict())), "writing into the value reached the model"


class Unsaved(nn.Module):
    "A network that reads a buffer which `state_dict` leaves out."

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("scale", torch.ones(2), persistent=False)

    def forward(self, x):
        return self.fc(x) * self.scale


def test_theta_goes_back_whatever_became_of_the_version_numbers():
    net, other = (torchvision.models.mnasnet0_5(weights=None) for _ in range(2))
    plain = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(ValueError, match="version"):
        other.load_state_dict(plain)
    assert load_theta(other, plain) is other and same(other.state_dict(), net.state_dict())
    again = torchvision.models.mnasnet0_5(weights=None)
    again.load_state_dict(snapshot(net))
    again.load_state_dict(copy.deepcopy(snapshot(net)))
    assert same(again.state_dict(), net.state_dict())


def test_unsaved_buffers_are_put_back_where_they_were_asked_for():
    net = Unsaved()
    theta, everything = snapshot(net), snapshot(net, unsaved=True)
    assert set(theta) == {"fc.weight", "fc.bias"} and set(everything) == {*theta, "scale"}
    net.load_state_dict(theta)
    net.scale.mul_(3)
    net.fc.weight.data.add_(1)
    assert torch.equal(load_theta(net, theta).scale, torch.full((2,), 3.0))
    net.fc.weight.data.add_(1)
    assert torch.equal(load_theta(net, everything).scale, torch.ones(2)) and same(theta, net.state_dict())
    with pytest.raises(AssertionError, match="buffer 'scale' moved"), unchanged(net):
        net.scale.mul_(2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("fc.bias"), r"'fc.bias' is not there, in the model of shape \[2\]"),
        (lambda t: t.update(x=torch.zeros(1)), r"'x' is of shape \[1\], in the model not there"),
        (lambda t: t.update({"fc.weight": torch.zeros(3, 2)}), r"'fc.weight' is of shape \[3, 2\]"),
    ],
)
def test_a_theta_of_something_else_is_refused_and_changes_nothing(change, told):
    net = Unsaved()
    theta = snapshot(net)
    before = payload(net)
    theta["fc.weight"] += 1
    change(theta)
    with pytest.raises(ValueError, match="no theta of Unsaved: " + told):
        load_theta(net, theta)
    assert payload(net) == before


class TwoNames(nn.Module):
    "One head under two names; `runs` is how often it runs."

    def __init__(self, runs=1):
        super().__init__()
        self.body, self.fc, self.runs = nn.Linear(3, 4), nn.Linear(4, 4), runs
        self.classifier = self.fc

    def forward(self, x):
        x = self.body(x)
        for _ in range(self.runs):
            x = self.classifier(x)
        return x


def test_a_head_with_two_names_leaves_the_backbone_under_both():
    net, x = TwoNames(), torch.randn(5, 3)
    where = find_head(net, x)
    for name in (where, "classifier", "fc"):
        backbone, head = take_apart(net, name)
        assert torch.equal(backbone(x), net.body(x)) and torch.equal(head(backbone(x)), net(x))
    with pytest.raises(ValueError, match="'fc' runs 2 times in TwoNames"):
        find_head(TwoNames(2), x)


# --- the picture size --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({w.transforms().crop_size[0]: n for n, w in WEIGHTS.items()}.values()))
def test_the_size_is_the_transforms(name):
    "One network for each size that torchvision's transforms cut to, 224 to 600 and more."
    pre = Pretrained(nn.Flatten(), nn.Linear(1, 1), WEIGHTS[name].transforms(), 1, name)
    state = torch.get_rng_state()
    assert pre.size == WEIGHTS[name].transforms().crop_size[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_size_where_the_transform_leaves_it_alone():
    from torchvision.transforms import v2

    assert {load_pretrained(n).size for n in POCKET} == {32}
    of = lambda transform: Pretrained(nn.Flatten(), nn.Linear(1, 1), transform, 1, "mine").size
    assert of(lambda x: x.float() / 255) == 224 and of(None) == 224
    assert of(v2.Compose([v2.Resize(100), v2.CenterCrop(96)])) == 96 and of(v2.RandomResizedCrop(64)) == 64
    assert Pretrained(load_pretrained("pocket").backbone, nn.Linear(1, 1), v2.Resize((48, 48)), 1, "mine").size == 48


def test_a_new_head_lies_where_the_backbone_lies():
    pre = load_pretrained("pocket")
    for where in (dict(device="meta"), dict(dtype=torch.float64), dict(dtype=torch.bfloat16)):
        moved = Pretrained(copy.deepcopy(pre.backbone).to(**where), pre.head, pre.transform, 128, "pocket")
        weight = adapt(moved, 3).head.weight
        assert (weight.device, weight.dtype) == (moved.backbone.conv1.weight.device, moved.backbone.conv1.weight.dtype)
