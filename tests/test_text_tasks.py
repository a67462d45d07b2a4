"Tasks of text: what their names promise, held against counting, other libraries and other processes."

import hashlib
import io
import os
import re
import subprocess
import sys
import unicodedata
import zipfile
import zoneinfo
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline

from sft_nb import zoo
from sft_nb.cli import main
from sft_nb.data import few_shot, load_split
from sft_nb.fetch import data_folders, git_blob
from sft_nb.models import load_pretrained
from sft_nb.sources import corpora, sentences
from sft_nb.texts import Texts, to_texts

pytestmark = pytest.mark.xdist_group("texts")  # what they share is loaded once, by one worker

CHART_SHA = "4eca64df3536da2d"  # Of the sorted names, with Python 3.10, 3.11, 3.12 and 3.13 alike
MADE = sentences.tasks()
FETCHED = corpora.tasks()
PARTS = ("train", "valid", "test")


def texts(split, part):
    return to_texts(getattr(split, part).x)


def plain(text):
    return " ".join(text.casefold().split())


def load(name):
    "A task; skips where its files are not on this machine."
    try:
        return load_split(name)
    except FileNotFoundError as e:
        pytest.skip(str(e))


def counted(split, shots=None, **how):
    "Mean accuracy of tf-idf and logistic regression over three draws of the labels."
    scores = []
    for seed in range(3):
        few = few_shot(split.train, shots, seed) if shots else split.train
        model = make_pipeline(TfidfVectorizer(**how), LogisticRegression(C=10, max_iter=300))
        model.fit(to_texts(few.x), few.y.numpy())
        scores.append(accuracy_score(split.test.y.numpy(), model.predict(texts(split, "test"))))
        if not shots:
            break
    return np.mean(scores)


WORDS, LETTERS = dict(ngram_range=(1, 2)), dict(analyzer="char_wb", ngram_range=(3, 5))

# any task


@pytest.mark.parametrize("name", [*MADE, *FETCHED])
def test_no_text_of_the_test_is_in_training_and_each_part_has_each_class(name):
    split = load(name)
    known = {plain(t) for part in ("train", "valid") for t in texts(split, part)}
    assert not known & {plain(t) for t in texts(split, "test")}
    assert not {*texts(split, "train")} & {*texts(split, "valid")}
    for part in PARTS:
        ds = getattr(split, part)
        assert type(ds) is Texts and ds.y[ds.y >= 0].unique().tolist() == list(range(len(split.classes))), part


@pytest.mark.parametrize("name", [*MADE, *FETCHED])
def test_the_zoo_knows_it_and_a_size_changes_nothing(name):
    assert zoo.tasks()[name] == ("sentences" if name in MADE else "corpora")
    assert torch.equal(load(name).test.x, load_split(name, size=7).test.x)


def digest(names):
    h = hashlib.sha256()
    for name in names:
        split = load_split(name)
        for part in PARTS:
            h.update(getattr(split, part).x.numpy().tobytes() + getattr(split, part).y.numpy().tobytes())
    return h.hexdigest()


def test_another_process_has_the_same_texts():
    code = f"import sys; sys.path.insert(0, 'tests'); import test_text_tasks as t; print(t.digest({MADE!r}))"
    for seed in ("1",):  # this process has another
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True,
            env=os.environ | dict(PYTHONHASHSEED=seed, PYTHONPATH=str(ROOT)),
        )  # fmt: skip
        assert done.stdout.split()[-1:] == [digest(MADE)], done.stderr


def test_a_task_that_is_not_there_is_told_in_a_sentence():
    for world, wrong, right in ((sentences, "charts", "chart"), (corpora, "banking10_7", "banking10_0")):
        with pytest.raises(ValueError, match=f"unknown task '{wrong}'; did you mean .*'{right}'"):
            world.task(wrong)
        assert world.__name__.rpartition(".")[2] not in zoo.networks().values()
    with pytest.raises(ValueError, match="unknown model 'chart'"):
        load_pretrained("chart")


