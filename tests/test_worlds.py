"A world of token numbers, registered in some thirty lines: all that works on pictures works on it."

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sft_nb import cli, controls, zoo
from sft_nb.core import set_seed
from sft_nb.data import Examples, Images, Loader, Split, few_shot, load_split
from sft_nb.evaluation import accuracy
from sft_nb.experiments import run
from sft_nb.features import extract
from sft_nb.models import Pretrained, from_network, load_pretrained
from sft_nb.records import Config, grid
from sft_nb.strategies import STRATEGIES
from sft_nb.sweeps import sweep
from sft_nb.tables import table

# The world --------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    "A vector for each token, their mean, one layer, and a head."

    def __init__(self, classes=12):
        super().__init__()
        self.embed, self.mix = nn.Embedding(64, 32), nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        return self.head(self.mix(self.embed(x).mean(1)))


def sentences(seed, classes, n):
    "Twelve tokens a row; each class likes some of eight topics, of eight tokens each, more than others."
    g = torch.Generator().manual_seed(seed)
    likes = torch.randn(classes, 8, generator=g).mul(2).softmax(1).repeat_interleave(8, 1) / 8
    y = torch.randint(classes, (n,), generator=g)
    return Examples(torch.multinomial(likes[y], 12, True, generator=g).to(torch.uint8), y)


def network(name):
    set_seed(0)
    net, source = Reader(), sentences(0, 12, 2000)
    opt = torch.optim.Adam(net.parameters(), 0.01)
    for xb, yb in Loader(source, 100, torch.Tensor.long):
        nn.functional.cross_entropy(net(xb), yb).backward()
        opt.step(), opt.zero_grad()
    test = lambda: sentences(0, 12, 3000)[2000:]
    return from_network(net.eval(), torch.Tensor.long, name, source.x[0], kind="tokens", source=test)


def task(name, size=None):
    ds = sentences(dict(news=1, mail=2)[name], 4, 1600)
    return Split(ds[:600], ds[600:800], ds[800:], ("a", "b", "c", "d"))


WORDS = SimpleNamespace(networks=lambda: ("reader",), network=network, tasks=lambda: ("news", "mail"), task=task)

# What runs on it ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def words(monkeypatch):
    "The world, for the time of a test."
    monkeypatch.setattr(zoo, "_OWN", {})
    zoo.register(WORDS, "words")
    yield
    for remembered in (controls._drawn, controls._bare, controls._fewest):
        remembered.cache_clear()


config = lambda **about: Config(pretrained="reader", task="mail", epochs=3, shots=5, **about)


def test_its_names_count_from_now_on(monkeypatch):
    assert zoo.networks()["reader"] == "words" and zoo.tasks()["mail"] == "words"
    for load, name in ((load_pretrained, "raeder"), (load_split, "mial")):
        with pytest.raises(ValueError, match="did you mean '(reader|mail)'"):
            load(name)
    with pytest.raises(ValueError, match="did you mean 'reader'"):
        Config(pretrained="raeder")
    monkeypatch.setattr(zoo, "_OWN", {})
    with pytest.raises(ValueError, match="unknown pretrained 'reader'"):
        config()


def test_features_and_the_certified_head_need_no_picture():
    from sft_nb.probing import solve_head

    pre, split = load_pretrained("reader"), load_split("mail")
    assert (pre.kind, pre.called, pre.size) == ("tokens", "examples", 12)
    few = few_shot(split.train, 10, seed=0)
    probe = solve_head(extract(pre.backbone, Loader(few, 40, pre.transform)), 4, l2=0.1)
    test = extract(pre.backbone, Loader(split.test, 200, pre.transform))
    assert probe.gap < 1e-8 and accuracy(test.x.double() @ probe.W.T + probe.b, test.y) > 0.5


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_runs_or_says_why_not(name):
    c = config(strategy=name)
    if bad := controls.misfits(c):
        assert name in ("bn_only", "frozen_bn") or name.startswith("surgical_layer"), (
            bad
        )  # of BatchNorm, of a ResNet's blocks
        with pytest.raises(ValueError) as e:
            run(c)
        assert bad == dict(strategy=str(e.value))
        return
    record = run(c)
    assert 0.25 < record.accuracy <= 1 and record.n == 800
    assert record == run(c)  # again, to the bit


def test_what_fine_tuning_forgot_is_measured_where_the_world_has_the_source():
    assert run(config(strategy="linear_probing")).scores["source"] > 0.5


def test_sweep_table_and_the_command_line(tmp_path, capsys):
    path = tmp_path / "words.jsonl"
    configs = grid(pretrained="reader", task=["news", "mail"], shots=5, epochs=2, seed=[0, 1])
    records = sweep(configs, path)
    assert sweep(configs, path) == records and len(path.read_text(encoding="utf-8").splitlines()) == 4
    assert [(r["task"], r["n"]) for r in table(records)] == [("news", 2), ("mail", 2)]
    words = "run --pretrained reader --task mail --shots 5 --epochs 2 --format json --strategy full"
    assert cli.main(words.split()) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["pretrained"] == "reader" and "test examples" in said.err
    assert cli.main(["table", str(path)]) == 0 and "mail" in capsys.readouterr().out


def test_the_controls_offer_it_and_say_what_does_not_fit():
    c = controls.controls(config())
    assert c.problems == {} and "reader" in c.parts["pretrained"].options and "mail" in c.parts["task"].options
    c.parts["task"].value = "near"
    assert "reader reads examples" in c.problems["task"] and "torch.uint8 [3, 32, 32]" in c.problems["task"]
    c.value = Config()
    assert c.problems == {}


