"""Write what every notebook has in common: python tests/write_links.py

The last cell leads to its neighbours; the order is that of the file names, the numbered chapters, then what is lettered.
The two cells below the title open it elsewhere: a line of links, and a cell that does something only where the package
is not installed, as on Colab. The addresses come from settings.ini. The pages for teachers are put together as well.
"""

import configparser
from pathlib import Path

import nbformat
from store_outputs import text
from write_teaching import pages

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "nbs"
CELL, OPEN, BRING = "0e1a5000", "0e1a5001", "0e1a5002"  # their ids, in every notebook
NO_SLIDE = dict(slide_type="skip")
LINKS = {  # by the folder in nbs
    "": "Open this notebook in [Colab]({colab}) or [Binder]({binder}), or read it as [a page]({page}).",
    "zh": "在 [Colab]({colab}) 或 [Binder]({binder}) 里打开这个笔记本，或者读[网页版]({page})。",
}
ELSEWHERE = """from importlib.util import find_spec

if not find_spec("sft_nb"):  # as on Colab; elsewhere this cell does nothing
    import os
    import subprocess
    import sys

    for words in ("pip install --quiet {package}", "sft_nb.cli book sft_nb-book"):
        subprocess.run([sys.executable, "-m", *words.split()], check=True)
    os.chdir("sft_nb-book")  # where the records and pictures are that some chapters read"""


def settings() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def head(path: Path, book: Path = BOOK) -> list[nbformat.NotebookNode]:
    "The cells that open a notebook elsewhere."
    s, where = settings(), path.relative_to(book)
    named = f"{s['user']}/{s['repo']}"
    file = f"{s['nbs_path']}/{where.as_posix()}"
    colab = f"https://colab.research.google.com/github/{named}/blob/{s['branch']}/{file}"
    binder = f"https://mybinder.org/v2/gh/{named}/{s['branch']}?urlpath=lab/tree/{file}"
    page = f"https://{s['user']}.github.io/{s['repo']}/{where.with_suffix('.html').as_posix()}"
    links = LINKS[where.parent.name].format(colab=colab, binder=binder, page=page)
    code = ELSEWHERE.format(package=f"git+https://github.com/{named}@{s['branch']}")
    folded = dict(jupyter=dict(source_hidden=True), slideshow=NO_SLIDE)
    bring = nbformat.v4.new_code_cell(code, id=BRING, metadata=folded)
    return [nbformat.v4.new_markdown_cell(links, id=OPEN, metadata=dict(slideshow=NO_SLIDE)), bring]


def title(path: Path) -> str:
    "Number or letter, and the chapter's own title."
    first = nbformat.read(path, 4).cells[0].source
    return f"{path.stem.split('_')[0]} {first.splitlines()[0].removeprefix('# ')}"


def foot(i: int, paths: list[Path], titles: list[str]) -> nbformat.NotebookNode:
    "The links to the neighbours of the i-th."
    before = f"← [{titles[i - 1]}]({paths[i - 1].name})" if i else ""
    after = f"[{titles[i + 1]}]({paths[i + 1].name}) →" if i + 1 < len(paths) else ""
    line = " · ".join(filter(None, [before, "[the map](index.ipynb#The-map)", after]))
    return nbformat.v4.new_markdown_cell(line, id=CELL, metadata=dict(slideshow=NO_SLIDE))


def framed(path: Path, last: list[nbformat.NotebookNode]) -> str:
    "The notebook's file with its first and last cells as they are to be."
    nb = nbformat.read(path, 4)
    own = [c for c in nb.cells if c.id not in (CELL, OPEN, BRING)]
    nb.cells = [own[0], *head(path), *own[1:], *last]
    return text(nb)


def written() -> dict[Path, str]:
    "Every notebook and what its file is to hold."
    paths = sorted((p for p in BOOK.glob("*.ipynb") if p.stem != "index"), key=lambda p: p.stem.split("_"))
    titles = [title(p) for p in paths]
    made = {p: framed(p, [foot(i, paths, titles)]) for i, p in enumerate(paths)}
    others = [BOOK / "index.ipynb", *sorted(BOOK.glob("[a-z]*/*.ipynb"))]  # translations have last cells of their own
    return made | {p: framed(p, [c for c in nbformat.read(p, 4).cells if c.id == CELL]) for p in others}


if __name__ == "__main__":
    for path, content in (written() | pages()).items():
        path.write_text(content, encoding="utf-8")
