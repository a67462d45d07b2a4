"""The head at every gap: CPU time to a certified 1e-2, 1e-4, 1e-6 and 1e-8, ours against scikit-learn, L-BFGS and Adam.

One objective for all, F(W, b) = mean cross-entropy + (l2 / 2) ||W||^2 with a free bias, and one judge: our certificate, at
the best bias of the head that a solver returned. Ours is asked for the gap. A rival cannot be: its settings are tried
from the loosest on, and the first whose head has the gap is the one that is timed, as if its user had known. A rival
that needs more than `--patience` times our CPU time for 1e-8 is not tried further, and its best gap is said instead.
`--real FILE` adds a problem: what `torch.save(dict(x=features, y=labels), FILE)` wrote; `--large` adds 50,000 x 2,048.
"""

import statistics
import warnings
from itertools import product

import torch
from common import arguments, middle, paired, ratios, timed
from head import GAPS, ours, sklearn_head, torch_lbfgs
from problems import PROBLEMS, relu_features
from torch import nn

from sft_nb.data import Loader, load_split
from sft_nb.features import Features, extract
from sft_nb.models import load_pretrained
from sft_nb.objective import head_gap, head_loss, profile_bias

MIDDLE = dict(n=20_000, d=512, c=10)
MADE = {
    "overlapping": PROBLEMS["20,000 x 512"],
    "far apart": PROBLEMS["far apart, 20,000 x 512"],
    "columns from 1e-2 to 1e2": PROBLEMS["20,000 x 512"] | dict(columns=2),
    "fewer rows than columns": dict(n=1000, d=2048, c=10, separation=0.38, noise=0.3),
    "two classes": MIDDLE | dict(c=2, separation=0.38, noise=0.3),
    "1,000 classes": dict(n=10_000, d=128, c=1000, separation=0.7, noise=0.3),
}
LARGE = {f"{name}, 50,000 x 2,048": spec | dict(n=50_000, d=2048) for name, spec in list(MADE.items())[:2]}
SMALL = {name: spec | dict(n=min(spec["n"], 3000), d=min(spec["d"], 128)) for name, spec in MADE.items()}
SMALL["fewer rows than columns"] |= dict(n=200, d=512)
SMALL["1,000 classes"] |= dict(d=32, c=200)


def made(columns=0, **spec):
    "A made-up problem, its columns multiplied by factors from 10^-columns to 10^columns where that is asked for."
    feats = relu_features(**spec)
    factors = torch.logspace(-columns, columns, spec["d"])[torch.randperm(spec["d"], generator=torch.manual_seed(0))]
    return Features(feats.x * factors, feats.y), spec["c"]


def pocket():
    "The pocket network's features of digits_wild."
    pre, task = load_pretrained("pocket"), load_split("digits_wild")
    return extract(pre.backbone, Loader(task.train, 256, pre.transform)), 10


def real(path):
    "Features from a file."
    there = torch.load(path)
    return Features(there["x"].float(), there["y"].long()), int(there["y"].max()) + 1


def adam(feats, classes, l2, epochs, lr):
    "The usual loop on features, batches of 32, on the objective with its penalty."

    def run():
        torch.manual_seed(0)
        head = nn.Linear(feats.x.shape[1], classes)
        opt = torch.optim.Adam(head.parameters(), lr)
        for xb, yb in (batch for _ in range(epochs) for batch in loader):
            opt.zero_grad()
            (nn.functional.cross_entropy(head(xb), yb) + l2 / 2 * head.weight.square().sum()).backward()
            opt.step()
        return dict(W=head.weight.detach(), b=head.bias.detach())

    loader = Loader(feats, 32, transform=lambda xb: xb, shuffle=True)
    return run


def rivals(feats, classes, l2):
    "name -> [(setting, run)], from the loosest setting to the tightest."
    D, tols = feats.x.shape[1], [10.0**-k for k in range(1, 13)]
    sides = (
        2 if classes == 2 else 1
    )  # with two classes scikit-learn has one row w = W_1 - W_0, and ||W||^2 = ||w||^2 / 2
    kinds = {"": feats, "float64, ": Features(feats.x.double(), feats.y)}  # some gaps are out of float32's reach
    fit = lambda solver: [
        (f"{kind}tol {t:.0e}", sklearn_head(f, l2 / sides, solver=solver, tol=t, max_iter=100_000))
        for kind, f in kinds.items()
        for t in tols
    ]
    out = {"scikit-learn lbfgs": fit("lbfgs")}
    if D * (classes if classes > 2 else 1) <= 1500:  # its Hessian has (D C)^2 entries
        out["scikit-learn newton-cholesky"] = fit("newton-cholesky")
    steps = [10 * 2**i for i in range(9)]
    out["torch LBFGS"] = [(f"{k} iterations", torch_lbfgs(feats, classes, l2, k)) for k in steps]
    out["Adam"] = [
        (f"lr {lr:g}, {e} epochs", adam(feats, classes, l2, e, lr)) for e, lr in product((1, 3, 10), (1e-3, 1e-2))
    ]
    return out