# chart


def test_the_chart_is_the_same_with_every_python():
    "Names never change; every character of the stretches was there in Unicode 13, which Python 3.10 has."
    split = load_split("chart")
    assert [len(getattr(split, p)) for p in PARTS] == [347, 47, 150]
    said = sorted(t for p in PARTS for t in texts(split, p))
    assert hashlib.sha256("\n".join(said).encode()).hexdigest()[:16] == CHART_SHA
    assert all(unicodedata.lookup(t.upper()) for t in said) and len(set(said)) == 544


def test_a_name_has_the_label_of_its_stretch():
    split = load_split("chart")
    for text, y in zip(texts(split, "test"), split.test.y.tolist(), strict=True):
        ends, k = sentences.CHART[split.classes[y]], ord(unicodedata.lookup(text.upper()))
        assert any(a <= k <= b for a, b in zip(ends[::2], ends[1::2], strict=True))
    share = lambda part: getattr(split, part).y.bincount() / len(getattr(split, part))
    assert (share("train") - share("test")).abs().max() < 0.02  # stratified


def test_counting_names_of_the_chart():
    "Better than the most frequent class, and far from what meaning reaches."
    split = load_split("chart")
    for shots, low, high in ((5, 0.22, 0.42), (10, 0.3, 0.5)):
        assert low < counted(split, shots, **WORDS) < high and low < counted(split, shots, **LETTERS) < high


# docstrings


def test_docstrings_count():
    split = load_split("docstrings")
    assert {"network", "email", "concurrency", "files", "logging", "testing"} <= {*split.classes} <= {*sentences.TOPICS}
    assert len(split.classes) >= 9 and 1000 < len(split.train) <= 1500 and 450 < len(split.test) <= 600
    assert split.train.y.bincount().max() <= 150 and split.test.y.bincount().max() <= 60
    assert min(split.train.y.bincount()) >= 50 and max(map(len, texts(split, "train"))) <= 300


def test_a_file_is_in_one_part():
    "Each text occurs once in the library, so its file is known; found here by its source, masked by another way."
    split, home = load_split("docstrings"), {}
    for topic, named in sentences.TOPICS.items():
        for package in named.split():
            for path, names in sentences._sources(package, sentences.Path(sentences.sysconfig.get_path("stdlib"))):
                for text in sentences._paragraphs(sentences.ast.parse(path.read_bytes()), names):
                    home.setdefault(text, set()).add((topic, path))
    parts = {}
    for part in PARTS:
        for text, y in zip(texts(split, part), getattr(split, part).y.tolist(), strict=True):
            ((topic, path),) = home[text]
            assert topic == split.classes[y]
            parts.setdefault(path, set()).add(part)
    assert all(len(p) == 1 for p in parts.values()) and len(parts) > 50


def test_a_docstring_does_not_say_whose_it_is():
    source = """
class Mailbox_:
    "The mailbox, one of many Mailboxes, or mailboxs."
    async def fetch(self):
        "Let us fetch\\nwhat the mail server has.\\n\\nfetch is not shown"
    def short(self):
        "A b c d"
    def long(self):
        "%s"
    def none(self): pass
""" % ("word " * 70)
    said = [*sentences._paragraphs(sentences.ast.parse(source), ["mail"])]
    assert said == ["Let us _ what the _ server has.", "The _, one of many Mailboxes, or _."]
    import email.message

    first = " ".join(email.message.Message.get_payload.__doc__.split("\n\n")[0].split())
    path = sentences.Path(email.message.__file__)
    masked = [*sentences._paragraphs(sentences.ast.parse(path.read_bytes()), ("email", "message"))]
    assert re.sub("(?i)message|payload", "_", first).split()[:4] == ["Return", "a", "reference", "to"]
    assert any(t.startswith("Return a reference to the payload") for t in masked)
    assert not [t for t in masked if re.search(r"\b(email|messages?)\b", t, re.IGNORECASE)]


