"What CONTRIBUTING says is done once: where a new world, score, strategy, widget and file format go."

from dataclasses import replace

import pytest
import test_worlds
import torch

from sft_nb import experiments, strategies
from sft_nb.cli import main
from sft_nb.controls import controls
from sft_nb.evaluation import predict
from sft_nb.records import Config, read_records
from sft_nb.store import StoreError, load, save
from sft_nb.strategies import Phase
from sft_nb.sweeps import sweep
from sft_nb.tables import table
from sft_nb.widgets import play

QUICK = dict(shots=2, epochs=1, lrs=(0.003,), l2s=(0.1,))


def test_a_world_is_one_file():
    assert test_worlds  # its thirty lines are that file, and its tests run everything on it


def test_a_score_is_one_entry(tmp_path, monkeypatch, capsys):
    "Written by `record`, summed up by its name; a file of before has none."
    path, real = tmp_path / "r.jsonl", experiments.record
    (before,) = sweep([Config(seed=1, **QUICK)], path)

    def record(s, fit, tried):
        logits, y = predict(fit.model, s.loader(s.task.test))
        r = real(s, fit, tried)
        return replace(
            r, scores=r.scores | dict(second=float((logits.topk(2).indices == y[:, None]).any(1).float().mean()))
        )

    monkeypatch.setattr(experiments, "record", record)
    (now,) = sweep([Config(seed=2, **QUICK)], path)
    assert now.scores["second"] > now.scores["accuracy"] and "second" not in before.scores
    (row,) = table(read_records(path), values=["second", "accuracy"])
    assert row["n"] == 2 and row["second"] == now.scores["second"]
    assert main(["table", str(path), "--values", "second"]) == 0 and "second" in capsys.readouterr().out


def test_a_strategy_is_a_name(monkeypatch, capsys):
    mine = (Phase(("head.bias",), 1, 0.01, name="mine"),)
    monkeypatch.setitem(strategies.STRATEGIES, "mine", mine)
    config = Config(strategy="mine", **QUICK)
    assert experiments.run(config).price.trained == 10
    panel = controls()
    panel.value = config
    assert panel.value == config and not panel.problems and "strategy='mine'" in panel.code


def test_a_widget_is_a_function_of_plain_values():
    from sft_nb.widgets import svg_curve

    view = play(lambda slope=1.0: svg_curve([(0, 0), (1, slope)], "y", 1), slope=(0.0, 2.0))
    slider, shown = view.box.children
    before = shown.value
    slider.value = 2.0
    assert shown.value != before and "image/png" in view.still()


def test_a_file_format_is_a_kind(tmp_path):
    path = save(tmp_path / "a.safetensors", dict(x=torch.arange(3)), dict(kind="mine"))
    tensors, meta = load(path)
    assert torch.equal(tensors["x"], torch.arange(3)) and meta["kind"] == "mine"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    with pytest.raises(StoreError):
        load(path)
