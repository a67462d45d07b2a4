"""The records of chapter 13: python benchmarks/choosing.py [TARGET ...]

Fourteen pre-trained networks (three that come with the package, seven with a poor youth, one without any, EfficientNet-Lite0
to 2), seven targets, ten labels per class and the most there are up to fifty, three draws: the eleven scores, the test
accuracy of the certified head, and for ten labels that of full fine-tuning for the networks of pocket size, into
results/choosing.jsonl. Half an hour of one core; stop it whenever you like, and it goes on from its file. It needs
`sft_nb fetch efficientnet_lite0 efficientnet_lite1 efficientnet_lite2 clothing spoken_digits`.
"""

import sys
import time
from functools import cache, partial

import torch
import torch.nn.functional as F
from common import RESULTS, revision

from sft_nb.cache import cached
from sft_nb.core import set_seed
from sft_nb.data import Images, Loader, Split, few_shot, jitter, load_split
from sft_nb.evaluation import accuracy, predict
from sft_nb.models import adapt, architecture, from_network, load_pretrained
from sft_nb.probing import choose, l2_path
from sft_nb.sounds import LogMel
from sft_nb.sources.lite import LITE
from sft_nb.sources.pocket import LABELS, POCKET, TASKS, PocketResNet, pocket_source
from sft_nb.store import append_line, read_lines
from sft_nb.strategies import run_phases, scaled, strategy
from sft_nb.training import pretrain
from sft_nb.transferability import all_scores, evidence

DRAWS, RATES, EPOCHS = 3, (0.002, 0.008), 12
LARGE = 64  # sides of the pictures that EfficientNet is given


@cache
def poor(labels, epochs, seed, n=2000):
    "A pocket network that saw n drawings for some epochs, with the drawings' own task as its head."
    source, transform = pocket_source(labels, n), architecture("pocket")[1]
    set_seed(seed)
    net = PocketResNet(len(source.classes))
    for _ in pretrain(net, Loader(source.train, 64, transform, shuffle=True, seed=seed), epochs):
        pass
    return from_network(net.eval(), transform, f"{labels}, {epochs} ep., {seed}", load_pretrained("pocket").example)


def no_youth():
    "Random weights."
    set_seed(0)
    return from_network(*architecture("pocket"), "random", load_pretrained("pocket").example)


def as_pictures(split):
    "What LogMel makes of sounds, as grey pictures of 32 pixels: low tones below, time from left to right."

    def drawn(ds):
        bands = LogMel()(ds.x)[:, 1:].flip(1)[:, None]
        small = F.interpolate(bands, (32, 32), mode="bilinear", antialias=True)
        low, high = (small.flatten(1).quantile(q, dim=1)[:, None, None, None] for q in (0.02, 0.98))
        grey = ((small - low) / (high - low).clamp_min(1e-6)).clamp(0, 1) * 255
        return Images(grey.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous(), ds.y)

    return Split(drawn(split.train), drawn(split.valid), drawn(split.test), split.classes)


@cache
def target(name, side):
    "A task with pictures of these sides."
    if name == "sounds as pictures":
        split = as_pictures(load_split("spoken_digits"))
    else:
        split = load_split(name, size=side) if name == "clothing" else load_split(name)
    return split


CANDIDATES = {name: partial(load_pretrained, name) for name in POCKET}
POOR = [(labels, epochs, 1) for labels in LABELS for epochs in (1, 3)] + [("shape", 3, 2)]
CANDIDATES |= {"{}, {} ep., {}".format(*about): partial(poor, *about) for about in POOR}
CANDIDATES |= {"random": no_youth, **{name: partial(load_pretrained, name) for name in LITE}}
TARGETS = (*TASKS, "clothing", "sounds as pictures")


def as_released(f, classes):
    "LogME with the slip of its published program: D in the place of min(N, D) in one term of the evidence."
    alpha, _, value = evidence(f.x.double(), F.one_hot(f.y, classes).double())
    n, d = f.x.shape
    return ((value + (d - min(n, d)) / 2 * alpha.log()) / n).mean().item()


class Larger:
    "Pictures made larger, then the network's own transform."

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, xb):
        big = F.interpolate(xb.float(), LARGE, mode="bilinear", antialias=True)
        return self.transform(big.round().clamp(0, 255).to(torch.uint8))


def fully(pre, split, few, seed):
    "Test accuracy of full fine-tuning, its rate chosen on validation pictures."
    tried = []
    for lr in RATES:
        set_seed(seed)
        model = adapt(pre, len(split.classes))
        dl = Loader(few, 32, pre.transform, shuffle=True, augment=jitter(2), seed=seed)
        list(run_phases(model, dl, scaled(strategy("full", model), lr=lr, epochs=EPOCHS)))
        at = lambda ds, model=model: accuracy(*predict(model, Loader(ds, 200, pre.transform)))
        tried.append((at(split.valid), at(split.test)))
    return max(tried)[1]


def measured(name, where, done):
    "Every record of one network and one target that is not there yet."
    pre, small = CANDIDATES[name](), name not in LITE
    split = target(where, 32 if small else LARGE)
    C = len(split.classes)
    most = min(50, int(torch.bincount(split.train.y).min()))
    look = pre.transform if small else Larger(pre.transform)
    phi = lambda ds: cached(pre.backbone, Loader(ds, 200, look))
    valid, test = phi(split.valid), phi(split.test)
    for seed in range(DRAWS):
        many = phi(few_shot(split.train, most, seed))
        for shots in (10, most):
            if (name, where, shots, seed) in done:
                continue
            began = time.process_time()
            few = many[torch.cat([(many.y == c).nonzero()[:shots, 0] for c in range(C)])]
            with torch.no_grad():
                scores = all_scores(few.x, few.y, pre.head(few.x).softmax(1))
            scored = time.process_time() - began
            probe = accuracy(choose(l2_path(few, C, [1.0, 0.1, 0.01]), valid).logits(test.x), test.y)
            labelled = few_shot(split.train, most, seed)
            rows = torch.cat([(labelled.y == c).nonzero()[:shots, 0] for c in range(C)])
            full = fully(pre, split, labelled[rows], seed) if small and shots == 10 and not seed else None
            yield dict(
                network=name, target=where, shots=shots, seed=seed, features=few.x.shape[1], n=len(test.y), probe=probe,
                full=full, scores=scores, released=as_released(few, C), score_seconds=round(scored, 3), revision=revision(),
            )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = RESULTS / "choosing.jsonl"
    rows = [*read_lines(out)] if out.is_file() else []
    done = {(r["network"], r["target"], r["shots"], r["seed"]) for r in rows}
    for where in sys.argv[1:] or TARGETS:
        for name in CANDIDATES:
            for row in measured(name, where, done):
                append_line(out, row)
                print(row["target"], row["network"], row["shots"], row["seed"], row["probe"], row["full"], flush=True)
