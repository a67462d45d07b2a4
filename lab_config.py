"What JupyterLab has to know of this book: `jupyter lab --config=lab_config.py`, in the folder that holds this file."

from contextlib import suppress
from pathlib import Path

import nbformat
from nbformat.sign import NotebookNotary

c = get_config()  # noqa: F821 (Jupyter puts it here)
c.ServerApp.ip = "127.0.0.1"  # this machine alone; the printed address carries the token
c.ServerApp.root_dir = "nbs"
c.LabApp.default_url = "/lab/tree/00_tour.ipynb"  # so that the printed address leads to the tour
# An upload is one message. Tornado's own limit is 10 MiB: above it the connection is dropped, and nothing says so.
c.ServerApp.tornado_settings = {"websocket_max_message_size": 128 * 2**20}

# JupyterLab draws the stored SVG and HTML of a notebook only where it is trusted; these came with the book.
notary = NotebookNotary()
for path in Path("nbs").glob("*.ipynb"):
    with suppress(Exception):  # no notebook: JupyterLab will say so when it is opened
        notebook = nbformat.read(path, 4)
        if not notary.check_signature(notebook):
            notary.sign(notebook)