def test_counting_docstrings():
    split = load_split("docstrings")
    for shots, low, high in ((10, 0.15, 0.35), (50, 0.28, 0.5)):
        assert low < counted(split, shots, **WORDS) < high and low < counted(split, shots, **LETTERS) < high


def test_a_python_without_sources_is_told_and_one_without_tkinter_has_a_class_less(monkeypatch, tmp_path):
    monkeypatch.setattr(sentences.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no sources of the standard library: install Python with them"):
        sentences._docstrings()
    monkeypatch.undo()
    monkeypatch.setattr(
        sentences, "TOPICS", {k: "tkinter_is_not_here" if k == "gui" else v for k, v in sentences.TOPICS.items()}
    )
    split = sentences._docstrings()
    assert "gui" not in split.classes and len(split.classes) >= 8


# reviews and negation


def vocabulary(side, *kinds):
    return {w for kind in kinds for w in side[kind].split()}


def test_training_and_test_share_no_opinion_no_noun_and_no_frame():
    known, new = sentences._SIDES
    for side in (known, new):
        good, bad, nouns = (side[k].split() for k in ("good", "bad", "nouns"))
        assert (len({*good}), len({*bad}), len({*nouns})) == (20, 20, 8) and not {*good} & {*bad}
        assert len({*side["plain"].split("|")}) == len({*side["negated"].split("|")}) == 5
    content = [vocabulary(s, "good", "bad", "nouns") for s in (known, new)]
    frames = [{*s["plain"].split("|"), *s["negated"].split("|")} for s in (known, new)]
    assert not content[0] & content[1] and not frames[0] & frames[1]
    for name in ("reviews", "negation"):
        split = load_split(name)
        said = [{w for t in texts(split, p) for w in re.findall(r"\w+", t)} for p in PARTS]
        assert content[0] <= said[0] | said[1] and content[1] <= said[2]
        assert not said[2] & content[0] and not (said[0] | said[1]) & content[1]


@pytest.mark.parametrize("name", ["reviews", "negation"])
def test_labels_are_balanced_and_words_say_nothing(name):
    split = load_split(name)
    assert [len(getattr(split, p)) for p in PARTS] == [600, 200, 400]
    assert [int(getattr(split, p).y.sum()) for p in PARTS] == [300, 100, 200]
    for shots in (10, 50, None):
        assert 0.4 < counted(split, shots, **WORDS) < 0.6 and 0.4 < counted(split, shots, **LETTERS) < 0.6


def test_who_knows_the_words_has_all_of_reviews_and_half_of_negation():
    "The construction, read from its words: half of negation is turned round, in every part."
    for name, right in (("reviews", 1.0), ("negation", 0.5)):
        split = load_split(name)
        for part, side in zip(PARTS, (0, 0, 1), strict=True):
            good = vocabulary(sentences._SIDES[side], "good")
            said = torch.tensor([bool({*re.findall(r"\w+", t)} & good) for t in texts(split, part)])
            assert (said == getattr(split, part).y).float().mean() == right


def test_within_training_words_are_enough_for_reviews():
    "So it is the words that are missing, and not the learner."
    split = load_split("reviews")
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=300))
    model.fit(texts(split, "train"), split.train.y.numpy())
    assert model.score(texts(split, "valid"), split.valid.y.numpy()) == 1


# names


def entities(split, part):
    "(kind, name) of all stretches of equal labels."
    for text, y in zip(texts(split, part), getattr(split, part).y.tolist(), strict=True):
        words = text.split(" ")
        assert y[len(words) :] == [-100] * (len(y) - len(words)) and -100 not in y[: len(words)]
        for k, run in groupby(zip(words, y), key=lambda pair: pair[1]):  # noqa: B905  (y is filled up)
            if k:
                yield split.classes[k], " ".join(w for w, _ in run)


