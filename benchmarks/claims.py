"""README's claims, from the latest full records in results/. --write puts it into README.md, --check says if it is old."""

import json
import statistics
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
ARTICLE = "The usual program's 10 epochs, ResNet-50, {} px; features once and certified head, {}"
HEADS = {
    "Head, 50,000 x 2,048": "50,000 x 2,048",
    "Head, nearly separable, 50,000 x 2,048": "far apart, 50,000 x 2,048",
    "Head, nearly separable and large features, 50,000 x 2,048": "large features, 50,000 x 2,048",
}
PATHS = {
    "20 values of l2, 20,000 x 512; 20 fits of scikit-learn": "20,000 x 512",
    "20 values of l2, nearly separable, 20,000 x 512; 20 fits of scikit-learn": "far apart, 20,000 x 512",
}

# (what, benchmark, configuration, base, other, which seconds)
ROWS = [
    (f"{ARTICLE.format(px, dtype)}, {until}", "article", dict(px=px), "article", f"features once, {dtype}", key)
    for px in (224, 32)
    for dtype in ("fp32", "bf16")
    for until, key in (("to theta_fine", "fit_cpu_s"), ("evaluated too", "cpu_s"))
]
ROWS += [
    (f"{what}; {base}", "head", dict(problem=problem), base, OURS, "cpu_s")
    for what, problem in HEADS.items()
    for base in (LBFGS, TIGHT)
]
GAPS = {
    "classes that overlap, 20,000 x 512": "overlapping",
    "far apart, 20,000 x 512": "far apart",
    "more columns than rows, 1,000 x 2,048": "fewer rows than columns",
    "two classes, 20,000 x 512": "two classes",
    "EfficientNet-Lite0's features of photographs": "features of photographs.pt",
}
ROWS += [
    (
        f"Head, {what}, to {g}; scikit-learn lbfgs at the loosest setting that gets there",
        "gaps",
        dict(problem=problem),
        f"{g} | scikit-learn lbfgs",
        f"{g} | ours",
        "cpu_s",
    )
    for what, problem in GAPS.items()
    for g in ("1e-02", "1e-04", "1e-06")
]
FEATURES = {
    "ResNet-50, 4,096 pictures of 32 px": dict(network="resnet50", px=32, pictures=4096),
    "ResNet-50, 64 pictures of 224 px": dict(network="resnet50", px=224, pictures=64),
    "ResNet-50, 96 pictures of 224 px": dict(network="resnet50", px=224, pictures=96),
    "EfficientNet-B0, 128 pictures of 224 px": dict(network="efficientnet_b0"),
    "ConvNeXt-T, 256 pictures of 128 px": dict(network="convnext_tiny"),
    "ViT-B/16, 48 pictures of 224 px": dict(network="vit_b_16"),
}
ROWS += [
    (f"Features, {what}, `extract` for the first time; {rival}", "engines", config, base, "extract, fp32", "cpu_s")
    for what, config in FEATURES.items()
    for rival, base in (("a loop by hand", "eager"), ("ONNX Runtime", "ONNX Runtime, fp32"))
]
ROWS += [(what, "path", dict(problem=problem), "scikit-learn", "our path", "cpu_s") for what, problem in PATHS.items()]


def gap(run: dict) -> str:
    value = run.get("gap", run.get("worst_gap"))
    return "none" if value is None else f"{value:.0e}"


def table() -> str:
    lines = [
        "| what, against what | times less CPU time | gap certified: theirs, ours | how measured |",
        "|---|---|---|---|",
    ]
    for what, name, config, base, other, key in ROWS:
        r = latest(name, **config) or dict(runs={})
        base, other = (next((k for k in r["runs"] if k.startswith(start)), None) for start in (base, other))
        if base and other:
            m, runs = r["machine"], len(r["runs"][base])
            gaps = ", ".join(gap(r["runs"][k][-1]) for k in (base, other)) if name != "engines" else ""
            how = f"{runs} paired run{'s' * (runs > 1)}, {m['threads']} thread{'s' * (m['threads'] > 1)}, {m['gpu'] or m['processor']}"
            lines.append(f"| {what} | {middle(ratios(r, base, other, key), 1)} | {gaps} | {how} |")
    return "\n".join(lines)


def forecasts() -> str:
    "How far `sft_nb sweep --forecast` was off, from results/forecasts.jsonl."
    lines = (RESULTS / "forecasts.jsonl").read_text(encoding="utf-8").splitlines()
    off = {True: [], False: []}
    for r in map(json.loads, lines):
        off[r["fresh"]].append(abs(r["said"] / r["took"] - 1))
    at_once, old = (f"{statistics.median(off[fresh]):.0%}" for fresh in (True, False))
    return (
        f"`sft_nb sweep --forecast` held against what runs really took: off by {at_once} in the median of {len(off[True])} "
        f"runs that followed their forecast at once, by {old} in the median of {len(off[False])} old records of `results/`, "
        "made beside other work (`benchmarks/cost.py forecast`, [chapter 15](nbs/15_cost.ipynb))."
    )


def readme(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n\n{forecasts()}\n{END}{rest.partition(END)[2]}"


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