def certified(out, feats, l2):
    "The gap of a head at its best bias, by our certificate, and its F, no more of which can be too much."
    W, b = out.pop("W").double(), out.pop("b").double()
    if len(W) == 1:
        W, b = torch.cat([-W, W]) / 2, torch.cat([-b, b]) / 2
    b = profile_bias(W, feats.x, feats.y)
    loss = head_loss(W, b, feats.x.double(), feats.y, l2).item()
    return dict(out, gap=min(loss, head_gap(W, b, feats.x, feats.y, l2)), loss=loss)


def first_settings(candidates, feats, l2, patience):
    "gap -> (setting, run) of the first setting whose head has it, and the best gap that was seen."
    found, best, spent = {}, float("inf"), 0.0
    for setting, run in candidates:
        out = timed(run, "cpu")
        spent, best = spent + out["cpu_s"], min(best, gap := certified(out, feats, l2)["gap"])
        found |= {g: (setting, run) for g in GAPS if g not in found and gap <= g}
        if spent > patience or len(found) == len(GAPS):
            break
    return found, best


def subjects_of(feats, classes, l2, patience):
    "Every subject of one problem, by (gap, solver, setting), and the best gaps of the rivals."
    mine = {g: ours(feats, classes, l2, g) for g in GAPS}
    patience *= max(0.5, timed(mine[GAPS[-1]], "cpu")["cpu_s"])
    subjects, best = {(g, "ours", ""): run for g, run in mine.items()}, {}
    for name, candidates in rivals(feats, classes, l2).items():
        found, best[name] = first_settings(candidates, feats, l2, patience)
        subjects |= {(g, name, setting): run for g, (setting, run) in found.items()}
    return subjects, best


def set_aside(runs, feats, l2):
    "The runs, which keep their heads back, and what judges these outside the timing."
    heads = {}

    def keeping(key, run):
        def kept():
            heads[key] = run()
            return {}

        return kept

    return {k: keeping(k, f) for k, f in runs.items()}, lambda key, r: certified(heads.pop(key), feats, l2)


def table(record, best):
    "One line for each gap: our CPU seconds, and each rival's with how many times ours they are."
    print(f"\n{record['config']['problem']}: CPU seconds, median (min to max), and how many times ours")
    print("\t".join(["gap", "ours", *best]))
    for g in GAPS:
        keys = {s.split(" | ")[1]: s for s in record["runs"] if s.startswith(f"{g:.0e} | ")}
        cells = [middle([r["cpu_s"] for r in record["runs"][keys["ours"]]])]
        for name in best:
            if name in keys:
                seconds = statistics.median(r["cpu_s"] for r in record["runs"][keys[name]])
                times = middle(ratios(record, keys[name], keys["ours"]), 1)
                cells.append(f"{seconds:.2f} = {times}x, {keys[name].split(' | ')[2]}")
            else:
                cells.append(f"not reached: {best[name]:.0e}")
        print("\t".join([f"{g:.0e}", *cells]), flush=True)


if __name__ == "__main__":
    args = arguments(__doc__, l2=6.3e-5, only="", patience=20.0, large=False, real="")
    problems = {name: lambda s=s: made(**s) for name, s in (SMALL if args.quick else MADE).items()}
    problems["pocket features of digits_wild"] = pocket
    if args.large:
        problems |= {name: lambda s=s: made(**s) for name, s in LARGE.items()}
    if args.real:
        problems[f"features of {args.real}"] = lambda: real(args.real)
    for name, make in problems.items():
        if args.only not in name:
            continue
        feats, classes = make()
        print(f"\n{name}: features {tuple(feats.x.shape)}, {classes} classes", flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a rival says of its convergence: the certificate says more
            subjects, best = subjects_of(feats, classes, args.l2, args.patience)
            runs = {f"{g:.0e} | {s} | {setting}": run for (g, s, setting), run in subjects.items()}
            runs, judge = set_aside(runs, feats, args.l2)
            config = dict(
                problem=name, shape=list(feats.x.shape), classes=classes, l2=args.l2, best=best, quick=args.quick
            )
            record = paired("gaps", config, runs, args.repeats, "cpu", judge)
        table(record, best)