def test_no_name_and_no_frame_is_in_both_parts():
    split = load_split("names")
    assert [len(getattr(split, p)) for p in PARTS] == [400, 100, 300] and split.classes == ("O", "PER", "LOC", "ORG")
    known, valid, new = ({*entities(split, p)} for p in PARTS)
    assert not (known | valid) & new and not {n for _, n in known | valid} & {n for _, n in new} and valid <= known
    assert {k: v >= 25 for k, v in Counter(kind for kind, _ in new).items()} == dict(PER=True, LOC=True, ORG=True)
    assert not {*sentences._FRAMES[0].split("|")} & {*sentences._FRAMES[1].split("|")}


def test_every_name_is_one_of_the_file_and_cities_are_those_of_the_time_zones():
    rows = [
        line.split("\t") for line in (ROOT / "sft_nb/sources/names.tsv").read_text(encoding="utf-8").splitlines()[1:]
    ]
    split = load_split("names")
    assert {e for p in PARTS for e in entities(split, p)} <= {tuple(r) for r in rows}
    assert len({n for _, n in rows}) == len(rows) and Counter(k for k, _ in rows) == dict(PER=95, LOC=115, ORG=60)
    if not (zones := zoneinfo.available_timezones()):
        pytest.skip("this system has no time-zone data base")
    assert {n for k, n in rows if k == "LOC"} <= {z.rpartition("/")[2].replace("_", " ") for z in zones}


def test_a_list_of_known_names_finds_none():
    "A gazetteer, the oldest tagger: what it finds of training's names (Sofia, in Sofia Kovalevskaya) is never an entity."
    split = load_split("names")
    known, gold = ({name for _, name in entities(split, part)} for part in ("train", "test"))
    found = [n for t in texts(split, "test") for n in known if f" {n} " in f" {t} "]
    assert not {*found} & gold and len(found) < 0.1 * len(split.test)


# roles


def test_roles_count():
    "Loosely: which sentences there are depends on torch's version."
    split = load_split("roles")
    assert [len(getattr(split, p)) for p in PARTS] == [800, 200, 300]
    assert split.classes == ("O", "CLASS", "FUNC", "ATTR", "MOD")
    for part in PARTS:
        y = getattr(split, part).y
        n = y[y >= 0].bincount(minlength=5)
        assert 0.05 < float(n[1:].sum() / n.sum()) < 0.2 and min(n[1:4]) > 30 and 1 <= n[4] < 20


def test_the_markup_is_gone_and_each_word_has_its_label():
    split = load_split("roles")
    for part in PARTS:
        for text, y in zip(texts(split, part), getattr(split, part).y.tolist(), strict=True):
            words = text.split(" ")
            assert "" not in words and y[len(words) :] == [-100] * (len(y) - len(words)) and -100 not in y[: len(words)]
            assert not re.search(r"[`*<>{}]|:\w+:|\(\)", text) and any(y[: len(words)])


def test_a_role_is_what_sphinx_would_show():
    "The test's own reading of the markup, on the docstring that Python itself has of a living class."
    doc = torch.nn.Softshrink.forward.__doc__, torch.nn.Module.register_buffer.__doc__, torch.optim.Optimizer.__doc__
    roles = re.compile(r":(class|meth|func|attr|mod):`([^`<]*)`")
    for text in doc:
        asked = [(r, t.rpartition(".")[2] if t[0] == "~" else t.removesuffix("()")) for r, t in roles.findall(text)]
        kind = dict(meth="FUNC", func="FUNC").get
        asked = [(t, kind(r, r.upper())) for r, t in asked]
        said = [pair for sentence in sentences._marked(text) for pair in sentence if pair[1] != "O"]
        assert {*said} <= {*asked}


