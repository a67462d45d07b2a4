"""Run notebooks in fresh kernels and store what their cells show: python tests/store_outputs.py 07_probing 05_evaluation

Kept are pictures and words, and with a picture the sentence of its cell's `#| fig-alt:`, for those who cannot see it.
Not kept is what differs from run to run or lives only in JupyterLab: execution counts, standard error, the views and
states of widgets. Every text stays one string, as everywhere in this book.
"""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
VIEW = "application/vnd.jupyter.widget-view+json"
ENV = dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", MPLBACKEND="module://matplotlib_inline.backend_inline")


def run(path: Path) -> nbformat.NotebookNode:
    "The notebook as it is after Run All, which ends at the first error."
    nb = nbformat.read(path, 4)
    about = {"metadata": {"path": str(path.parent)}}
    NotebookClient(nb, timeout=900, kernel_name="python3", resources=about).execute()
    return nb


def light(png: str) -> str:
    "A picture in 256 colours, without alpha: a figure looks the same and takes a third of the bytes."
    out, picture = io.BytesIO(), Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture.getchannel("A"))
    page.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(png, base64.b64encode(out.getvalue()).decode(), key=len)


def clean(nb: nbformat.NotebookNode) -> None:
    "Take out what is not kept."
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            output.get("data", {}).pop(VIEW, None)
            if "execution_count" in output:
                output["execution_count"] = None
            if "image/png" in output.get("data", {}) and (alt := re.search(r"^#\| fig-alt: (.+)$", cell.source, re.M)):
                output["metadata"] = {**output.get("metadata", {}), "image/png": {"alt": alt[1]}}


def text(nb: nbformat.NotebookNode) -> str:
    "The notebook's file; nbformat's own would cut every text into lines."
    nbformat.validate(nb)
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(stems: list[str]) -> None:
    os.environ |= ENV | {"PYTHONPATH": str(ROOT)}
    for stem in stems:
        path = ROOT / "nbs" / f"{stem}.ipynb"
        nb = run(path)
        for data in (output.get("data", {}) for cell in nb.cells for output in cell.get("outputs", [])):
            if "image/png" in data:
                data["image/png"] = light(data["image/png"])
        clean(nb)
        path.write_text(text(nb), encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
    subprocess.run([str(Path(sys.executable).parent / "nbdev_clean")], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
