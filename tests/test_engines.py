"The fastest way that is right: chosen by measuring, remembered, and never much slower than a loop by hand."

import json
import warnings
from importlib.util import find_spec

import pytest
import torch
from conftest import ROOT
from torch import nn

from sft_nb import engines
from sft_nb.engines import SPARE, Engine
from sft_nb.features import extract
from sft_nb.models import architecture
from sft_nb.ways import EXACT, WAYS, Phi, Way, relative_error


@pytest.fixture(autouse=True)
def forgetful(tmp_path, monkeypatch):
    "Nothing is known, and what is remembered lies in a folder of the test's."
    monkeypatch.setenv("SFT_NB_CACHE", str(tmp_path))
    monkeypatch.setattr(engines, "_KNOWN", {})
    return tmp_path / "engines.json"


class Clock:
    "A clock that only moves when a network works: `a` seconds a row, and a batch of them in one call."

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    c = Clock()
    monkeypatch.setattr(engines, "_clock", lambda xb: c)
    return c


def costing(clock, seconds, change=0.0):
    "Rows that are the inputs' sums, at a price."

    def run(xb):
        clock.now += seconds * len(xb)
        return xb.flatten(1).sum(1, keepdim=True) + change

    return run


class Slow(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.run = costing(clock, seconds)

    def forward(self, xb):
        return self.run(xb)


def ways(monkeypatch, clock, **told):
    "A table of made ways: name -> seconds to prepare, seconds a row, what it adds to every row."

    def way(ready, each, change):
        def build(phi, xb, dtype):
            clock.now += ready
            return costing(clock, each, change)

        return Way(build, lambda xb, dtype: True, (ready, 0.0))

    monkeypatch.setattr(engines, "WAYS", {n: way(*t) for n, t in told.items()})


def run(engine, n, size=16):
    x = torch.arange(float(n))[:, None] + 1
    return torch.cat([*engine(x.split(size))]), x


def test_the_fastest_that_is_right_is_taken_and_every_row_is_there(clock, monkeypatch):
    ways(
        monkeypatch,
        clock,
        wrong=(0.1, 0.0001, 1.0),
        good=(0.1, 0.005, 0.0),
        slow=(0.1, 0.02, 0.0),
        best=(0.2, 0.002, 0.0),
    )
    engine = Engine(Phi(Slow(clock, 0.01), lambda z, n: z), 4000)
    rows, x = run(engine, 4000)
    assert torch.equal(rows, x) and engine.name == "best" and str(engine) == "best, 5.00 times as fast as eager here"
    assert set(engine.failed) == {"wrong"} and "off" in engine.failed["wrong"]


@pytest.mark.parametrize("n", [16, 40, 100, 1000, 10_000])
@pytest.mark.parametrize("ready", [0.001, 0.05, 0.5, 5.0])
@pytest.mark.parametrize("each", [0.002, 0.009, 0.01, 0.03])
def test_the_search_never_costs_more_than_it_may(clock, monkeypatch, n, ready, each):
    "Whatever the ways turn out to be, as long as their preparation costs what the table says."
    ways(
        monkeypatch,
        clock,
        a=(ready, each, 1.0),
        b=(ready, each, 0.0),
        c=(2 * ready, each / 2, 0.0),
        d=(ready, 3 * each, 0.0),
    )
    rows, x = run(Engine(Phi(Slow(clock, 0.01), lambda z, n: z), n), n)
    assert torch.equal(rows, x)
    pieces = 4 * 2 * 16 * max(0.0, 3 * each - 0.01)  # slower ones are timed on two pieces each
    assert clock.now <= 0.01 * n * (1 + SPARE[True]) + pieces + 16 * 3 * each + 1e-9


def test_small_sets_go_through_as_they_are(clock, monkeypatch):
    seen = []

    class Net(nn.Module):
        def forward(self, xb):
            seen.append(len(xb))
            return xb

    ways(monkeypatch, clock, good=(1.0, 0.0, 0.0))
    rows, x = run(Engine(Phi(Net(), lambda z, n: z), 100), 100, 40)
    assert torch.equal(rows, x) and seen == [40, 40, 20]


def test_what_was_measured_is_remembered_for_the_shape_and_not_for_the_weights(clock, monkeypatch, forgetful):
    ways(monkeypatch, clock, good=(0.1, 0.005, 0.0), best=(0.2, 0.002, 0.0))
    phi = Phi(Slow(clock, 0.01), lambda z, n: z)
    run(Engine(phi, 4000), 4000)
    ((told),) = json.loads(forgetful.read_text()).values()
    assert set(told) == {"eager", "good", "best"} and told["best"][0] == pytest.approx(0.002)
    engines._KNOWN.clear()  # another session
    before, again = clock.now, Engine(phi, 4000)
    rows, x = run(again, 4000)
    assert torch.equal(rows, x) and again.name == "best"
    assert clock.now - before < 16 * 0.01 + 0.2 + 4016 * 0.002 + 1e-6  # the first batch, and no other way
    short = Engine(phi, 20)
    run(short, 20)
    assert short.name == "eager", "four rows do not pay for the preparation"


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"x": 1}'])
def test_a_damaged_memory_is_no_memory(clock, monkeypatch, forgetful, damage):
    forgetful.write_text(damage)
    ways(monkeypatch, clock, good=(0.1, 0.005, 0.0))
    engine = Engine(Phi(Slow(clock, 0.01), lambda z, n: z), 4000)
    assert torch.equal(*run(engine, 4000)) and engine.name == "good"


