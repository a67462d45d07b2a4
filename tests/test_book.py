"What the book promises its reader, as far as a test can see it: words explained, links that lead somewhere, true bounds."

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT
from notebook import CHINESE, NOTEBOOKS, called, code_cells, load, source
from write_links import ELSEWHERE, written
from write_teaching import pages

CHAPTERS = [p for p in NOTEBOOKS if p.stem != "index"]
NUMBERED = [p for p in CHAPTERS if p.stem[0].isdigit()]
TITLES = {p.stem.split("_")[0]: p for p in CHAPTERS}  # "05" or "D" -> its notebook
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
each_numbered = pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)


def markdown(path):
    return [source(c) for c in load(path)["cells"] if c["cell_type"] == "markdown"]


def prose(text):
    "Markdown without its formulas, code and targets of links."
    return re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$|```.*?```|`[^`]*`|\]\([^)]*\)", " ", text, flags=re.S)


def shown(path):
    "The words that a notebook's stored outputs say, cell by cell."
    for c in load(path)["cells"]:
        for o in c.get("outputs", []):
            text = o.get("data", {}).get("text/markdown") or o.get("text", "")
            yield c["id"], "".join(text)


# a program that grows piece by piece


def rows(path):
    "How many exported cells stand in a row without a cell between them that uses one; cells of imports do not count."
    row = longest = 0
    for code in code_cells(load(path)):
        body = ast.parse(code).body
        if body and all(isinstance(n, ast.Import | ast.ImportFrom) for n in body):
            continue
        row = row + 1 if re.search(r"^#\| ?export", code, re.M) else 0
        longest = max(longest, row)
    return longest


@each_chapter
def test_no_more_than_three_exported_cells_without_a_use(path):
    assert rows(path) <= 3


# pictures for those who cannot see them


@each
def test_every_stored_picture_has_a_sentence(path):
    for c in load(path)["cells"]:
        for o in c.get("outputs", []):
            if "image/png" in o.get("data", {}):
                alt = o.get("metadata", {}).get("image/png", {}).get("alt", "")
                assert len(alt.split()) >= 5, (
                    f"cell {c['id']}: begin it with '#| fig-alt: ', and say what is to be seen"
                )
                assert not re.search(r"\d\.\d", alt), f"cell {c['id']}: a number that may change in {alt!r}"


# pointers

MENTION = re.compile(
    r"\b([Cc]hapters?|[Aa]ppendix|[Aa]ppendices) ((?:\d\d|Z{0,2}[A-Z])\b(?:(?:, | and | to )(?:\d\d|Z{0,2}[A-Z])\b)*)"
)


def anchors(path):
    "What a link behind # may name: JupyterLab's way to write a heading, or a cell."
    text = "\n".join(markdown(path))
    headings = {h.strip().replace(" ", "-").replace("`", "") for h in re.findall(r"^#+ (.+)$", text, re.M)}
    return headings | {f"cell-id={c['id']}" for c in load(path)["cells"]}


@each
def test_every_mention_of_a_chapter_is_a_link(path):
    for text in markdown(path):
        plain = re.sub(r"\[[^\]]*\]\([^)]*\)", "", re.sub(r"```.*?```", "", text, flags=re.S))
        assert not (m := MENTION.search(plain)), (
            f"{m[0]!r} is no link, in: {plain[max(0, m.start() - 60) : m.end() + 20]}"
        )


@pytest.mark.parametrize("path", NOTEBOOKS + CHINESE, ids=called)
def test_every_link_leads_somewhere(path):
    for text in [*markdown(path), *(t for _, t in shown(path))]:
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"https?:|mailto:", target):
                continue
            name, _, heading = target.partition("#")
            file = path.parent / name if name else path
            assert file.exists(), target
            if heading and file.suffix == ".ipynb":
                assert heading in anchors(file), f"{target}: no such heading"


@each
def test_what_a_cell_says_names_only_chapters_that_are_there(path):
    said = [t for _, t in shown(path)] + [c for c in code_cells(load(path))]
    for text in said:
        for m in MENTION.finditer(text):
            for name in re.findall(r"\b\d\d\b|\bZ{0,2}[A-Z]\b", m[2]):
                assert name in TITLES, f"{m[0]!r}: there is no such chapter"


@each_chapter
def test_it_ends_in_links_to_its_neighbours(path):
    i, last = CHAPTERS.index(path), markdown(path)[-1]
    neighbours = [p.name for p in CHAPTERS[max(0, i - 1) : i + 2] if p != path]
    wanted = sorted([*neighbours, "index.ipynb#The-map"])
    assert sorted(re.findall(r"\]\(([^)]+)\)", last)) == wanted, "python tests/write_links.py"
    for p in CHAPTERS[max(0, i - 1) : i + 2]:
        name = markdown(p)[0].splitlines()[0].removeprefix("# ")
        assert p == path or f"[{p.stem.split('_')[0]} {name}]({p.name})" in last


def minutes(text):
    return {
        name: (title, int(m))
        for title, name, m in re.findall(r"^\| \[(.+?)\]\((?:nbs/)?(.+?)\) \| (\d+) \|", text, re.M)
    }


def test_the_two_maps_are_one_and_say_what_the_chapters_say():
    readme, index = (
        minutes((ROOT / "README.md").read_text(encoding="utf-8")),
        minutes("\n".join(markdown(ROOT / "nbs/index.ipynb"))),
    )
    assert readme == index and list(readme) == [p.name for p in CHAPTERS]
    for path in CHAPTERS:
        title, wanted = readme[path.name]
        own = markdown(path)
        assert title == f"{path.stem.split('_')[0]} {own[0].splitlines()[0].removeprefix('# ')}"
        assert f"About {wanted} minutes" in " ".join(own), f"{path.stem} is to say: About {wanted} minutes."


