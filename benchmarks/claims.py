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


ROWS = [
    ("The article's 10 epochs, ResNet-50, 224 px, fp32", "article", dict(px=224), "article", "features once, fp32"),
    ("The same, bf16 where its check passes", "article", dict(px=224), "article", "features once, bf16"),
    ("The article's 10 epochs, ResNet-50, 32 px, fp32", "article", dict(px=32), "article", "features once, fp32"),
    ("Head, 50,000 x 2,048 x 10, certified to 1e-8, against scikit-learn's lbfgs at its own stop", "head",
     dict(problem="50,000 x 2,048"), "scikit-learn lbfgs, its own stop", "ours, gap 1e-08"),
    ("Path of 20 values of l2, each certified to 1e-8, against 20 fits of scikit-learn", "path",
     {}, "scikit-learn", "our path"),
]  # fmt: skip


def table() -> str:
    lines = ["| what | times less CPU time | how |", "|---|---|---|"]
    for what, name, config, base, other in ROWS:
        r = latest(name, **config)
        if r and base in r["runs"] and other in r["runs"]:
            m, runs = r["machine"], len(r["runs"][base])
            how = f"{runs} paired run{'s' * (runs > 1)}, {m['threads']} thread{'s' * (m['threads'] > 1)}, {m['gpu'] or m['processor']}, torch {m['versions']['torch']}, `{m['revision']}`"
            lines.append(f"| {what} | {middle(ratios(r, base, other), 1)} | {how} |")
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
