"""How the cost of features and of the certified head grows: with pictures, columns, classes. python benchmarks/growth.py

One axis at a time, the others held. CPU seconds of `extract` by the pocket network (eager, so that nothing but the number of
pictures changes) and of `solve_head` to a certified gap of 1e-6 on made-up features. Appendix E draws the lines.

`torchrun --standalone --nproc_per_node=2 benchmarks/growth.py` measures one head over that many processes instead, each with
its share of the rows; do it with one process as well. What counts there is the wall's clock, so nothing else may run.
"""

import os
import sys

import torch
from common import arguments, paired
from problems import relu_features

from sft_nb.data import Images, Loader
from sft_nb.features import Features, extract
from sft_nb.models import load_pretrained
from sft_nb.probing import solve_head
from sft_nb.processes import group

HELD = dict(n=8_000, d=512, c=10)
AXES = dict(
    n=(1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000),
    d=(64, 128, 256, 512, 1024, 2048),
    c=(2, 5, 10, 30, 100, 300),
)
QUICK = dict(n=(500, 1000), d=(32, 64), c=(2, 5))


def head(spec: dict, l2: float):
    feats = relu_features(**spec, separation=0.5, noise=0.3)

    def run():
        return dict(gap=solve_head(feats, spec["c"], l2, 1e-6).gap)

    return run


def features(n: int):
    pre = load_pretrained("pocket")
    x = torch.randint(0, 256, (n, *pre.example.shape), dtype=torch.uint8, generator=torch.manual_seed(0))
    dl = Loader(Images(x, torch.zeros(n, dtype=torch.long)), 200, pre.transform)

    def run():
        return dict(engine=extract(pre.backbone, dl, engine="eager").engine)

    return run


def shared(args):
    "One head over all processes; the first one keeps the record."
    with group() as (rank, size):
        spec = HELD | dict(n=2_000 if args.quick else 40_000)
        feats = relu_features(**spec, separation=0.5, noise=0.3)
        mine = Features(feats.x[rank::size].contiguous(), feats.y[rank::size])
        run = lambda: dict(gap=solve_head(mine, spec["c"], args.l2, 1e-6).gap)
        run()  # where the processes find each other
        config = dict(axis="p", p=size, **spec, l2=args.l2, quick=args.quick)
        paired("growth", config, {"head": run}, args.repeats, "cpu", keep=rank == 0)


if __name__ == "__main__":
    args = arguments(__doc__, l2=6.3e-5)
    if "RANK" in os.environ:
        sys.exit(shared(args))
    for axis, values in (QUICK if args.quick else AXES).items():
        for value in values:
            spec = HELD | {axis: value}
            made = {"head": head(spec, args.l2)} | ({"features": features(value)} if axis == "n" else {})
            config = dict(axis=axis, **spec, l2=args.l2, quick=args.quick)
            paired("growth", config, made, 1 if args.quick else args.repeats, "cpu")
