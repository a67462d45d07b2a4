"What is kept of a notebook that has run: what a reader sees, in the form of all others."

import nbformat
import pytest
from notebook import NOTEBOOKS
from store_outputs import VIEW, clean, text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_stored_notebook_is_as_it_would_be_stored(path):
    nb = nbformat.read(path, 4)
    clean(nb)
    assert text(nb) == path.read_text(encoding="utf-8")


def test_pictures_and_words_stay_and_what_differs_from_run_to_run_goes():
    v = nbformat.v4
    outputs = [
        v.new_output("stream", name="stdout", text="said\n"), v.new_output("stream", name="stderr", text="warned\n"),
        v.new_output("display_data", {"image/png": "iVBO", VIEW: {"model_id": "1"}}),
        v.new_output("execute_result", {"text/plain": "one\ntwo"}, execution_count=7),
    ]  # fmt: skip
    nb = v.new_notebook(cells=[v.new_markdown_cell("a\nb"), v.new_code_cell("1", outputs=outputs, execution_count=7)])
    nb.metadata["widgets"] = {}
    clean(nb)
    kept = nb.cells[1].outputs
    assert [o.get("text") or list(o.data) for o in kept] == ["said\n", ["image/png"], ["text/plain"]]
    assert kept[2].data["text/plain"] == "one\ntwo" and kept[2].execution_count is None
    assert nb.cells[1].execution_count is None and "widgets" not in nb.metadata and '"a\\nb"' in text(nb)


def test_a_picture_carries_the_sentence_of_its_cell():
    v = nbformat.v4
    picture = lambda: [v.new_output("display_data", {"image/png": "iVBO"})]
    said = v.new_code_cell("#| fig-alt: A line that falls.\ndraw()", outputs=picture())
    nb = v.new_notebook(cells=[said, v.new_code_cell("draw()", outputs=picture())])
    clean(nb)
    assert [c.outputs[0].metadata for c in nb.cells] == [{"image/png": {"alt": "A line that falls."}}, {}]
