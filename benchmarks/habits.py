"""The usual program's habits on a real network, for chapters 02 and 07: python benchmarks/habits.py

Frozen EfficientNet-Lite0, a new last layer, ten epochs of Adam on ten photographs of each of ten kinds of clothes, 128
pixels, three draws of the labels; into results/habits.jsonl, a line a draw. Two minutes of one core. It needs the weights
and the photographs: sft_nb fetch efficientnet_lite0; sft_nb fetch clothing.
"""

import copy
import json

import torch
import torch.nn.functional as F
from common import RESULTS
from torch import nn

from sft_nb.core import set_seed
from sft_nb.data import Loader, few_shot, load_split, to_float
from sft_nb.evaluation import accuracy
from sft_nb.features import extract
from sft_nb.models import load_pretrained
from sft_nb.probing import solve_head


def usual(pre, few, test, transform, train_mode, seed):
    "Test accuracy of ten epochs of Adam on a new last layer, the body in train mode or not while the layer learns."
    set_seed(seed)
    net, head = copy.deepcopy(pre.backbone).train(train_mode).requires_grad_(False), nn.Linear(pre.num_features, 10)
    adam = torch.optim.Adam(head.parameters())
    if train_mode:
        batches = Loader(few, 32, transform, shuffle=True, seed=seed)
    else:  # the body stands still, so its features do
        z = extract(net, Loader(few, 50, transform))
        batches = Loader((z.x, z.y), 32, shuffle=True, seed=seed)
        net = nn.Identity()
    for _ in range(10):
        for xb, yb in batches:
            adam.zero_grad()
            F.cross_entropy(head(net(xb)), yb).backward()
            adam.step()
    body = net if train_mode else pre.backbone
    z = extract(body.eval(), Loader(test, 50, transform))
    return accuracy(head.requires_grad_(False)(z.x), z.y)


if __name__ == "__main__":
    torch.set_num_threads(1)
    pre, task = load_pretrained("efficientnet_lite0"), load_split("clothing", size=128)
    with open(RESULTS / "habits.jsonl", "w", encoding="utf-8") as f:
        for seed in range(3):
            few = few_shot(task.train, 10, seed)
            solved = solve_head(extract(pre.backbone, Loader(few, 50, pre.transform)), 10, 0.01)
            z = extract(pre.backbone, Loader(task.test, 50, pre.transform))
            row = dict(
                network=pre.name, task="clothing", size=128, shots=10, seed=seed, n=len(task.test),
                train_mode=usual(pre, few, task.test, pre.transform, True, seed),
                not_normalised=usual(pre, few, task.test, to_float, False, seed),
                mended=usual(pre, few, task.test, pre.transform, False, seed),
                solved=accuracy(solved.logits(z.x), z.y),
            )  # fmt: skip
            print(row)
            f.write(json.dumps(row) + "\n")