def test_a_way_that_fails_in_the_middle_loses_no_row(clock, monkeypatch):
    def build(phi, xb, dtype):
        def once(xb):
            if xb[0] > 20:
                raise RuntimeError("out of paper")
            return xb

        return once

    monkeypatch.setattr(engines, "WAYS", {"frail": Way(build, lambda xb, dtype: True, (0.0, 0.0))})
    engine = Engine(Phi(Slow(clock, 0.01), lambda z, n: z), 4000)
    assert torch.equal(*run(engine, 4000))
    assert engine.name == "eager" and engine.failed["frail"] == "cannot be computed (RuntimeError: out of paper)"


@pytest.mark.parametrize("fixed", [True, False])
def test_rows_of_another_shape_are_right_too(clock, monkeypatch, fixed):
    "Sentences of many lengths: what was prepared for one length is not asked about another."

    def build(phi, xb, dtype):
        length = xb.shape[1]

        def run(xb):
            clock.now += 0.001 * len(xb)
            return xb[:, :length].sum(1, keepdim=True) if fixed else xb.sum(1, keepdim=True)  # deaf to what is beyond

        return run

    monkeypatch.setattr(engines, "WAYS", {"good": Way(build, lambda xb, dtype: True, (0.1, 0.0), fixed=fixed)})
    batches = [torch.rand(16, 3 + k % 4, dtype=torch.float64) for k in range(250)]
    engine = Engine(Phi(Slow(clock, 0.01), lambda z, n: z), 4000, wish="good")
    rows = torch.cat([*engine(batches)])
    assert engine.name == "good" and torch.allclose(rows[:, 0], torch.cat([b.sum(1) for b in batches]))


def test_eagers_own_warming_up_is_no_reason_to_leave_it(clock, monkeypatch):
    class Cold(Slow):
        "The first call takes long."

        warm = False

        def forward(self, xb):
            clock.now += 0.0 if self.warm else 0.05 * len(xb)
            self.warm = True
            return super().forward(xb)

    ways(monkeypatch, clock, alike=(0.1, 0.0099, 0.0))
    engine = Engine(Phi(Cold(clock, 0.01), lambda z, n: z), 4000)
    assert torch.equal(*run(engine, 4000)) and engine.name == "eager"


def test_half_precision_is_a_permission(clock, monkeypatch):
    "A short set is computed in full, whatever was allowed, and nothing is said of it."
    ways(monkeypatch, clock, good=(1.0, 0.001, 0.0))
    engine = Engine(Phi(Slow(clock, 0.01), lambda z, n: z), 40, dtype=torch.bfloat16)
    assert torch.equal(*run(engine, 40)) and engine.name == "eager" and not engine.failed


def test_a_set_of_unknown_length_and_an_empty_one(clock, monkeypatch):
    ways(monkeypatch, clock, good=(0.0, 0.001, 0.0))
    engine = Engine(Phi(Slow(clock, 0.01), lambda z, n: z), 0)
    assert torch.equal(*run(engine, 400)) and engine.name == "eager"
    assert list(Engine(Phi(nn.Identity(), lambda z, n: z), 0)([])) == []


def test_a_way_that_fails_is_not_tried_again_in_this_session(clock, monkeypatch, forgetful):
    tried = []

    def build(phi, xb, dtype):
        tried.append(1)
        raise RuntimeError("no")

    monkeypatch.setattr(engines, "WAYS", {"bad": Way(build, lambda xb, dtype: True, (0.0, 0.0))})
    phi = Phi(Slow(clock, 0.01), lambda z, n: z)
    for _ in range(2):
        assert torch.equal(*run(Engine(phi, 4000), 4000))
    assert len(tried) == 1 and "bad" not in forgetful.read_text()


def test_a_wish_that_cannot_be_had_is_told():
    with pytest.warns(
        UserWarning, match="by the engine 'packed' cannot be computed: it does not suit .*: computing eagerly"
    ):
        f = extract(Tokens().eval(), [(torch.randint(0, 50, (8, 7)), [0] * 8)], engine="packed")
    assert f.engine == "eager"


def test_an_unknown_engine_is_refused_by_name(monkeypatch):
    with pytest.raises(ValueError, match="no engine 'turbo'; there are eager, channels last, graph, packed"):
        extract(nn.Flatten(), [(torch.zeros(2, 3), [0, 1])], engine="turbo")
    monkeypatch.setenv("SFT_NB_ENGINE", "tubro")
    with pytest.raises(ValueError, match="no engine 'tubro'"):
        extract(nn.Flatten(), [(torch.zeros(2, 3), [0, 1])])


