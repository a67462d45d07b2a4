"""The records of chapter 19: python benchmarks/speech.py [SEED ...]

From the network that heard made words, on real recordings: six strategies, which digit (by take, and by three pairs of
unseen speakers) and who speaks, at five, ten and twenty labels per class. From the one that was taught phones: the probe, and
full fine-tuning. From the one that heard thousands of people: the probe, too; full fine-tuning and training from scratch at ten
labels. One seed after the other, into results/speech.jsonl. Twenty minutes of one core for a seed; stop it whenever you like, and it goes on from its file. It
needs `sft_nb fetch spoken_digits` and `sft_nb fetch resemblyzer`.
"""

import sys
from pathlib import Path
from tempfile import gettempdir

import torch
from common import RESULTS, of_each

from sft_nb.records import Config
from sft_nb.sounds import WAYS
from sft_nb.sweeps import sweep

# Two rates each. Full fine-tuning and training from scratch have the same two, the same steps and BatchNorm's live statistics
RATES = dict(
    linear_probing=(1e-3, 3e-3), lp_ft=(1e-3, 3e-3), full=(1e-3, 3e-3), lora=(3e-3, 1e-2), bitfit=(3e-3, 1e-2),
    from_scratch=(1e-3, 3e-3),
)  # fmt: skip
L2S = (0.01, 0.1, 1.0, 0.001)  # the first is also that of LP-FT's solved head
EPOCHS = {5: 50, 10: 29, 20: 15}  # 200 steps of 16 for ten classes; six speakers take 100 to 120


VOICES = dict(full=(3e-4, 3e-3), from_scratch=(3e-4, 3e-3))  # of the other network, at ten labels
SMALL = (0.001, 0.01, 0.1, 0.0001)  # its features have length 1
TASKS = ["_".join(filter(None, ("spoken_digits", way))) for way in WAYS]


def experiments(seed: int) -> list[Config]:
    "All strategies on all tasks."
    about = dict(pretrained="hearing", seed=seed, l2s=L2S, batch_size=16)
    return [c for n, e in EPOCHS.items() for t in TASKS for c in of_each(RATES, task=t, shots=n, epochs=e, **about)]


def of_phones(seed: int) -> list[Config]:
    "From the network that was taught the phone of each moment: the probe, and full fine-tuning with the rates of above."
    about = dict(pretrained="hearing-phones", seed=seed, l2s=L2S, batch_size=16)
    some = dict(linear_probing=(1e-3,), full=RATES["full"])
    return [c for n, e in EPOCHS.items() for t in TASKS for c in of_each(some, task=t, shots=n, epochs=e, **about)]


def of_voices(seed: int) -> list[Config]:
    "From the network of voices: what is cheap on all tasks, what is not at ten labels."
    about = dict(pretrained="resemblyzer", seed=seed, l2s=SMALL, batch_size=16)
    probes = [
        c
        for n, e in EPOCHS.items()
        for t in TASKS
        for c in of_each(dict(linear_probing=(1e-3,)), task=t, shots=n, epochs=e, **about)
    ]
    return probes + [c for t in TASKS[1:] for c in of_each(VOICES, task=t, shots=10, epochs=EPOCHS[10], **about)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep = Path(gettempdir()) / "sft_nb-speech"  # features once, for all seeds
    for seed in map(int, sys.argv[1:] or range(3)):
        sweep(experiments(seed) + of_phones(seed) + of_voices(seed), RESULTS / "speech.jsonl", keep)
