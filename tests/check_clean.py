"""Is the tree as its notebooks make it? Exported, clean, formatted, nothing left behind. Changes nothing.

The work is done on a copy, so that a failed check leaves the tree as it was.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def tracked() -> list[Path]:
    out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(n) for n in out.split("\0") if n and (ROOT / n).exists()]


def stale(files: list[Path]) -> list[str]:
    "Files that nbdev_export or nbdev_clean would write otherwise."
    with tempfile.TemporaryDirectory() as d:
        for f in files:
            (Path(d) / f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / f, Path(d) / f)
        for tool in ("nbdev_export", "nbdev_clean"):
            subprocess.run([shutil.which(tool, path=str(BIN))], cwd=d, check=True)
        now = {p.relative_to(d) for p in Path(d).rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        wrong = [
            f"{f}: not what its notebook exports, or not clean"
            for f in files
            if (Path(d) / f).read_bytes() != (ROOT / f).read_bytes()
        ]
        return wrong + [f"{f}: exported but not committed" for f in sorted(now - set(files))]


def orphans() -> list[str]:
    "Modules without a notebook."
    nbs = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "nbs").glob("*.ipynb"))
    made = {"__init__", "_modidx", "sources.__init__", *re.findall(r"#\| default_exp ([\w.]+)", nbs)}
    there = {p: ".".join(p.relative_to(ROOT / "sft_nb").with_suffix("").parts) for p in (ROOT / "sft_nb").rglob("*.py")}
    return [f"{p.relative_to(ROOT)}: no notebook exports it" for p, module in there.items() if module not in made]


def unformatted() -> list[str]:
    ruff = shutil.which("ruff", path=str(BIN))
    runs = [
        subprocess.run([ruff, *a, "."], cwd=ROOT, capture_output=True, text=True)
        for a in (["format", "--check"], ["check"])
    ]
    return [r.stdout.strip() for r in runs if r.returncode]


def left_behind() -> list[str]:
    out = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [f"{line[3:]}: not committed" for line in out.splitlines()]


if __name__ == "__main__":
    problems = stale(tracked()) + orphans() + unformatted() + left_behind()
    print("\n".join(problems) or "exported, clean, formatted, nothing left behind")
    sys.exit(bool(problems))
