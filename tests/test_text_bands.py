"What a real encoder of text reaches, in bands: too little and something is broken, too much and a label leaks."

import re

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline

from sft_nb import zoo
from sft_nb.data import Loader, few_shot, load_split
from sft_nb.evaluation import accuracy
from sft_nb.features import Features, extract
from sft_nb.models import Pretrained, load_pretrained
from sft_nb.probing import solve_head
from sft_nb.sources import text
from sft_nb.tagging import count_names, tags_of, true_tags, word_features
from sft_nb.texts import to_texts

pytestmark = pytest.mark.xdist_group("texts")  # what they share is loaded once, by one worker

SEEDS = range(3)
TURNED = re.compile(r"\b(nothing|hardly anyone|far from|by no means|wrong to)\b")


@pytest.fixture(scope="module")
def minilm():
    "Only where it lies already: a test fetches nothing."
    pytest.importorskip("transformers", reason="the extra `text`")
    if not text.is_here("minilm"):
        pytest.skip("the weights of minilm are not here: sft_nb fetch minilm")
    return load_pretrained("minilm")


def phi(pre, ds):
    return extract(pre.backbone, Loader(ds, 64, pre.transform))


def heads(pre, split, shots):
    "Certified heads on three draws of a few labels."
    draws = [few_shot(split.train, shots, seed) for seed in SEEDS]
    return [solve_head(phi(pre, few), len(split.classes), 0.01) for few in draws]


def test_the_chart_at_ten_labels(minilm):
    "MiniLM in its band by our head and by scikit-learn's, the same architecture at random and tf-idf far below."
    split = load_split("chart")
    test, scores = phi(minilm, split.test), {"ours": [], "scikit-learn": [], "random": [], "tf-idf": []}
    torch.manual_seed(0)
    drawn = zoo.network("minilm", weights=False)
    blind = phi(drawn, split.test)
    for seed in SEEDS:
        few = few_shot(split.train, 10, seed)
        seen, noise = phi(minilm, few), phi(drawn, few)
        scores["ours"].append(accuracy(solve_head(seen, 10, 0.01).logits(test.x), test.y))
        scores["random"].append(accuracy(solve_head(noise, 10, 0.01).logits(blind.x), test.y))
        other = LogisticRegression(C=1.0, max_iter=500).fit(seen.x.numpy(), seen.y.numpy())
        scores["scikit-learn"].append(other.score(test.x.numpy(), test.y.numpy()))
        words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10))
        words.fit(to_texts(few.x), few.y.numpy())
        scores["tf-idf"].append(words.score(to_texts(split.test.x), split.test.y.numpy()))
    assert all(0.7 < a < 0.88 for a in scores["ours"] + scores["scikit-learn"]), scores
    assert all(0.1 < a < 0.5 for a in scores["random"]) and all(0.1 < a < 0.55 for a in scores["tf-idf"]), scores


def test_heads_of_plain_sentences_are_wrong_on_turned_ones(minilm):
    reviews, negation = load_split("reviews"), load_split("negation")
    test = phi(minilm, negation.test)
    turned = torch.tensor([bool(TURNED.search(t)) for t in to_texts(negation.test.x)])
    assert int(turned.sum()) == len(turned) // 2
    for head in heads(minilm, reviews, 50):
        right = head.logits(test.x).argmax(1) == test.y
        assert 0.75 < right[~turned].float().mean() <= 1 and 0 <= right[turned].float().mean() < 0.35


class EveryLayer(text.Encoder):
    "All layers side by side, as Transformers itself gives them."

    def pieces(self, ids):
        asked = dict(input_ids=ids, attention_mask=(ids != self.pad).long(), output_hidden_states=True)
        return torch.cat(self.net(**asked).hidden_states, -1)


def test_names_are_found_in_the_middle_and_less_at_the_end(minilm):
    split = load_split("names")
    net = EveryLayer(minilm.backbone.net, minilm.transform.pad)
    every = Pretrained(net, None, minilm.transform, 7 * 384, "minilm", "text", minilm.example)
    train, test = word_features(every, split.train[:50]), word_features(every, split.test)
    true, found, by_word = true_tags(split.test, split.classes), [], []
    for x, z in zip(train.x.chunk(7, 1), test.x.chunk(7, 1), strict=True):
        said = solve_head(Features(x.contiguous(), train.y), 4, 0.001).logits(z).argmax(1)
        found.append(count_names(true, tags_of(test, split.classes, said)).f1)
        by_word.append(f1_score(test.y, said, labels=[1, 2, 3], average="micro"))  # another score, another library
    best = max(range(7), key=found.__getitem__)
    assert 0 < best < 6 and 0.7 < found[best] < 0.95 and found[6] < found[best] - 0.03, found
    assert max(by_word[1:6]) > by_word[6] and found[0] < found[best], (found, by_word)