def test_roles_of_the_test_are_those_of_nn_and_optim(tmp_path, monkeypatch):
    split = load_split("roles")
    home = sentences.Path(torch.__file__).parent
    known = {plain(t) for p in ("train", "valid") for t in texts(split, p)}
    assert {plain(t) for t in texts(split, "test")} <= {*sentences._sentences("nn optim")}
    assert not known & {*sentences._sentences("nn optim")} and (home / "nn").is_dir()
    (tmp_path / "torch").mkdir()
    monkeypatch.setattr(
        sentences, "find_spec", lambda _: type("Spec", (), dict(origin=str(tmp_path / "torch" / "__init__.py")))
    )
    with pytest.raises(FileNotFoundError, match="holds no sources of torch: install torch with them"):
        sentences._roles()


def test_a_list_of_known_roles_finds_few():
    "A gazetteer of words, each with its most frequent tag in training, counted by words: what is new is not found."
    split = load_split("roles")
    seen = {}
    for text, y in zip(texts(split, "train"), split.train.y.tolist(), strict=True):
        for w, k in zip(text.split(" "), y):  # noqa: B905  (y is filled up)
            seen.setdefault(w, Counter())[k] += 1
    said, true = [], []
    for text, y in zip(texts(split, "test"), split.test.y.tolist(), strict=True):
        words = text.split(" ")
        said += [seen[w].most_common(1)[0][0] if w in seen else 0 for w in words]
        true += y[: len(words)]
    f1 = f1_score(true, said, labels=[1, 2, 3, 4], average="micro")
    assert 0.05 < f1 < 0.5, f1


# what is fetched


@pytest.fixture
def published(tmp_path, monkeypatch):
    "Two small sets and a mirror of them, in the place of the published ones; `(mirror, home)`."
    mirror, home = tmp_path / "mirror", tmp_path / "home"
    mirror.mkdir()
    tables = {
        f"{part}.csv": "text,category\n"
        + "".join(f'"{part} {c}, {k}",intent {c}\n' for c in range(12) for k in range(5))
        for part in ("train", "test")
    }
    tables["train.csv"] += '"TEST  3, 1",intent 3\n'  # what the test asks, said otherwise
    for name, text in tables.items():
        (mirror / name).write_bytes(text.encode())
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as z:
        for kind in ("neg", "pos"):
            z.writestr(
                f"sentence_polarity/rt-polarity.{kind}",
                "".join(f"clich\xe9 {kind} {k % 9} \n" for k in range(12)).encode("latin-1"),
            )
    (mirror / "sentence_polarity.zip").write_bytes(zipped.getvalue())
    ids = {n: git_blob((mirror / n).read_bytes()) for n in tables}
    kept = {f: git_blob(b) for f, b in corpora._unpacked("a.zip", zipped.getvalue()).items()}
    zip_id = {"sentence_polarity.zip": git_blob(zipped.getvalue())}
    made = dict(
        banking77=corpora.Corpus("us", "CC0", "https://nowhere/bank", ids, ids),
        polarity=corpora.Corpus("us", "CC0", "https://nowhere/films", zip_id, kept),
    )
    monkeypatch.setattr(corpora, "CORPORA", made)
    monkeypatch.setenv("SFT_NB_MIRROR", str(mirror))
    monkeypatch.setenv("SFT_NB_DATA", str(home))
    monkeypatch.setattr(corpora, "data_folders", lambda name: [home / name])  # not beside the project
    corpora._read.cache_clear()
    yield mirror, home
    corpora._read.cache_clear()


