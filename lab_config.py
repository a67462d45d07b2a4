"What JupyterLab has to know of this book: `jupyter lab --config=lab_config.py`, in the folder that holds this file."

from contextlib import suppress
from pathlib import Path

import nbformat
from nbformat.sign import NotebookNotary

from sft_nb.book import readers_copy

BOOK, MINE = Path("nbs"), Path("my_nbs")

c = get_config()  # noqa: F821 (Jupyter puts it here)
c.ServerApp.ip = "127.0.0.1"  # this machine alone; the printed address carries the token
c.ServerApp.root_dir = str(BOOK)
c.LabApp.default_url = "/lab/tree/00_tour.ipynb"  # so that the printed address leads to the tour
# An upload is one message. Tornado's own limit is 10 MiB: above it the connection is dropped, and nothing says so.
c.ServerApp.tornado_settings = {"websocket_max_message_size": 128 * 2**20}

if BOOK.is_dir():
    with suppress(OSError):  # a folder that cannot be written: the book itself is opened
        written, kept = readers_copy(BOOK, MINE)
        for path in written:
            if path.suffix == ".ipynb":
                NotebookNotary().sign(nbformat.read(path, 4))
        for path in kept:
            print(f"{path} is yours and stays; the book's has changed: rename yours to get the new one beside it")
        c.ServerApp.root_dir = str(MINE)
