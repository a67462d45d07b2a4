"""The bills of chapter 15, and forecasts against runs: python benchmarks/cost.py bills [NETWORK ...] | fit | forecast [old]

`bills`: strategies on eight networks without their weights, on EfficientNet-Lite0 all that fit, 500 labels in ten classes, ten epochs, batches
of 32, into results/costs.jsonl: a line a network with its forward pass and torch's own count of a step, a line a bill.
`fit`: the memory that a bill says against what the process really took, each in a process of its own, into
results/fits.jsonl. `forecast`: what `sweeps.forecast` said of a run just before it, and what it took, into
results/forecasts.jsonl; then the same for records that lie in results/. Some minutes of one core each.
"""

import json
import subprocess
import sys
import time
from contextlib import nullcontext
from unittest.mock import patch

import torch
from common import RESULTS, peak_bytes, processor, revision
from torch.utils.flop_counter import FlopCounterMode

from sft_nb import zoo
from sft_nb.core import measure, set_seed
from sft_nb.cost import bill, costs
from sft_nb.data import Examples, load_split
from sft_nb.experiments import run
from sft_nb.freezing import freeze
from sft_nb.models import adapt
from sft_nb.records import Config, grid, read_records
from sft_nb.strategies import built, strategy
from sft_nb.sweeps import forecast
from sft_nb.training import step_flops, steps

PICTURES = ("resnet50", "vit_b_16", "swin_t", "convnext_tiny", "mobilenet_v2", "efficientnet_lite0")
NETWORKS = (*PICTURES, "minilm", "pocket-lm")
SIZE = 32
SOME = ("linear_probing", "last_block", "bitfit", "lora", "full")
EVERY = {"pocket-lm": (*SOME[:2], *SOME[3:])} | dict(
    efficientnet_lite0=(), resnet50=(*SOME[:2], "bn_only", *SOME[2:])
)  # (): all that fit


def write(name: str, row: dict) -> None:
    print(row, flush=True)
    with open(RESULTS / f"{name}.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")


def labelled(pre, n: int = 500) -> Examples:
    "n rows as the network reads them, in ten classes; texts and dialogues from a task."
    y = torch.arange(n) % 10
    if pre.kind == "image":
        return Examples(torch.randint(0, 256, (n, *pre.example.shape), dtype=torch.uint8), y)
    train = load_split("countries" if pre.adapts else "chart").train
    some = train[torch.arange(n) % len(train)]
    return some if pre.adapts else type(some)(some.x, y)


def torchs(model, x) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    return counter.get_total_flops()


def bills(*names: str) -> None:
    for name in names or NETWORKS:
        set_seed(0)
        pre = zoo.network(name, weights=False)
        ds = labelled(pre)
        model, x = adapt(pre, 10).eval(), pre.transform(ds.x[:1])
        one = dict(
            parameters=sum(p.numel() for p in model.parameters()), row=list(x.shape), torchs_step=torchs(model, x)
        )
        write("costs", dict(network=name, step=step_flops(model, x), forward=step_flops(freeze(model), x), **one))
        for b in costs(
            pre, ds, EVERY.get(name, SOME), epochs=10, batch_size=SIZE, rows=3 if name in PICTURES else None
        ):
            write("costs", dict(network=name, **b.row(), machine=processor(), revision=revision()))


def one_fit(network: str, way: str, batch: int) -> None:
    "In a process of its own: the peak of two real steps above what the process held with the model, and the bill."
    torch.set_num_threads(1)
    set_seed(0)
    pre = zoo.network(network, weights=False)
    ds = labelled(pre, batch)
    model = adapt(pre, 10)
    built(model, strategy(way, model))
    x, learn = pre.transform(ds.x), [p for p in model.parameters() if p.requires_grad]
    took = peak_bytes(lambda: [list(steps(model, [(x, ds.y)], o, 2)) for o in [torch.optim.Adam(learn)]])
    said = bill(
        way, pre, ds, epochs=20, batch_size=batch, rows=3
    )  # afterwards, for memory that was freed is used again
    write("fits", dict(network=network, strategy=way, batch=batch, said=said.memory - said.parameters, took=took))


def fit() -> None:
    for network, batch in (("efficientnet_lite0", 16), ("resnet50", 8), ("swin_t", 8)):
        for way in ("last_block", "bitfit", "lora", "full"):
            subprocess.run([sys.executable, __file__, "one", network, way, str(batch)], check=True)


FORECAST = ("linear_probing", "full", "last_block", "bn_only", "bitfit", "lora", "lp_ft", "from_scratch")


def forecasts(part: str = "") -> None:
    """Fresh runs, each after its forecast, on the machine as it is; then, or only, what stands in results/.

    Those were made when the machine had less to do or more; the forecast for them counts this process's own time."""
    path = RESULTS / "forecasts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    done = {(r["fresh"], r["pretrained"], r["task"], r["strategy"]) for r in map(json.loads, lines)}

    def told(c: Config, took: float | None = None) -> None:
        if (key := (took is None, c.pretrained, c.task, c.strategy)) not in done:
            done.add(key)
            with patch("time.perf_counter", time.process_time) if took else nullcontext():  # not what else runs today
                said = forecast([c]).seconds
            took = took or measure(run, c).seconds
            about = dict(pretrained=c.pretrained, task=c.task, strategy=c.strategy, shots=c.shots, epochs=c.epochs)
            write("forecasts", dict(fresh=key[0], said=round(said, 3), took=round(took, 3), **about))

    configs = grid(task=["digits_wild", "hue"], strategy=FORECAST, epochs=10, lrs=[(0.001, 0.003)], l2s=[(0.1, 0.01)])
    run(configs[0])  # the first one of a process is slow, and not counted
    for c in configs if part != "old" else ():
        told(c)
    for name in ("strategies", "speech", "language", "text", "real"):
        for r in read_records(RESULTS / f"{name}.jsonl"):
            if r.config.task in ("digits_wild", "clothing", "chart", "countries", "spoken_digits"):
                told(r.config, r.price.seconds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, *rest = sys.argv[1:] or ["bills"]
    if what == "one":
        one_fit(rest[0], rest[1], int(rest[2]))
    elif what == "bills":
        path = RESULTS / "costs.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        path.write_text(
            "".join(json.dumps(r) + "\n" for r in rows if r["network"] not in (rest or NETWORKS)), encoding="utf-8"
        )
        bills(*rest)
    elif what == "fit":
        (RESULTS / "fits.jsonl").unlink(missing_ok=True)
        fit()
    else:
        forecasts(*rest)
