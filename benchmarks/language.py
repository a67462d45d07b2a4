"""The records of chapter 18: python benchmarks/language.py [SEED ...]

Seven strategies from the small language model on questions about countries, at 15 to 1,025 pairs, one seed after the other,
into results/language.jsonl. Ten minutes of one core for a seed; stop it whenever you like, and it goes on from its file.
"""

import sys
from pathlib import Path
from tempfile import gettempdir

import torch
from common import RESULTS, of_each

from sft_nb.sweeps import sweep

RATES = dict(
    full=(3e-4, 1e-3), lora=(3e-3, 1e-2), last_block=(1e-3, 3e-3), linear_probing=(1e-3,), lp_ft=(3e-4, 1e-3),
    l2_sp=(3e-4, 1e-3), from_scratch=(1e-3, 3e-3),
)  # fmt: skip
L2S = (0.01, 0.1, 0.001)
EPOCHS = {3: 100, 13: 20, 51: 6, 205: 2}  # Pairs of each kind of question -> epochs: a hundred steps of 16


def experiments(seed: int) -> list:
    "All strategies at all sizes."
    about = dict(pretrained="pocket-lm", task="countries", l2s=L2S, batch_size=16, seed=seed)
    return [c for n, epochs in EPOCHS.items() for c in of_each(RATES, shots=n, epochs=epochs, **about)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seed in map(int, sys.argv[1:] or range(3)):
        sweep(experiments(seed), RESULTS / "language.jsonl", Path(gettempdir()) / "sft_nb-language")