class Tokens(nn.Module):
    "A small encoder of token numbers, as text has it."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)

    def forward(self, xb):
        return self.blocks(self.embed(xb))


class Sound(nn.Module):
    "Convolutions over time, as speech has it."

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 16, 9, 4), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Conv1d(16, 32, 9, 4)
        )

    def forward(self, xb):
        return self.net(xb).mean(-1)


def networks():
    def named(name, px):
        net = architecture(name)[0]
        for m in net.modules():  # statistics that are not the identity
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.running_var, 0.5, 2)
        return net, torch.rand(21, 3, px, px)

    yield "resnet18", lambda: named("resnet18", 40)
    yield "mobilenet_v3_small", lambda: named("mobilenet_v3_small", 64)
    yield "convnext_tiny", lambda: named("convnext_tiny", 32)
    yield "swin_t", lambda: named("swin_t", 64)
    yield "tokens", lambda: (Tokens().eval(), torch.randint(0, 50, (21, 7)))
    yield "sound", lambda: (Sound().eval(), torch.randn(21, 1, 400))


@pytest.mark.parametrize("name", [n for n in WAYS])
@pytest.mark.parametrize("make", [pytest.param(m, id=n) for n, m in networks()])
def test_every_way_on_every_kind_of_input_is_right_or_refused_and_quiet(make, name, capfd):
    "Also where the batches are 8, 8 and 5 rows, and with the global switches as they were."
    net, x = make()
    if not WAYS[name].suits(x, torch.float32):
        pytest.skip(f"{name} does not suit")
    batches = [(b, torch.zeros(len(b), dtype=torch.long)) for b in x.split(8)]
    with torch.inference_mode():
        want = extract(net, batches, engine="eager").x
    before = torch.jit.onednn_fusion_enabled(), torch.is_autocast_enabled("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", f"features by the engine '{name}' .*: computing eagerly")
        f = extract(net, batches, engine=name)
    assert relative_error(f.x, want) < EXACT and f.engine.startswith(("eager", name))
    assert (torch.jit.onednn_fusion_enabled(), torch.is_autocast_enabled("cpu")) == before
    assert capfd.readouterr().err.replace("\r", "").lstrip().partition("features")[0] == ""  # but for the progress


def test_the_graph_of_each_kind_is_really_taken():
    "What is above could hold because every way fails."
    for name in ("resnet18", "tokens", "sound"):
        net, x = dict(networks())[name]()
        f = extract(net, [(b, torch.zeros(len(b), dtype=torch.long)) for b in x.split(8)], engine="graph")
        assert f.engine.startswith("graph"), name


def test_features_tell_what_computed_them():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    f = extract(net, [(torch.rand(8, 3, 8, 8), torch.zeros(8, dtype=torch.long))])
    assert f.engine == "eager" == f[:3].engine
    assert extract(lambda xb: xb.flatten(1), [(torch.rand(8, 3), [0] * 8)]).engine == ""


def test_the_table_of_ways_is_told_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "[fast]" in text and "SFT_NB_ENGINE" in text


@pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxruntime"))), reason="ONNX Runtime is not installed")
def test_a_network_that_onnx_cannot_have_fails_in_silence(capfd):
    "vgg11_bn pools to seven by seven, which needs a size that is a multiple of it."
    net, x = architecture("vgg11_bn")[0].eval(), torch.rand(16, 3, 64, 64)
    net.classifier = nn.Flatten(1)
    engine = Engine(Phi(net, lambda z, n: z), 16, wish="onnx")
    with torch.inference_mode():
        rows = torch.cat([*engine([x])])
        assert relative_error(rows, net(x)) < EXACT
    assert "cannot be computed" in engine.failed["onnx"] and not any(capfd.readouterr())


@pytest.mark.parametrize("px, factor", [(32, 1.0), (64, 1.3), (224, 1.6)])
def test_what_is_known_beforehand_is_known_by_the_size_of_the_pictures(px, factor, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert WAYS["graph"].known(nn.Identity(), torch.zeros(1, 3, px, px), torch.float32) == factor
    assert WAYS["graph"].known(nn.Identity(), torch.zeros(1, px, dtype=torch.long), torch.float32) == 1.0
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert WAYS["graph"].known(nn.Identity(), torch.zeros(1, 3, px, px), torch.float32) == 1.0


def test_half_precision_is_bet_on_only_where_the_processor_has_it(monkeypatch):
    x = torch.zeros(1, 3, 224, 224)
    for able in (True, False):
        for n in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, n, lambda able=able: able, raising=False)
        told = [WAYS["channels last"].known(nn.Identity(), x, t) for t in (torch.bfloat16, torch.float32)]
        assert told == [2.0 if able else 1.0, 1.0]


def test_packing_is_bet_on_for_small_pictures_and_networks_without_groups(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    plain, grouped = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
    known = lambda net, px, t=torch.float32: WAYS["packed"].known(net, torch.zeros(1, 4, px, px), t)
    assert known(plain, 32) > 1 == known(grouped, 32) == known(plain, 224) == known(plain, 32, torch.bfloat16)
