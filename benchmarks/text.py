"""The records of chapter 17: python benchmarks/text.py [SEED ...]

Six strategies from MiniLM on four tasks of text, at ten and fifty labels per class, one seed after the other, into
results/text.jsonl. Half an hour of one core for a seed; stop it whenever you like, and it goes on from its file. It needs
`sft_nb fetch minilm`, `sft_nb fetch banking77` and `sft_nb fetch polarity`.
"""

import sys
from pathlib import Path
from tempfile import gettempdir

import torch
from common import RESULTS, of_each

from sft_nb.records import Config
from sft_nb.sweeps import sweep

# Two rates each
RATES = dict(
    linear_probing=(1e-4, 4e-4), lp_ft=(3e-5, 1e-4), full=(1e-4, 4e-4), lora=(1e-3, 3e-3), bitfit=(1e-3, 3e-3),
    from_scratch=(1e-4, 1e-3),
)  # fmt: skip
L2S = (0.1, 1.0, 0.01, 0.001)  # the first is also that of LP-FT's solved head


def tasks(seed: int) -> list[tuple[str, int, int]]:
    "Task, labels per class, epochs: 60 to 70 steps of 16 for everybody. Every seed draws ten other intents."
    two = [(task, shots, epochs) for task in ("negation", "polarity") for shots, epochs in ((10, 30), (50, 10))]
    fifty = [(f"banking10_{seed}", 50, 2)] if seed else []  # one of draw 0's intents has 28 labels; no chart has fifty
    return [("chart", 10, 10), (f"banking10_{seed}", 10, 10), *two, *fifty]


def experiments(seed: int) -> list[Config]:
    "All strategies on all tasks."
    about = dict(pretrained="minilm", seed=seed, l2s=L2S, batch_size=16)
    return [c for task, n, epochs in tasks(seed) for c in of_each(RATES, task=task, shots=n, epochs=epochs, **about)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep = Path(gettempdir()) / "sft_nb-text"  # features once, for all seeds
    for seed in map(int, sys.argv[1:] or range(3)):
        sweep(experiments(seed), RESULTS / "text.jsonl", keep)
