"""Full fine-tuning with 24, 80 and 200 steps at two rates, for chapter 11: python benchmarks/steps.py

The pocket network on ten labels per class of digits_wild, three draws; into results/steps.jsonl, a line a number of steps
and rate. Half a minute of one core.
"""

import json

import torch
from common import RESULTS

from sft_nb.core import set_seed
from sft_nb.data import Loader, few_shot, jitter, load_split
from sft_nb.evaluation import accuracy, predict
from sft_nb.models import adapt, load_pretrained
from sft_nb.strategies import FULL, run_phases, scaled


def once(pre, task, steps, lr, seed):
    "Test accuracy after so many steps of 32 pictures, of which four make an epoch."
    set_seed(seed)
    model, few = adapt(pre, 10), few_shot(task.train, 10, seed)
    dl = Loader(few, 32, pre.transform, shuffle=True, augment=jitter(2), seed=seed)
    for _ in run_phases(model, dl, scaled(FULL, lr=lr, epochs=steps // len(dl))):
        pass
    return accuracy(*predict(model, Loader(task.test, 200, pre.transform)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    pre, task = load_pretrained("pocket"), load_split("digits_wild")
    with open(RESULTS / "steps.jsonl", "w", encoding="utf-8") as f:
        for lr in (1e-3, 3e-3):
            for steps in (24, 80, 200):
                found = [once(pre, task, steps, lr, seed) for seed in range(3)]
                print(row := dict(steps=steps, lr=lr, shots=10, n=len(task.test), accuracy=found))
                f.write(json.dumps(row) + "\n")
