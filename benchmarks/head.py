"""The head's problem, one objective for all: F(W, b) = mean cross-entropy + (l2 / 2) ||W||^2, the bias free.

Solvers: ours to several certified gaps; scikit-learn's LogisticRegression by lbfgs at its default 100 iterations, by lbfgs
until it stops by itself, and by lbfgs at tol 1e-8 for at most 1,000 iterations; newton-cholesky where that is feasible; torch.optim.LBFGS on the whole set; the article's
Adam (10 epochs, batches of 32). For each: CPU and wall seconds, F - F*, and the gap that can be certified. F* is the
value of our solver at a gap of 1e-11. `peak_over_features` is our solver's peak memory above the start, in units of the
features' own size.
"""

import warnings

import torch
from common import arguments, middle, paired, peak_bytes, ratios, show
from problems import PROBLEMS, QUICK, problem
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

from sft_nb.data import Loader
from sft_nb.objective import head_gap, head_loss
from sft_nb.probing import solve_head

GAPS = (1e-2, 1e-4, 1e-6, 1e-8)


def sklearn_head(feats, l2, **kwargs):
    x, y = feats.x.numpy(), feats.y.numpy()

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the iterations are in the record
            m = LogisticRegression(C=1 / (len(y) * l2), **kwargs).fit(x, y)
        return dict(W=torch.from_numpy(m.coef_), b=torch.from_numpy(m.intercept_), iterations=int(m.n_iter_.max()))

    return run


def torch_lbfgs(feats, classes, l2, steps=200):
    def run():
        W = torch.zeros(classes, feats.x.shape[1], requires_grad=True)
        b = torch.zeros(classes, requires_grad=True)
        opt = torch.optim.LBFGS(
            [W, b], max_iter=steps, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def closure():
            opt.zero_grad()
            loss = nn.functional.cross_entropy(feats.x @ W.T + b, feats.y) + l2 / 2 * W.square().sum()
            loss.backward()
            return loss

        opt.step(closure)
        return dict(W=W.detach(), b=b.detach(), iterations=opt.state[W]["n_iter"])

    return run


def article_adam(feats, classes, epochs=10):
    "The article's loop on features: its objective has no l2."

    def run():
        torch.manual_seed(0)
        head = nn.Linear(feats.x.shape[1], classes)
        opt = torch.optim.Adam(head.parameters())
        for xb, yb in (batch for _ in range(epochs) for batch in loader):
            opt.zero_grad()
            nn.functional.cross_entropy(head(xb), yb).backward()
            opt.step()
        return dict(W=head.weight.detach(), b=head.bias.detach(), iterations=epochs * len(loader))

    loader = Loader(feats, 32, transform=lambda xb: xb, shuffle=True)
    return run


def ours(feats, classes, l2, tol):
    def run():
        p = solve_head(feats, classes, l2, tol)
        return dict(W=p.W, b=p.b, said=p.gap)

    return run


def measured(f, feats, l2):
    "The run, with its loss and certified gap; the weights themselves are not recorded."

    def run():
        out = f()
        results.append((out.pop("W"), out.pop("b")))
        return out

    results = []
    return run, results


if __name__ == "__main__":
    args = arguments(__doc__, l2=6.3e-5, only="")
    for name, spec in (QUICK if args.quick else PROBLEMS).items():
        if args.only not in name:
            continue
        feats, classes = problem(spec), spec["c"]
        print(f"\n{name}: features {tuple(feats.x.shape)}")
        subjects = {f"ours, gap {tol:.0e}": ours(feats, classes, args.l2, tol) for tol in GAPS}
        subjects["scikit-learn lbfgs, 100 iterations"] = sklearn_head(feats, args.l2)
        subjects["scikit-learn lbfgs, its own stop"] = sklearn_head(feats, args.l2, max_iter=100_000)
        subjects["scikit-learn lbfgs, tol 1e-8, 1,000 iterations"] = sklearn_head(
            feats, args.l2, max_iter=1000, tol=1e-8
        )
        if feats.x.shape[1] * classes <= 6000:  # its Hessian has (D C)^2 entries
            subjects["scikit-learn newton-cholesky"] = sklearn_head(feats, args.l2, solver="newton-cholesky")
        subjects["torch LBFGS, 200 iterations"] = torch_lbfgs(feats, classes, args.l2)
        subjects["the article's Adam, 10 epochs"] = article_adam(feats, classes)
        wrapped = {s: measured(f, feats, args.l2) for s, f in subjects.items()}
        best = solve_head(feats, classes, args.l2, 1e-11).loss
        peak = peak_bytes(lambda feats=feats, classes=classes: solve_head(feats, classes, args.l2))
        config = dict(problem=name, **spec, l2=args.l2, best=best, quick=args.quick)
        config["peak_over_features"] = peak / (feats.x.numel() * feats.x.element_size())

        def judge(s, r, feats=feats, best=best, wrapped=wrapped):
            W, b = (t.double() for t in wrapped[s][1][r])
            loss = head_loss(W, b, feats.x.double(), feats.y, args.l2).item()
            gap = min(loss, head_gap(W, b, feats.x, feats.y, args.l2))  # no F is below 0
            return dict(excess=loss - best, gap=gap)

        record = paired(
            "head", config, {s: f for s, (f, _) in wrapped.items()}, 1 if args.quick else args.repeats, "cpu", judge
        )
        base = "scikit-learn lbfgs, its own stop"
        show(
            record,
            base,
            {k: (lambda r, k=k: f"{r[k]:.1e}") for k in ("excess", "gap")}
            | dict(iterations=lambda r: r.get("iterations", "")),
        )
        print(f"peak memory above the features: {config['peak_over_features']:.2f} of their size")
        print(
            f"ours to 1e-8: {middle(ratios(record, base, 'ours, gap 1e-08'), 1)} times less CPU than scikit-learn's own stop"
        )
