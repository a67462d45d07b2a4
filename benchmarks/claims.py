"""README's claim table, from the latest full records in results/. --write puts it into README.md, --check says if it is old."""

import json
import sys
from pathlib import Path

from common import RESULTS, ROOT, middle, ratios

BEGIN, END = "<!-- claims: written by benchmarks/claims.py -->", "<!-- end of claims -->"


def latest(name: str, **config) -> dict | None:
    "The newest full record of a benchmark whose configuration has these values."
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [r for r in map(json.loads, lines) if not r["config"]["quick"] and config.items() <= r["config"].items()]
    return found[-1] if found else None


LBFGS, TIGHT, OURS = (
    "scikit-learn lbfgs, its own stop",
    "scikit-learn lbfgs, tol 1e-8, 1,000 iterations",
    "ours, gap 1e-08",
)
ONCE = "features once, fp32"
BIG, LARGE = "50,000 x 2,048", "large features, 50,000 x 2,048"

ROWS = [
    (
        "The article's 10 epochs, ResNet-50, 224 px; features once and certified head, fp32",
        "article",
        dict(px=224),
        "article",
        ONCE,
    ),
    (
        "The article's 10 epochs, ResNet-50, 32 px; features once and certified head, fp32",
        "article",
        dict(px=32),
        "article",
        ONCE,
    ),
    (f"Head, {BIG}; scikit-learn's lbfgs at its own stop", "head", dict(problem=BIG), LBFGS, OURS),
    (f"Head, {BIG}; scikit-learn's lbfgs at tol 1e-8", "head", dict(problem=BIG), TIGHT, OURS),
    (f"Head, {LARGE}; scikit-learn's lbfgs at its own stop", "head", dict(problem=LARGE), LBFGS, OURS),
    (f"Head, {LARGE}; scikit-learn's lbfgs at tol 1e-8", "head", dict(problem=LARGE), TIGHT, OURS),
    ("20 values of l2, 20,000 x 512; 20 fits of scikit-learn to their stop", "path", {}, "scikit-learn", "our path"),
]


def gap(run: dict) -> str:
    value = run.get("gap", run.get("worst_gap"))
    return "none" if value is None else f"{value:.0e}"


def table() -> str:
    lines = [
        "| what, against what | times less CPU time | gap certified: theirs, ours | how measured |",
        "|---|---|---|---|",
    ]
    for what, name, config, base, other in ROWS:
        r = latest(name, **config)
        if r and base in r["runs"] and other in r["runs"]:
            m, runs = r["machine"], len(r["runs"][base])
            gaps = f"{gap(r['runs'][base][-1])}, {gap(r['runs'][other][-1])}"
            how = f"{runs} paired run{'s' * (runs > 1)}, {m['threads']} thread{'s' * (m['threads'] > 1)}, {m['gpu'] or m['processor']}"
            lines.append(f"| {what} | {middle(ratios(r, base, other), 1)} | {gaps} | {how} |")
    return "\n".join(lines)


def readme(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    path = Path(ROOT / "README.md")
    old = path.read_text(encoding="utf-8")
    if "--write" in sys.argv:
        path.write_text(readme(old), encoding="utf-8")
    elif "--check" in sys.argv:
        sys.exit(
            "README's claims are not those of results/: python benchmarks/claims.py --write"
            if readme(old) != old
            else 0
        )
    else:
        print(table())
