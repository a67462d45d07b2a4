"""Twenty values of l2: our warm-started path, every value certified to 1e-8, against twenty fits of scikit-learn.

scikit-learn's LogisticRegression (lbfgs) fits each value from zero until it stops by itself, as a sweep over C does.
"""

import warnings

import torch
from common import arguments, middle, paired, ratios, show
from problems import PROBLEMS, QUICK, problem
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from sft_nb.objective import head_gap
from sft_nb.probing import l2_path


def sklearn_fits(feats, l2s):
    x, y = feats.x.numpy(), feats.y.numpy()

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fits = [LogisticRegression(C=1 / (len(y) * l2), max_iter=100_000).fit(x, y) for l2 in l2s]
        heads.append([(torch.from_numpy(m.coef_), torch.from_numpy(m.intercept_)) for m in fits])
        return dict(iterations=[int(m.n_iter_.max()) for m in fits])

    heads = []
    return run, heads


def our_path(feats, classes, l2s, tol):
    def run():
        probes = l2_path(feats, classes, l2s, tol=tol)
        heads.append([(p.W, p.b) for p in probes])
        return dict(said=[p.gap for p in probes])

    heads = []
    return run, heads


if __name__ == "__main__":
    args = arguments(__doc__, values=20, low=1e-6, high=1e-1, problem="20,000 x 512")
    name, spec = next(iter(QUICK.items())) if args.quick else (args.problem, PROBLEMS[args.problem])
    feats, classes = problem(spec), spec["c"]
    l2s = torch.logspace(*torch.tensor([args.high, args.low]).log10().tolist(), args.values).tolist()
    subjects = {"scikit-learn": sklearn_fits(feats, l2s), "our path": our_path(feats, classes, l2s, 1e-8)}

    def judge(s, r):
        gaps = [head_gap(W, b, feats.x, feats.y, l2) for (W, b), l2 in zip(subjects[s][1][r], l2s, strict=True)]
        return dict(worst_gap=max(gaps), gaps=gaps)

    config = dict(problem=name, **spec, l2s=l2s, quick=args.quick)
    runs = {s: f for s, (f, _) in subjects.items()}
    record = paired("path", config, runs, 1 if args.quick else args.repeats, "cpu", judge)
    show(record, "scikit-learn", {"worst gap": lambda r: f"{r['worst_gap']:.1e}"})
    print(f"our path: {middle(ratios(record, 'scikit-learn', 'our path'), 1)} times less CPU than {args.values} fits")
