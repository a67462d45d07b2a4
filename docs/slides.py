"""The tour as slides, with all that they load beside them: `make slides`, then open _docs/html/slides/00_tour.html

What is a slide, what stays away and whose code is not shown stands in the notebook: `slideshow` and `tags` of its cells.
"""

import re
import shutil
from importlib.resources import files
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "_docs" / "html" / "slides"


def parted(cells: list) -> list:
    "A text with a heading in its middle is two: what answers the slide before, and a slide of its own."
    out = []
    for cell in cells:
        before, heading, after = cell.source.partition("\n## ")
        if cell.cell_type == "code" or not heading or cell.metadata.get("slideshow", {}).get("slide_type") == "skip":
            out.append(cell)
            continue
        out.append(nbformat.v4.new_markdown_cell(before, metadata=cell.metadata))
        out.append(nbformat.v4.new_markdown_cell(f"## {after}", metadata=dict(slideshow=dict(slide_type="slide"))))
    return out


def slides(path: Path) -> str:
    "A notebook as one page of slides; its links lead to the pages of the chapters, one folder up."
    nb = nbformat.read(path, 4)
    nb.cells = parted(nb.cells)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\(([\w/]+)\.ipynb", r"](../\1.html", cell.source)
        else:
            cell.source = re.sub(r"^#\| .+\n", "", cell.source, flags=re.M)
            if "hide-input" in cell.metadata.get("tags", []):
                cell.metadata["transient"] = dict(remove_source=True)
    exporter = SlidesExporter(template_name="slides", extra_template_basedirs=[str(Path(__file__).parent)])
    exporter.exclude_anchor_links = True
    exporter.reveal_url_prefix, exporter.reveal_theme = "reveal", "white"
    exporter.reveal_width, exporter.reveal_height = "1280", "760"
    return exporter.from_notebook_node(nb, dict(metadata=dict(name=path.stem)))[0]


def main() -> None:
    PLACE.mkdir(parents=True, exist_ok=True)
    shutil.copytree(files("sphinx_revealjs") / "_static" / "revealjs", PLACE / "reveal", dirs_exist_ok=True)
    shutil.copy(files("mathjax") / "static" / "mathjax" / "es5" / "tex-svg.js", PLACE)
    path = ROOT / "nbs" / "00_tour.ipynb"
    (PLACE / f"{path.stem}.html").write_text(slides(path), encoding="utf-8")
    print(f"{PLACE / path.stem}.html")


if __name__ == "__main__":
    main()