def test_a_set_is_fetched_by_the_command_and_its_licence_is_told(published, capsys):
    _, home = published
    with pytest.raises(
        FileNotFoundError, match="polarity is not in .*: run `sft_nb fetch polarity` where there is a network"
    ):
        load_split("polarity")
    assert main(["fetch", "banking10_1", "polarity"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["banking10_1", str(home / "banking77"), "polarity", str(home / "polarity")]
    assert "us; CC0; https://nowhere/bank" in said.err and "us; CC0; https://nowhere/films" in said.err
    assert (home / "polarity" / "SOURCE.txt").read_text(encoding="utf-8") == "us; CC0; https://nowhere/films\n"
    assert main(["fetch", "banking77"]) == 0 and capsys.readouterr().err == ""  # nothing to do
    split = load_split("banking77")
    assert len(split.classes) == 12 and len(split.test) == 60 and len(split.train) + len(split.valid) == 60
    assert (
        len(load_split("banking10_1").classes)
        == 10
        != load_split("banking10_1").classes
        != load_split("banking10_2").classes
    )
    films = load_split("polarity")
    said = [texts(films, p) for p in PARTS]
    assert sum(map(len, said)) == 24 and all(t.startswith("clich\xe9 ") for part in said for t in part)
    assert all(
        len([part for part in said if f"clich\xe9 {kind} {k}" in part]) == 1
        for kind in ("neg", "pos")
        for k in range(3)
    )


@pytest.mark.parametrize(("name", "file"), [("banking77", "test.csv"), ("polarity", "sentence_polarity.zip")])
def test_a_file_that_is_another_is_named_and_refused(published, name, file):
    mirror, _ = published
    right = (mirror / file).read_bytes()
    (mirror / file).write_bytes(right + b"\n")
    with pytest.raises(
        OSError, match=f"{name} could not be had .{file} is not the published file.*run `sft_nb fetch {name}`"
    ):
        zoo.bring(name)
    with pytest.raises(FileNotFoundError, match=f"run `sft_nb fetch {name}`"):
        load_split(name)
    (mirror / file).unlink()
    with pytest.raises(OSError, match=f"{name} could not be had .*set SFT_NB_MIRROR to a folder that holds"):
        zoo.bring(name)
    (mirror / file).write_bytes(right)
    folder = zoo.bring(name)
    mine = next(p for p in sorted(folder.iterdir()) if p.suffix in (".csv", ".txt") and p.name != "SOURCE.txt")
    mine.write_bytes(b"mine")
    for ask in (load_split, zoo.bring):
        with pytest.raises(ValueError, match=f"{mine.name} is not the published file of {name}: move it away"):
            ask(name)
    assert mine.read_bytes() == b"mine"


def test_the_published_files_are_found_and_are_what_their_readmes_say():
    bank, films = load("banking77"), load("polarity")
    assert len(bank.classes) == 77 and len(bank.test) == 3080 and 9_990 <= len(bank.train) + len(bank.valid) <= 10_003
    assert bank.test.y.bincount().tolist() == [40] * 77
    sizes = [len(getattr(films, p)) for p in PARTS]
    assert sum(sizes) == 10_662 and abs(sizes[2] - 2132) < 10
    assert sum(getattr(films, p).y.bincount() for p in PARTS).tolist() == [5331, 5331]
    draws = [load_split(f"banking10_{k}") for k in range(3)]
    assert all(len(s.classes) == 10 and {*s.classes} < {*bank.classes} for s in draws)
    assert len({s.classes for s in draws}) == 3 and all(len(s.test) == 400 for s in draws)


def test_a_mirror_of_the_published_files_is_taken(tmp_path, monkeypatch):
    "From the files that are here, as if they came from afar."
    load("banking77")
    here = next(f for f in data_folders("banking77") if (f / "train.csv").is_file())
    monkeypatch.setenv("SFT_NB_MIRROR", str(here))
    folder = corpora.bring("banking77", tmp_path)
    assert folder == tmp_path / "banking77" and "PolyAI" in (folder / "SOURCE.txt").read_text(encoding="utf-8")
    assert torch.equal(corpora.task("banking77", root=tmp_path).test.x, load_split("banking77").test.x)


def test_counting_published_texts():
    for name, low, high in (("banking10_0", 0.8, 0.95), ("polarity", 0.5, 0.6)):
        assert low < counted(load(name), 10, **WORDS) < high
