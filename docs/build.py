"""The book as pages: every notebook with its stored outputs, and the package's own words. `make docs`

What Sphinx reads is laid out in _docs/source: the notebooks as a page needs them, the list of chapters from the map, and
a page for each module out of its docstrings and the comments beside its parameters.
"""

import importlib
import inspect
import json
import re
import shutil
import sys
import warnings
from pathlib import Path

from nbdev.showdoc import BasicMarkdownRenderer, show_doc

ROOT = Path(__file__).resolve().parent.parent
SOURCE, SITE = ROOT / "_docs" / "source", ROOT / "_docs" / "html"
OPEN, BRING = (
    "0e1a5001",
    "0e1a5002",
)  # cells of `tests/write_links.py`: on a page, no link to it, and nothing to install


def anchor(heading: str) -> str:
    "What a link behind # calls a heading: JupyterLab's way."
    return heading.strip().replace(" ", "-")


def put(path: Path, text: str) -> None:
    "Write only what is new, so that Sphinx reads only what has changed."
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# notebooks


def page(path: Path) -> dict:
    "A notebook for Sphinx: each picture with its cell's sentence, and without the lines that speak to nbdev alone."
    nb = json.loads(path.read_text(encoding="utf-8"))
    nb["cells"] = [c for c in nb["cells"] if c["id"] != BRING]
    headings = {c["id"]: re.findall(r"^#+ (.+)$", "".join(c["source"]), re.M) for c in nb["cells"]}
    for cell in nb["cells"]:
        text = "".join(cell["source"])
        if cell["id"] == OPEN:
            cell["source"] = re.sub(r"(, or read it as |，或者读).*([.。])$", r"\2", text)
        elif cell["cell_type"] == "markdown":  # JupyterLab finds cells, and of headings only those in ASCII
            cell["source"] = re.sub(r"\(#cell-id=(\w+)\)", lambda m: f"(#{anchor(headings[m[1]][-1])})", text)
        if cell["cell_type"] == "code":
            if alt := re.search(r"^#\| fig-alt: (.+)$", text, re.M):
                cell["metadata"]["mystnb"] = dict(image=dict(alt=alt[1]))
            cell["source"] = re.sub(r"^#\|.*\n?", "", text, flags=re.M)
    nb["cells"] = [c for c in nb["cells"] if c["source"]]
    return nb


def sections() -> list[tuple[str, list[str]]]:
    "The map's tables: what each is called, and its notebooks in order."
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The map")[2].partition("\n## ")[0]
    tables = re.split(r"^\| \*\*(.+?)\*\* .*$", text, flags=re.M)[1:]
    return [
        (name, re.findall(r"^\| \[(.+?)\]\(nbs/(.+?)\.ipynb\)", rows, re.M))
        for name, rows in zip(tables[::2], tables[1::2], strict=True)
    ]


def contents(entries: list[str], caption: str) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```", ""])


# the package's own words


def words(thing) -> str:
    "A docstring as Markdown: what looks like a tag outside of code is none."
    parts = re.split(r"(`[^`]*`)", inspect.getdoc(thing) or "")
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;") for p in parts)


def entry(full: str, thing, level: int) -> str:
    "A heading, the signature with the comments of its parameters, the docstring."
    shown = show_doc(thing, renderer=BasicMarkdownRenderer)._repr_markdown_()
    signature = re.search(r"```python\n.*?\n```", shown, re.S)
    if inspect.isclass(thing) and signature:
        signature = re.sub(r"^def ", "class ", signature[0].removeprefix("```python\n"))
        signature = "```python\n" + signature.replace("\n)->None:", "\n):")
    else:
        signature = signature[0] if signature else ""
    return f"{'#' * level} `{full}`\n\n{signature}\n\n{words(thing)}\n"


def members(cls) -> list:
    own = [n for n, m in vars(cls).items() if not n.startswith("_") and inspect.isfunction(m) and m.__doc__]
    return [(f"{cls.__name__}.{n}", vars(cls)[n]) for n in own]


def module_page(name: str, notebook: str) -> str:
    module = importlib.import_module(name)
    parts = [f"# `{name}`", words(module), f"From the notebook [{notebook}](../{notebook})."]
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            parts.append(entry(public, thing, 2))
            if inspect.isclass(thing):
                parts += [entry(n, m, 3) for n, m in members(thing)]
    return "\n\n".join(parts) + "\n"


def modules() -> dict[str, str]:
    "Module -> the notebook that exports it."
    made = {}
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        if found := re.search(r"#\| default_exp ([\w.]+)", path.read_text(encoding="utf-8")):
            made[f"sft_nb.{found[1]}"] = path.name
    return made


def lay_out() -> None:
    SOURCE.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in (ROOT / "nbs").rglob("*") if p.is_file() and ".ipynb_checkpoints" not in p.parts):
        to = SOURCE / path.relative_to(ROOT / "nbs")
        if path.suffix == ".ipynb":
            nb = page(path)
            if path == ROOT / "nbs" / "index.ipynb":
                lists = [contents([f"{t} <{n}>" for t, n in rows], name) for name, rows in sections()]
                lists.append(contents(["teaching", "questions"], "For teachers"))
                lists.append(contents([f"zh/{p.stem}" for p in sorted(path.parent.glob("zh/*.ipynb"))], "中文"))
                lists.append(contents(["api/index"], "The package"))
                nb["cells"].append(dict(cell_type="markdown", id="c0ffee00", metadata={}, source="\n".join(lists)))
            put(to, json.dumps(nb, ensure_ascii=False))
        else:
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to)
    made = modules()
    for name, notebook in made.items():
        put(SOURCE / "api" / f"{name}.md", module_page(name, notebook))
    rows = [f"| [{n}]({n}.md) | {words(importlib.import_module(n))} |" for n in sorted(made)]
    table = "\n".join(["| module | what it is for |", "|---|---|", *rows])
    text = f"# The package\n\nWhat the notebooks export, by module.\n\n{table}\n\n"
    put(SOURCE / "api" / "index.md", text + contents(sorted(made), "Modules").replace(":caption: Modules\n", ""))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    lay_out()
    from sphinx.cmd.build import main

    sys.path.insert(0, str(Path(__file__).parent))
    options = ["-q", "-W", "--keep-going", "-c", str(Path(__file__).parent), "-d", str(ROOT / "_docs" / "read")]
    sys.exit(main(["-b", "html", *options, str(SOURCE), str(SITE)]))
