"""The notebooks of nbs/zh run the code of the English ones: only what a reader reads is another language.

So they need not run again to be right, and `tests/run_notebooks.py` runs of the two only the short one, unless asked.
"""

import ast
import re
import unicodedata
from collections import Counter

import pytest
from conftest import ROOT
from notebook import CHINESE, code_cells, load, source
from test_book import markdown, shown

README = ROOT / "README.zh.md"
FRAME = {"0e1a5000", "0e1a5001"}  # the first and the last cell, which lead elsewhere
each = pytest.mark.parametrize("path", CHINESE, ids=lambda p: p.stem)


def english(path):
    return load(ROOT / "nbs" / path.name)["cells"]


def pairs(path, kind):
    both = zip(english(path), load(path)["cells"], strict=True)
    return [(e["id"], source(e), source(z)) for e, z in both if e["cell_type"] == kind and e["id"] not in FRAME]


# the same code


class Computed(ast.NodeTransformer):
    "What is left of code without its words: docstrings, what `say` says, the hints of `check`. What is computed in them stays."

    def visit_FunctionDef(self, node):
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    visit_ClassDef = visit_FunctionDef

    def visit_Call(self, node):
        spoken = dict(say=0, check=1).get(getattr(node.func, "id", ""))  # the first argument that is words
        if spoken is None:
            return self.generic_visit(node)
        words = sorted(w for a in node.args[spoken:] for w in said(a))
        return ast.Tuple([self.visit(a) for a in node.args[:spoken]] + [ast.Constant(w) for w in words], ast.Load())


class Said(ast.NodeTransformer):
    "Inside of what is said, f-strings and the marks between joined parts may differ, names and numbers may not."

    def visit_JoinedStr(self, node):
        return ast.Tuple([ast.Constant(w) for w in sorted(said(node))], ast.Load())

    def visit_FormattedValue(self, node):
        node.value = self.visit(node.value)  # and how it is written, :.2f, stays
        return node

    def visit_Call(self, node):
        if getattr(node.func, "attr", "") == "join" and isinstance(node.func.value, ast.Constant):
            node.func.value = ast.Constant("")
        return self.generic_visit(node)


def said(node):
    "The parts of a sentence that are computed; a translation may put them in another order."
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return said(node.left) + said(node.right)
    if isinstance(node, ast.JoinedStr):
        return [w for v in node.values for w in said(v)]
    return [ast.dump(Said().visit(node))]


def computed(code):
    return ast.dump(Computed().visit(ast.parse(code)))


SAME = [
    ('say(f"a {x:.2f} and {y}")', 'say(f"甲 {y}，乙 {x:.2f}")'),
    ('"doc"\nsay("a" + ", ".join(f"{a} of {b}" for a in x) + ".")', '"doc"\nsay("甲" + "、".join(f"{b} 里有 {a}" for a in x))'),
    ('def f():\n    "a"\n    return 1  # one', 'def f():\n    "甲"\n    return 1'),
    ('check(lambda: f("a"), "hint")', 'check(lambda: f("a"), "提示")'),
]  # fmt: skip
OTHER = [
    ('say(f"a {x:.2f}")', 'say(f"甲 {x:.1f}")'),
    ('say(f"a {x}")', 'say(f"甲 {y}")'),
    ("say(f\"a {at('full')}\")", "say(f\"甲 {at('head')}\")"),
    ('say(f"a {x}")', 'say("甲 0.5")'),
    ('check(lambda: f("a"), "hint")', 'check(lambda: f("甲"), "提示")'),
    ('x = "a"', 'x = "甲"'),
    ("x = 1", "x = 2"),
]


def test_words_may_differ_and_nothing_else():
    for a, b in SAME:
        assert computed(a) == computed(b), a
    for a, b in OTHER:
        assert computed(a) != computed(b), a


@each
def test_the_cells_are_those_of_the_english_notebook(path):
    ids = lambda cells: [(c["id"], c["cell_type"]) for c in cells]
    assert ids(load(path)["cells"]) == ids(english(path)), "it has other cells than the English notebook"


@each
def test_each_cell_computes_what_the_english_one_computes(path):
    for cell, e, z in pairs(path, "code"):
        assert computed(e) == computed(z), f"cell {cell} of {path.stem}"
    fenced = lambda text: [computed(c) for c in re.findall(r"```python\n(.*?)```", text, re.S)]
    for cell, e, z in pairs(path, "markdown"):
        assert fenced(e) == fenced(z), f"the solution in cell {cell} of {path.stem}"


