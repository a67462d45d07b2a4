"Which pre-trained model: how a score is judged, and what somebody is told who has to choose."

import itertools
import json

import numpy as np
import pytest
import torch
from scipy.stats import weightedtau

from sft_nb.choosing import choose_model, judge, rank_agreement, top_regret
from sft_nb.cli import main
from sft_nb.data import few_shot, load_split
from sft_nb.models import architecture, from_network, load_pretrained

ACC, GUESS = [0.91, 0.85, 0.80, 0.78, 0.60, 0.55], [5, 4, 6, 2, 3, 1]


def by_definition(truth, scores):
    "Vigna 2015: hyperbolic weights 1/(r + 1), added; the mean of ranking by either."

    def ranked(by):
        rank = {k: r for r, k in enumerate(sorted(range(len(by)), key=lambda k: -by[k]))}
        pairs = list(itertools.combinations(range(len(by)), 2))
        weight = lambda i, j: 1 / (rank[i] + 1) + 1 / (rank[j] + 1)
        sign = lambda i, j: np.sign((truth[i] - truth[j]) * (scores[i] - scores[j]))
        return sum(weight(*p) * sign(*p) for p in pairs) / sum(weight(*p) for p in pairs)

    return (ranked(truth) + ranked(scores)) / 2


def test_weighted_tau_by_its_definition():
    assert rank_agreement(ACC, GUESS) == pytest.approx(0.5183673469387756, abs=1e-12)
    g = np.random.default_rng(0)
    for _ in range(10):
        a, b = g.permutation(9) * 1.0, g.permutation(9) * 1.0
        assert rank_agreement(a, b) == pytest.approx(by_definition(a, b), abs=1e-12)
    assert rank_agreement(ACC, ACC) == pytest.approx(1) and rank_agreement(ACC, [-a for a in ACC]) == pytest.approx(-1)


def test_regret_is_what_is_lost_and_of_equals_the_mean():
    assert top_regret(ACC, GUESS) == pytest.approx(1 - 0.80 / 0.91, abs=1e-12)
    assert top_regret(ACC, ACC) == 0
    assert top_regret([0.8, 0.4, 0.2], [1, 1, 0]) == pytest.approx(0.25)


def test_a_judgement_is_the_mean_over_targets_and_its_interval_holds_it():
    g = np.random.default_rng(1)
    truth = g.uniform(0.2, 0.9, (9, 4))
    scores = truth + 0.2 * g.normal(size=truth.shape)
    found = judge(torch.tensor(truth), torch.tensor(scores))
    assert found.tau == pytest.approx(np.mean([weightedtau(truth[:, t], scores[:, t]).statistic for t in range(4)]))
    assert found.tau_interval[0] < found.tau < found.tau_interval[1] and found == judge(truth, scores)
    right = judge(truth, truth)
    assert (right.tau, right.regret) == pytest.approx((1, 0)) and right.tau_interval[0] > 0.99


def test_few_networks_and_few_targets_widen_the_interval():
    g = np.random.default_rng(2)
    truth = g.uniform(0.2, 0.9, (40, 12))
    scores = truth + 0.3 * g.normal(size=truth.shape)
    width = lambda f: f.tau_interval[1] - f.tau_interval[0]
    assert width(judge(truth, scores, 100)) < width(judge(truth[:6, :2], scores[:6, :2], 100))


@pytest.mark.parametrize("truth", [[[0.5], [0.6]], [0.5, 0.6, 0.7], [[0.5], [float("nan")], [0.7]]])
def test_what_cannot_be_judged_is_one_sentence(truth):
    with pytest.raises(ValueError, match="3 models at least"):
        judge(truth, truth)


@pytest.fixture(scope="module")
def hue():
    return load_split("hue")


def random_network():
    torch.manual_seed(0)
    return from_network(*architecture("pocket"), "random", load_pretrained("pocket").example)


def test_the_network_that_was_trained_on_hues_is_chosen_for_hues(hue):
    found = choose_model(["pocket", "pocket-hue", random_network()], few_shot(hue.train, 10, 0))
    assert found[0].name == "pocket-hue" and found[0].first > 0.95
    assert sum(c.first for c in found) == pytest.approx(1)
    assert all(c.low <= c.accuracy <= c.high and c.features == 128 and c.seconds > 0 for c in found)


def test_a_choice_never_sees_validation_or_test_pictures(hue):
    class Watched:
        train = few_shot(hue.train, 3, 0)

        def __getattr__(self, part):
            raise AssertionError(f"{part} was looked at")

    assert choose_model(["pocket"], Watched())[0].first == 1


def test_two_of_the_same_share_the_first_place(hue):
    a, b = choose_model(["pocket", "pocket"], few_shot(hue.train, 5, 0))
    assert a.first == b.first == 0.5 and a.accuracy == b.accuracy


def test_at_most_so_many_examples_are_used(hue):
    counted = choose_model(["pocket-hue"], hue, most=60)[0]
    assert counted.accuracy * 60 == pytest.approx(round(counted.accuracy * 60))


def test_wrong_input_is_one_sentence(hue):
    with pytest.raises(ValueError, match="no candidate"):
        choose_model([], hue)
    with pytest.raises(ValueError, match="'pocket'"):
        choose_model(["poket"], hue)
    with pytest.raises(ValueError, match="two examples"):
        choose_model(["pocket"], hue, most=1)


def test_a_task_by_its_name_is_the_task_and_the_command_says_the_same(hue, capsys):
    plain = choose_model(["pocket", "pocket-hue"], hue, most=80)
    named = choose_model(["pocket", "pocket-hue"], "hue", most=80)
    assert [(c.name, c.accuracy, c.first) for c in plain] == [(c.name, c.accuracy, c.first) for c in named]
    assert main("choose --task hue --pretrained pocket pocket-hue --most 80 --format json".split()) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(t["name"], t["accuracy"], t["first"]) for t in told] == [(c.name, c.accuracy, c.first) for c in plain]


def test_the_command_refuses_in_one_sentence(capsys):
    assert main("choose --task hue --pretrained poket".split()) == 2
    assert "'pocket'" in capsys.readouterr().err
    assert main("choose --task countries --pretrained pocket-lm".split()) == 2
    assert "compares classifiers" in capsys.readouterr().err
    assert main("choose --task nowhere --pretrained pocket".split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