def test_a_panel_trains_on_it_and_shows_its_rows():
    from sft_nb.dashboard import Panel

    panel = Panel(config(strategy="full"))
    panel.press("start")
    panel.session.wait()
    panel.refresh()
    assert panel.session.state == "finished", panel.session.error
    assert "accuracy on validation examples" in panel.board.parts["curves"].value
    assert panel.board.parts["samples"].value.count("<code>") == 8


def test_a_network_and_a_task_of_two_kinds_are_refused_before_anything_is_computed():
    for pretrained, name in (("reader", "near"), ("pocket", "mail")):
        with pytest.raises(ValueError, match=f"{pretrained} reads .* take a network and a task of one kind"):
            run(Config(pretrained=pretrained, task=name))


# The contract ------------------------------------------------------------------------------------------------------


def without(what):
    return SimpleNamespace(**{k: v for k, v in vars(WORDS).items() if k != what})


@pytest.mark.parametrize("what", zoo.FOUR)
def test_half_a_world_is_refused(what):
    with pytest.raises(ValueError, match=f"has no function {what}: it needs networks, network, tasks, task"):
        zoo.register(without(what), "half")
    assert "half" not in zoo.worlds()


def test_two_worlds_cannot_have_one_name():
    with pytest.raises(ValueError, match="'reader' is a name of the world 'words' already"):
        zoo.register(WORDS, "other")
    with pytest.raises(ValueError, match="'vision' is a world of this package already"):
        zoo.register(WORDS, "vision")
    zoo.register(WORDS, "words")  # a cell that is run again


def test_what_fits_is_said_without_weights_where_the_world_can(monkeypatch):
    from sft_nb.sources import pocket, vision

    for world in (pocket, vision):  # no file may be read
        monkeypatch.setattr(world, "read_weights", None)
    for name in ("pocket", "resnet18"):
        assert controls.misfits(Config(pretrained=name)) == {}
        assert zoo.network(name, weights=False).example.shape == (3, *[32 if name == "pocket" else 224] * 2)
    with pytest.raises(ValueError, match="unknown model 'poket'; did you mean 'pocket'"):
        zoo.network("poket", weights=False)
    with pytest.raises(ValueError, match="the world of 'reader' has no function architecture: take load_pretrained"):
        zoo.ask("reader", "architecture")


def test_a_world_may_open_files(tmp_path):
    (tmp_path / "mine.txt").write_text("yes")
    world = SimpleNamespace(**vars(WORDS), opens=lambda p: p.suffix == ".txt", digest=lambda p: "d" * 64)
    world.task = lambda name, size=None: task("news")
    zoo.register(world, "words")
    assert len(load_split(tmp_path / "mine.txt").train) == 600 and zoo.digest(tmp_path / "mine.txt") == "d" * 64
    assert Config(pretrained="reader", task=str(tmp_path / "mine.txt")).task.endswith("mine.txt")
    assert zoo.reader(tmp_path / "other.csv") is None


# Rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(3, 5, dtype=torch.int16), [0, 1, 2]),
        (torch.zeros(3, 5, dtype=torch.uint8), [[0, 1, -100, -100, -100]] * 3),
        (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(2, 1, 2, 3, 4), torch.tensor([0, 1], dtype=torch.uint8)),
    ],
)
def test_a_row_may_be_anything(x, y):
    ds = Examples(x, y)
    assert len(ds) == len(x) and ds.y.dtype == torch.int64
    assert torch.equal(ds[:2].x, x[:2]) and type(ds[:2]) is Examples and torch.equal(ds.to("cpu").y, ds.y)


@pytest.mark.parametrize(
    ("y", "why"),
    [
        ([0, 1], "3 examples need as many labels"),
        ([0, 1, -100], "labels must be int64, from 0"),
        ([[0, -1], [1, 1], [2, 2]], "labels must be int64, from 0"),
        ([0.0, 1.0, 2.0], "labels must be int64, from 0"),
        ([[[0]], [[1]], [[2]]], "3 examples need as many labels"),
        (["a", "b", "c"], "labels must be whole numbers from 0"),
    ],
)
def test_wrong_labels_are_refused(y, why):
    with pytest.raises(ValueError, match=why):
        Examples(torch.zeros(3, 2), y)


def test_pictures_stay_checked_and_keep_their_class():
    ds = Images(torch.zeros(4, 2, 2, 3, dtype=torch.uint8), [0, 1, 0, 1])
    assert ds.x.shape == (4, 3, 2, 2) and type(ds[1:]) is Images and isinstance(ds, Examples)
    with pytest.raises(ValueError, match="4 pictures need as many labels"):
        Images(ds.x, [[0, 1]] * 4)


def test_few_shot_says_what_it_cannot_count():
    with pytest.raises(ValueError, match="one label for each example"):
        few_shot(Examples(torch.zeros(3, 2), [[0, 1]] * 3), 1, 0)


def test_labels_of_each_token_stay_within_the_classes():
    ds = Examples(torch.zeros(2, 3), [[0, 1, -100], [1, 1, 0]])
    assert Split(ds, ds, ds, ("noun", "verb")).classes == ("noun", "verb")
    with pytest.raises(ValueError, match="label 1 in train has no name"):
        Split(ds, ds, ds, ("noun",))


def test_what_reads_no_pictures_needs_an_example():
    with pytest.raises(ValueError, match="mine reads texts: give one stored row as its example"):
        Pretrained(nn.Identity(), nn.Linear(2, 2), torch.Tensor.long, 2, "mine", kind="text")
