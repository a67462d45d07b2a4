"What JupyterLab has to know of this book: `jupyter lab --config=lab_config.py`, in the folder that holds this file."

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path

import nbformat
from nbformat.sign import NotebookNotary

BOOK, MINE = Path("nbs"), Path("my_nbs")


def sources(notebook) -> str:
    "A digest of what stands in the cells, outputs left out."
    return hashlib.sha256(json.dumps([cell.source for cell in notebook.cells]).encode()).hexdigest()


def without_outputs(notebook):
    "The chapter as its reader gets it: no answer in view before the prediction. It says which text it was given."
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata["sft_nb"] = dict(given=sources(notebook))
    return notebook


def readers_copy(book: Path, mine: Path) -> list[str]:
    """Copy the chapters, without their outputs, to where the reader works; what he has written there stays.

    A chapter that changed in the book replaces the reader's where he changed no cell. The others are returned.
    """
    mine.mkdir(exist_ok=True)
    kept = []
    for path in sorted(book.glob("*.ipynb")):
        new, own = without_outputs(nbformat.read(path, 4)), mine / path.name
        if own.exists():
            try:
                old = nbformat.read(own, 4)
                given = old.metadata["sft_nb"]["given"]
            except Exception:  # no notebook, or not given by this function: the reader's
                kept.append(path.name)
                continue
            if given == new.metadata["sft_nb"]["given"]:
                continue
            if sources(old) != given:
                kept.append(path.name)
                continue
        nbformat.write(new, own)
        NotebookNotary().sign(new)
    if (book / "images").is_dir():
        shutil.copytree(book / "images", mine / "images", dirs_exist_ok=True)
    return kept


c = get_config()  # noqa: F821 (Jupyter puts it here)
c.ServerApp.ip = "127.0.0.1"  # this machine alone; the printed address carries the token
c.ServerApp.root_dir = str(BOOK)
c.LabApp.default_url = "/lab/tree/00_tour.ipynb"  # so that the printed address leads to the tour
# An upload is one message. Tornado's own limit is 10 MiB: above it the connection is dropped, and nothing says so.
c.ServerApp.tornado_settings = {"websocket_max_message_size": 128 * 2**20}

if BOOK.is_dir():
    with suppress(OSError):  # a folder that cannot be written: the book itself is opened
        for name in readers_copy(BOOK, MINE):
            print(
                f"{MINE / name} is yours and stays; the book's has changed: rename yours to get the new one beside it"
            )
        c.ServerApp.root_dir = str(MINE)
