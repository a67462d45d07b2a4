"The pocket figures: transfer where it should be, and none where it should not. Bands around what was measured."

import pytest
import torch
from conftest import ROOT  # noqa: F401

from sft_nb.core import set_seed
from sft_nb.data import Loader, few_shot, load_split
from sft_nb.evaluation import accuracy, predict
from sft_nb.features import extract
from sft_nb.models import adapt, load_pretrained
from sft_nb.probing import solve_head
from sft_nb.sources.pocket import LABELS, PocketResNet, pocket_source
from sft_nb.training import fit

SEEDS = range(3)


def random_backbone():
    set_seed(0)
    net = PocketResNet()
    net.fc = torch.nn.Identity()
    return net.eval()


def probe(backbone, task, shots):
    "Mean test accuracy of the certified head over the seeds."
    transform, split = load_pretrained("pocket").transform, load_split(task)
    phi = lambda ds: extract(backbone, Loader(ds, 500, transform))
    test = phi(split.test)
    heads = [solve_head(phi(few_shot(split.train, shots, s)), 10, l2=1e-3) for s in SEEDS]
    return sum(accuracy(h.logits(test.x), test.y) for h in heads) / len(heads)


@pytest.mark.parametrize(
    ("name", "labels", "low", "high"),
    [("pocket", "shape", 0.88, 0.95), ("pocket-texture", "texture", 0.50, 0.64), ("pocket-hue", "hue", 0.87, 0.95)],
)
def test_each_source_is_learned(name, labels, low, high):
    pre, test = load_pretrained(name), pocket_source(labels, n=1).test
    whole = torch.nn.Sequential(pre.backbone, pre.head)
    assert low <= accuracy(*predict(whole, Loader(test, 500, pre.transform))) <= high


# (task, shots, source): the band of the probe's accuracy. Chance is .1.
BANDS = [
    ("near", 10, "pocket", 0.83, 0.96),
    ("near", 50, "pocket", 0.88, 0.98),
    ("digits_wild", 10, "pocket", 0.50, 0.66),
    ("digits_wild", 50, "pocket", 0.63, 0.76),
    ("digits_wild", 50, "pocket-texture", 0.20, 0.36),
    ("digits_wild", 50, "pocket-hue", 0.08, 0.22),
    ("digits", 10, "pocket", 0.87, 0.96),
    ("grating", 50, "pocket", 0.40, 0.58),
    ("hue", 50, "pocket", 0.06, 0.16),
    ("hue", 50, "pocket-hue", 0.85, 0.96),
    ("near", 50, "pocket-hue", 0.18, 0.36),
]


@pytest.mark.parametrize(("task", "shots", "source", "low", "high"), BANDS)
def test_the_probe_transfers_where_it_should_and_fails_where_it_should(task, shots, source, low, high):
    assert low <= probe(load_pretrained(source).backbone, task, shots) <= high


@pytest.mark.parametrize("task", ["near", "digits_wild", "grating", "hue"])
def test_a_random_backbone_does_not_transfer(task):
    assert probe(random_backbone(), task, 10) <= 0.2


def test_random_features_read_plain_digits():
    "Plain digits need no pre-training: a random backbone's probe is good at them, and the book says so."
    assert probe(random_backbone(), "digits", 50) >= 0.85


def test_from_scratch_learns_little_from_ten_labels():
    pre, split, found = load_pretrained("pocket"), load_split("digits_wild"), []
    for seed in SEEDS:
        set_seed(seed)
        net = PocketResNet(10)
        dl = Loader(few_shot(split.train, 10, seed), 32, pre.transform, shuffle=True, seed=seed)
        fit(net, dl, torch.optim.Adam(net.parameters(), 1e-3), epochs=20)
        found.append(accuracy(*predict(net, Loader(split.test, 500, pre.transform))))
    assert sum(found) / 3 <= 0.25


def test_full_fine_tuning_beats_the_probe_on_a_far_target():
    "Grating: features of shapes are not enough, theta must move."
    pre, split = load_pretrained("pocket"), load_split("grating")
    set_seed(0)
    model = adapt(pre, 10)
    dl = Loader(few_shot(split.train, 50, 0), 32, pre.transform, shuffle=True)
    fit(model, dl, torch.optim.SGD(model.parameters(), 0.02, momentum=0.9), epochs=12)
    full = accuracy(*predict(model, Loader(split.test, 500, pre.transform)))
    assert full >= probe(pre.backbone, "grating", 50) + 0.1


@pytest.mark.parametrize("labels", LABELS)
def test_three_label_sets_for_the_same_pixels(labels):
    a, b = pocket_source(labels, n=50), pocket_source("shape", n=50)
    assert torch.equal(a.train.x, b.train.x)
    assert int(a.train.y.max()) < len(a.classes)
