"An answer is short, shows itself, and leads on: what chapter 23 promises for each of its questions."

import re

import pytest
from conftest import ROOT
from notebook import load, source

CELLS = load(ROOT / "nbs" / "23_faq.ipynb")["cells"]
TEXTS = [source(c) for c in CELLS if c["cell_type"] == "markdown"]
ASKED = [i for i, c in enumerate(CELLS) if c["cell_type"] == "markdown" and "### " in source(c)]


def sentences(text):
    "How many; a colon and a semicolon end none."
    return len(re.findall(r"[.?!](?=\s|$)", re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)))


def test_the_three_of_the_subject_and_more_than_twelve_of_public_threads():
    assert len(ASKED) >= 15


@pytest.mark.parametrize("i", ASKED, ids=lambda i: source(CELLS[i]).rpartition("### ")[2].split("\n")[0])
def test_an_answer_has_five_sentences_a_cell_that_shows_it_and_a_link(i):
    answer, mark, more = source(CELLS[i]).rpartition("### ")[2].partition("\n*More:*")
    title, _, answer = answer.partition("\n")
    assert mark and re.search(r"\]\(\w+\.ipynb\)", more), "end in '*More:*' and links"
    assert 2 <= sentences(answer) <= 5, f"{sentences(answer)} sentences"
    assert CELLS[i + 1]["cell_type"] == "code" and CELLS[i + 1]["outputs"], "a cell behind it shows it"
    assert f"](#{title.replace(' ', '-')})" in "\n".join(TEXTS), "the list at the top leads to it"
