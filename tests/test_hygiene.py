"What a committed notebook looks like: clean, light, with outputs, its numbers computed."

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from notebook import CHINESE, NOTEBOOKS, called, code_cells, load, source

CHAPTERS = [p for p in NOTEBOOKS if p.stem != "index"]
each = pytest.mark.parametrize("path", NOTEBOOKS + CHINESE, ids=called)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)


@each
def test_light_and_clean(path):
    nb = load(path)
    assert path.stat().st_size <= 300_000, f"{path.stat().st_size} bytes"
    ids = [c["id"] for c in nb["cells"]]
    assert len(set(ids)) == len(ids), "a cell id stands twice"
    for c in nb["cells"]:
        assert c["cell_type"] != "code" or c["execution_count"] is None
        for o in c.get("outputs", []):
            assert o["output_type"] != "error", f"a stored error: {o.get('ename')} in cell {c['id']}"
            assert o.get("name") != "stderr", f"stored stderr in cell {c['id']}"
            assert "application/vnd.jupyter.widget-view+json" not in o.get("data", {}), (
                f"a stored widget in cell {c['id']}: without its kernel it says 'model not found'; keep its still picture"
            )


@each
def test_opens_with_a_title_and_a_line_on_it(path):
    first = source(load(path)["cells"][0])
    assert re.match(r"# .+\n\n> .+", first), first


@each
def test_nothing_is_skipped(path):
    for code in code_cells(load(path)):
        assert not re.search(r"#\|\s*(eval:\s*false|slow|skip)", code), f"a cell that no test runs: {code[:60]}"
    assert "skip_exec" not in source(load(path)["cells"][0])


@each
def test_no_machine_paths(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(work|root|home|Users|tmp)/\w", text), re.search(
        r".{40}/(work|root|home|Users|tmp)/\w.{20}", text
    )


@each
def test_records_are_found_wherever_the_notebook_lies(path):
    "In a clone, in a reader's copy and in the folder that the wheel's book is copied to: `results` knows where."
    assert "../results" not in "\n".join(code_cells(load(path)))


@each
def test_numbers_in_prose_are_computed(path):
    "A decimal in a Markdown cell was typed, so nothing would notice it going stale: let a cell say it."
    for c in load(path)["cells"]:
        if c["cell_type"] == "markdown":
            text = source(c).partition("## References")[0]  # a section of a book has a number too
            text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.S)
            assert not (m := re.search(r".{0,40}(?<![\w.])\d*\.\d.{0,20}", text)), f"{m[0]!r} in cell {c['id']}"


@each_chapter
def test_a_chapter_says_enough(path):
    nb = load(path)
    words = sum(len(source(c).split()) for c in nb["cells"] if c["cell_type"] == "markdown")
    assert words >= 500, f"{words} words"
    assert any("data" in o for c in nb["cells"] for o in c.get("outputs", [])), "committed without its outputs"


@each_chapter
def test_exported_cells_are_short(path):
    for code in code_cells(load(path)):
        if "#| export" in code:
            most = 60 if re.search(r"^class ", code, re.M) else 40  # a class is read whole
            assert len(code.splitlines()) <= most, f"an exported cell of {len(code.splitlines())} lines: {code[:80]}"


def git(*words, cwd=ROOT):
    done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, encoding="utf-8")
    return done.stdout if done.returncode == 0 else pytest.skip("needs git and a clone")


def test_generated_modules_are_marked_and_nothing_else():
    said = git("check-attr", "linguist-generated", "--", *git("ls-files").splitlines())
    marked = {line.split(":")[0] for line in said.splitlines() if line.endswith(": set")}
    written = {p.relative_to(ROOT).as_posix() for p in (ROOT / "sft_nb").rglob("*.py") if p.stem != "__init__"}
    assert marked == written & set(git("ls-files").splitlines())


def test_a_diff_of_notebooks_can_be_read_line_by_line(tmp_path):
    git("init", "-q", tmp_path)
    (tmp_path / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())

    def write(source):
        cell = dict(cell_type="code", id="00000001", source=source, outputs=[dict(data={"image/png": "AAAA"})])
        (tmp_path / "x.ipynb").write_text(json.dumps(dict(cells=[cell])), encoding="utf-8")

    write("a = 1\nb = 2")
    git("add", ".", cwd=tmp_path)
    write("a = 1\nb = 'ü'")
    show = ["-c", f'diff.notebook.textconv="{sys.executable}" "{ROOT / "tests" / "show_notebook.py"}"']
    changed = [line for line in git(*show, "diff", cwd=tmp_path).splitlines() if re.match("[-+][^-+]", line)]
    assert changed == ["-b = 2", "+b = 'ü'"]
    assert '"cells"' in git("diff", cwd=tmp_path)  # without the setting, the file as it is