@each
def test_what_it_shows_is_what_the_english_one_shows(path):
    "Pictures to the byte, and of what is said the numbers; `python tests/store_outputs.py zh/00_tour` stores them."
    pictures = lambda cells: [
        o["data"]["image/png"] for c in cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    numbers = lambda text: sorted(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?", text))
    told = lambda p: {cell: numbers(text) for cell, text in shown(p)}
    assert pictures(load(path)["cells"]) == pictures(english(path))
    assert told(path) == told(ROOT / "nbs" / path.name)


# the same text


def targets(text):
    "Where links lead, as seen from the English book; the contents' own headings aside."
    return Counter(re.sub(r"^(\.\./)?(nbs/)?(zh/)?", "", t) for t in re.findall(r"\]\(([^)#][^)]*)\)", text))


@each
def test_no_formula_no_link_and_no_paragraph_is_left_out(path):
    for cell, e, z in pairs(path, "markdown"):
        for what in (
            lambda t: re.findall(r"\$\$.*?\$\$", t, re.S),
            targets,
            lambda t: t.count("\n\n"),
            lambda t: t.count("<details>"),
        ):
            assert what(e) == what(z), f"cell {cell} of {path.stem}"


def words(text):
    "Without code, formulas, links' targets, and references, which keep their titles."
    text = text.partition("## 参考文献")[0]
    return re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$\n]*\$|`[^`]*`|\]\([^)]*\)", " ", text, flags=re.S)


# What the field says, and what it says less often, or in traditional characters
TERMS = {
    "微调": "精调", "主干网络": "骨干网络", "批归一化": "批标准化|批规范化", "词元": "令牌", "检查点": "存档点|检查站",
    "过拟合": "过度拟合|过学习", "学习率": "学习速率", "预训练": "预先训练", "线性探测": "线性探针|线性探查", "冻结": "凍結",
    "校准": "校準|校正", "数据": "數據|資料",
}  # fmt: skip


def test_one_word_for_one_thing():
    text = "\n".join(words(t) for p in CHINESE for t in markdown(p)) + words(README.read_text(encoding="utf-8"))
    for term, other in TERMS.items():
        assert term in text, term
        assert not (m := re.search(f".{{0,20}}({other}).{{0,20}}", text)), f"{m[0]!r}: {term}"


def stars(text):
    "Bold that is none: between its stars and a letter outside stands a mark, and no blank (CommonMark)."
    is_a = lambda kinds, c: bool(c) and unicodedata.category(c)[0] in kinds
    found = []
    for line in words(text).splitlines():
        parts = line.split("**")
        for before, bold, after in zip(parts[::2], parts[1::2], parts[2::2], strict=False):
            ends = (before[-1:], bold[:1]), (after[:1], bold[-1:])
            found += [bold for out, inside in ends if is_a("LN", out) and is_a("PS", inside)]
    return found


def test_bold_that_is_none_is_seen():
    assert stars("甲**乙。**丙") and stars("甲**“乙”**。") and not stars("甲**乙**。丙") and not stars("**乙。** 丙")


@each
def test_it_is_chinese_and_its_bold_is_bold(path):
    for text in [*markdown(path), *(t for _, t in shown(path))]:
        plain = words(text)
        assert not (m := re.search(r"(?:\b[a-z]{2,}\b[ ,.;:]+){6,}", plain)), f"not translated: {m[0]!r}"
        assert not re.search(r"[\u4e00-\u9fff] ?[,;:?!]( |$)", plain, re.M), f"a mark of another script: {plain[:80]!r}"
        assert not (m := re.search(r"(?<!\*)\*[^*\n]*[\u4e00-\u9fff][^*\n]*\*(?!\*)", plain)), (
            f"Chinese is not slanted: {m[0]!r}"
        )
        assert not (bad := stars(text)), f"a reader sees stars: {bad}; put the mark behind them"


@each
def test_pictures_have_a_chinese_sentence(path):
    for c in load(path)["cells"]:
        for o in c.get("outputs", []):
            if "image/png" in o.get("data", {}):
                alt = o["metadata"]["image/png"]["alt"]
                assert len(re.findall(r"[\u4e00-\u9fff]", alt)) >= 10, f"cell {c['id']}: {alt!r}"


@each
def test_its_last_cell_leads_to_the_english_one_and_to_the_others(path):
    last, others = markdown(path)[-1], [p.name for p in CHINESE if p != path]
    wanted = [f"../{path.name}", *others, "../index.ipynb#The-map"]
    assert sorted(re.findall(r"\]\(([^)]+)\)", last)) == sorted(wanted)


def test_nothing_is_exported_from_here():
    assert not [c for p in CHINESE for c in code_cells(load(p)) if re.search(r"^#\| ?(export|default_exp)", c, re.M)]


# the README


def test_the_chinese_readme_is_found_and_leads_on():
    zh, en = README.read_text(encoding="utf-8"), (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(README.zh.md)" in en[:400] and "(README.md)" in zh[:400]
    for target in re.findall(r"\]\(([^)#]+)\)", zh):
        assert target.startswith("http") or (ROOT / target).exists(), target
    for p in CHINESE:
        assert f"(nbs/zh/{p.name})" in zh and f"(zh/{p.name})" in "".join(markdown(ROOT / "nbs" / p.name))


def test_the_chinese_readme_says_what_the_english_one_says():
    zh, en = README.read_text(encoding="utf-8"), (ROOT / "README.md").read_text(encoding="utf-8")
    rows = lambda text: re.findall(r"\(nbs/(?:zh/)?(\d\d_\w+\.ipynb)\)(?:（中文）)? \| (\d+) \|", text)
    assert rows(zh) == rows(en), "its map has other chapters, or other minutes"
    commands = lambda text: [
        line.split("#")[0].rstrip() for block in re.findall(r"```\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    assert set(commands(zh)) <= set(commands(en))
    code = lambda text: [computed(c) for c in re.findall(r"```python\n(.*?)```", text, re.S)]
    assert code(zh) == code(en)
