"""The records of chapter 12: python benchmarks/strategies.py [SEED ...]

Every strategy on every target of the pocket world, at ten and fifty labels per class, one seed after the other, into
results/strategies.jsonl. About an hour of one core for a seed; stop it whenever you like, and it goes on from its file.
"""

import sys

import torch
from common import RESULTS, of_each

from sft_nb.records import Config
from sft_nb.sources.pocket import TASKS
from sft_nb.sweeps import sweep

# Four rates for each strategy, around those that validation pictures chose on three targets with another seed
WIDE, LOW, HIGH = (0.0005, 0.002, 0.008, 0.03), (0.0005, 0.0015, 0.005, 0.015), (0.002, 0.008, 0.03, 0.1)
RATES = dict(
    linear_probing=WIDE, full=WIDE, frozen_bn=LOW, lp_ft=WIDE, last_block=WIDE, gradual_unfreezing=WIDE, l2_sp=WIDE,
    bn_only=HIGH, bitfit=HIGH, lora=LOW, from_scratch=HIGH, surgical_layer1=WIDE,
)  # fmt: skip
L2S = (0.1, 1.0, 0.01, 0.001)  # the first is also that of LP-FT's solved head
EPOCHS = {10: 50, 50: 13}  # labels per class -> epochs of 4 and of 16 batches: at least 200 steps for everybody


def experiments(seed: int) -> list[Config]:
    "All strategies from one network, then three of them from two others."
    about = dict(seed=seed, l2s=L2S)
    main = [
        c
        for task in ("digits_wild", *(t for t in TASKS if t != "digits_wild"))
        for shots, epochs in EPOCHS.items()
        for c in of_each(RATES, task=task, shots=shots, epochs=epochs, **about)
    ]
    three = {name: RATES[name] for name in ("linear_probing", "full", "lp_ft")}
    others = [
        c
        for name in ("pocket-hue", "pocket-texture")
        for task in ("near", "digits_wild", "hue")
        for c in of_each(three, pretrained=name, task=task, shots=50, epochs=EPOCHS[50], **about)
    ]
    return main + others


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seed in map(int, sys.argv[1:] or range(5)):
        sweep(experiments(seed), RESULTS / "strategies.jsonl")