# words

WORDS = {
    "nat": r"nats?", "logit": r"logits?", "cross-entropy": r"cross-entropy", "log-sum-exp": r"log-sum-exp",
    "profile": r"profiled?", "Hessian": r"Hessian", "preconditioner": r"preconditioner", "all-reduce": r"all-reduce",
    "FLOP": r"FLOPs?",
}  # fmt: skip


def words(path):
    "The glossary: word -> what it says."
    text = "\n".join(markdown(path))
    section = text.partition("\n## Words")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\W*\*\*(.+?)\*\*(.+)$", section, re.M))


def test_the_glossary_explains_each_hard_word():
    there = words(ROOT / "nbs" / "index.ipynb")
    for word, pattern in WORDS.items():
        found = [k for k in there if re.search(rf"\b{pattern}\b", k, re.I)]
        assert found and len(there[found[0]].split()) >= 8, word


@each_chapter
@pytest.mark.parametrize("word", WORDS)
def test_a_hard_word_is_explained_or_linked_where_it_first_occurs(path, word):
    "In bold where the chapter explains it; else a link to the glossary, or to the chapter that explains it."
    text = "\n\n".join(
        re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$|```.*?```|`[^`]*`", " ", t, flags=re.S) for t in markdown(path)[1:]
    )
    text = re.sub(r"^#+ .*$", "", text, flags=re.M)  # a heading is no place to explain
    first = re.search(rf"(?<![\w-]){WORDS[word]}(?![\w-])", text)
    if first:
        line = text[text.rfind("\n", 0, first.start()) + 1 : text.find("\n", first.end()) % (len(text) + 1)]
        at = first.start() - text.rfind("\n", 0, first.start()) - 1
        spans = [m.span() for m in re.finditer(r"\[[^\]]*\]\([^)]*\)|\*\*[^*]+\*\*", line)]
        assert any(a <= at < b for a, b in spans), f"{first[0]!r} in: {line[max(0, at - 60) : at + 40]}"


# questions


@each_numbered
def test_five_questions_in_words_with_folded_answers(path):
    text = "\n\n".join(markdown(path)).partition("\n## Questions")[2]
    section = re.split(r"\n## ", text)[0]
    answers = re.findall(r"<details>\s*<summary>Answer (\d)</summary>\n\n(.+?)\n\n</details>", section, re.S)
    assert [n for n, _ in answers] == list("12345")
    for n, answer in answers:
        assert len(answer.split()) >= 15, f"answer {n} is short: {answer}"
    assert section.count("?") >= 3


# what the stored outputs say of themselves

NUMBER = r"(-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)"


def value(text):
    return float(text.replace(",", ""))


def contradictions(text):
    "Where a stored sentence's words and its numbers cannot both be true."
    text = text.replace("**", "")
    for m in re.finditer(r"(?<![\d.])(\d+(?:,\d{3})*) of (\d+(?:,\d{3})*)(?![\d.%])", text):
        if value(m[1]) > value(m[2]):
            yield m[0]
    ways = dict(
        falls=r"\b(?:falls?|fell|drops?|dropped|down|sinks?|lowers?)", rises=r"\b(?:rises?|rose|grows?|grew|climbs?|up)"
    )
    for way, verb in ways.items():
        for m in re.finditer(rf"{verb} from {NUMBER} ?(\D{{0,12}}?) ?to {NUMBER}", text):
            if (value(m[3]) > value(m[1])) == (way == "falls") and m[1] != m[3]:
                yield m[0]
    for m in re.finditer(rf"\b(?:interval|between) {NUMBER} (?:to|and) {NUMBER}", text):
        if value(m[1]) > value(m[2]):
            yield m[0]
    for m in re.finditer(
        rf"[Ff]orecast\D{{0,40}}? at most\D{{0,10}}? {NUMBER} s\b.{{0,60}}?(?:took|taken|measured)\D{{0,20}}? {NUMBER} s",
        text,
    ):
        if value(m[2]) > value(m[1]):
            yield m[0]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("accuracy falls from **0.92** to 0.25", 0), ("accuracy falls from 0.25 to 0.92", 1), ("it rises from 3 to 2 points", 1),
        ("4 of 3 buffers", 1), ("right on 3 of 3", 0), ("between 0.7 and 0.6", 1), ("interval -0.1 to +0.2", 0),
        ("A forecast of at most 1.8 s; it took 5.9 s", 1), ("A forecast of at most 14.6 s; it took 4.9 s", 0), ("down from 0.924 to 0.498", 0),
    ],
)  # fmt: skip
def test_a_contradiction_is_seen(text, wrong):
    assert len(list(contradictions(text))) == wrong


@each
def test_no_stored_sentence_contradicts_its_numbers(path):
    for cell, text in shown(path):
        assert not (bad := list(contradictions(text))), f"cell {cell}: {bad}"


# the frame


def test_every_notebook_has_its_first_and_last_cells_and_the_teachers_pages_are_of_them():
    for path, content in (written() | pages()).items():
        assert path.read_text(encoding="utf-8") == content, f"{path.name}: python tests/write_links.py"


def test_the_cell_for_elsewhere_does_nothing_here_and_brings_the_book_where_there_is_none(tmp_path, monkeypatch):
    code, ran = ELSEWHERE.format(package="sft_nb==1"), []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "subprocess.run", lambda words, check: ran.append(words[2:]) or Path("sft_nb-book").mkdir(exist_ok=True)
    )
    exec(code, {})
    assert ran == [] and Path.cwd() == tmp_path
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(code, {})
    assert ran == [["pip", "install", "--quiet", "sft_nb==1"], ["sft_nb.cli", "book", "sft_nb-book"]]
    assert Path.cwd() == tmp_path / "sft_nb-book"
