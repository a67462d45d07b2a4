"""`make lab` opens the reader's own copy: no answer in view before the prediction, and nothing of his is ever lost."""

import runpy

import nbformat
import pytest
from conftest import ROOT
from traitlets.config import Config


@pytest.fixture
def book(tmp_path, monkeypatch):
    "The book's folder with two chapters, and what JupyterLab would be told of it."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "nbs" / "images").mkdir(parents=True)
    (tmp_path / "nbs" / "images" / "a.png").write_bytes(b"x")
    for name in ("00_tour", "01_data"):
        write(tmp_path / "nbs" / f"{name}.ipynb", "1 + 1")

    def start():
        config = Config()
        runpy.run_path(str(ROOT / "lab_config.py"), dict(get_config=lambda: config))
        return config.ServerApp.root_dir

    return tmp_path, start


def write(path, source):
    output = nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)
    cell = nbformat.v4.new_code_cell(source, id="00000001", outputs=[output], execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


def cell(path):
    return nbformat.read(path, 4).cells[0]


def ran(path, source=None):
    "What the reader does: the cell is run and saved, perhaps changed before."
    nb = nbformat.read(path, 4)
    nb.cells[0].source = source or nb.cells[0].source
    nb.cells[0].outputs = [nbformat.v4.new_output("stream", text="mine")]
    nbformat.write(nb, path)


def test_the_readers_copy_has_no_outputs_and_the_book_keeps_its_own(book):
    place, start = book
    assert start() == "my_nbs"
    assert cell(place / "my_nbs" / "00_tour.ipynb").outputs == []
    assert cell(place / "nbs" / "00_tour.ipynb").outputs != []
    assert (place / "my_nbs" / "images" / "a.png").exists()


def test_what_the_reader_ran_is_there_at_the_next_visit(book):
    place, start = book
    start()
    ran(place / "my_nbs" / "00_tour.ipynb", "answer = 3")
    ran(place / "my_nbs" / "01_data.ipynb")
    (place / "my_nbs" / "notes.ipynb").write_text("mine")
    start()
    assert cell(place / "my_nbs" / "00_tour.ipynb").source == "answer = 3"
    assert cell(place / "my_nbs" / "01_data.ipynb").outputs[0].text == "mine"
    assert (place / "my_nbs" / "notes.ipynb").read_text() == "mine"


def test_a_new_chapter_comes_where_the_reader_changed_none_of_its_cells(book, capsys):
    place, start = book
    start()
    ran(place / "my_nbs" / "00_tour.ipynb", "answer = 3")
    ran(place / "my_nbs" / "01_data.ipynb")
    for name in ("00_tour", "01_data"):
        write(place / "nbs" / f"{name}.ipynb", "2 + 2")
    capsys.readouterr()
    start()
    assert cell(place / "my_nbs" / "00_tour.ipynb").source == "answer = 3"  # his
    assert cell(place / "my_nbs" / "01_data.ipynb").source == "2 + 2"
    said = capsys.readouterr().out
    assert "00_tour.ipynb is yours and stays" in said and "01_data" not in said


def test_a_file_of_the_readers_that_is_no_notebook_stays(book):
    place, start = book
    (place / "my_nbs").mkdir()
    (place / "my_nbs" / "00_tour.ipynb").write_text("{broken")
    start()
    assert (place / "my_nbs" / "00_tour.ipynb").read_text() == "{broken"


def test_where_nothing_can_be_written_the_book_itself_is_opened(book):
    place, start = book
    (place / "my_nbs").write_text("a file in the way")
    assert start() == "nbs"


def test_elsewhere_nothing_is_made(book, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert book[1]() == "nbs" and not (book[0] / "my_nbs").exists()
