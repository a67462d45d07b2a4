"""Write the last cell of every notebook, which leads to its neighbours: python tests/write_links.py

The order is that of the file names: the numbered chapters, then what is lettered.
"""

from pathlib import Path

import nbformat
from store_outputs import text

BOOK = Path(__file__).resolve().parent.parent / "nbs"
CELL = "0e1a5000"  # its id, in every notebook


def title(path: Path) -> str:
    "Number or letter, and the chapter's own title."
    first = nbformat.read(path, 4).cells[0].source
    return f"{path.stem.split('_')[0]} {first.splitlines()[0].removeprefix('# ')}"


def write(paths: list[Path]) -> None:
    titles = [title(p) for p in paths]
    for i, path in enumerate(paths):
        before = f"← [{titles[i - 1]}]({paths[i - 1].name})" if i else ""
        after = f"[{titles[i + 1]}]({paths[i + 1].name}) →" if i + 1 < len(paths) else ""
        line = " · ".join(filter(None, [before, "[the map](index.ipynb#The-map)", after]))
        nb = nbformat.read(path, 4)
        nb.cells = [c for c in nb.cells if c.id != CELL] + [nbformat.v4.new_markdown_cell(line, id=CELL)]
        path.write_text(text(nb), encoding="utf-8")


if __name__ == "__main__":
    write(sorted((p for p in BOOK.glob("*.ipynb") if p.stem != "index"), key=lambda p: p.stem.split("_")))
