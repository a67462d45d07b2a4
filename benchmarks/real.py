"""The records of a real network on real photographs: python benchmarks/real.py [SEED ...]

Nine strategies from EfficientNet-Lite0 on photographs of clothes of 128 pixels, at ten and fifty labels per class, one seed
after the other, into results/real.jsonl. Half an hour of one core for a seed; stop it whenever you like, and it goes on from
its file. It needs the weights and the photographs: sft_nb fetch efficientnet_lite0; sft_nb fetch clothing.
"""

import sys
from pathlib import Path
from tempfile import gettempdir

import torch
from common import RESULTS, of_each

from sft_nb.records import Config
from sft_nb.sweeps import sweep

# Two rates each: a step of the whole network costs a second, so the search is narrower than the pocket world's
LOW, MIDDLE, HIGH = (0.0003, 0.001), (0.001, 0.004), (0.003, 0.01)
RATES = dict(
    linear_probing=LOW, lp_ft=LOW, lora=(0.001, 0.003), full=MIDDLE, last_block=MIDDLE, l2_sp=MIDDLE, bn_only=HIGH,
    bitfit=HIGH, from_scratch=HIGH,
)  # fmt: skip
L2S = (0.1, 1.0, 0.01, 0.001)  # the first is also that of LP-FT's solved head
EPOCHS = {10: 10, 50: 3}  # labels per class -> epochs of 4 and of 16 batches: 40 and 48 steps


def experiments(seed: int) -> list[Config]:
    "All strategies, a few labels first."
    about = dict(pretrained="efficientnet_lite0", task="clothing", size=128, seed=seed, l2s=L2S)
    return [c for shots, epochs in EPOCHS.items() for c in of_each(RATES, shots=shots, epochs=epochs, **about)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep = Path(gettempdir()) / "sft_nb-real"  # features once, for all seeds
    for seed in map(int, sys.argv[1:] or range(3)):
        sweep(experiments(seed), RESULTS / "real.jsonl", keep)
