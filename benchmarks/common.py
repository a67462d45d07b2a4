"""What every benchmark shares: paired runs in one process, a record of all of them, a table.

The subjects of a benchmark take turns (A B C, A B C, ...), so that a machine that slows down slows them all. CPU time is
the figure to quote; wall time stands beside it. Every repeat is appended to results/NAME.jsonl with the configuration,
the versions, the processor and the revision of the code.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import scipy
import sklearn
import torch

from sft_nb.records import grid

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


def arguments(doc: str, **extra) -> argparse.Namespace:
    "--quick, --repeats, --threads, --device, and a benchmark's own options (name=default; False makes a switch)."
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="a small version, a minute at most; its record is marked so")
    p.add_argument("--repeats", type=int, default=3, help="how often every subject runs")
    p.add_argument("--threads", type=int, default=1, help="torch's threads")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, default in extra.items():
        kind = dict(action="store_true") if default is False else dict(type=type(default), default=default)
        p.add_argument(f"--{name.replace('_', '-')}", **kind)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    return args


def of_each(rates: dict[str, tuple[float, ...]], **axes) -> list:
    "The experiments of `grid` for every strategy, each with its own learning rates."
    return [c for strategy, lrs in rates.items() for c in grid(strategy=strategy, lrs=lrs, **axes)]


def processor() -> str:
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        return f"{names[0]} x {len(names)}" if names else platform.processor()
    return platform.processor()


def revision() -> str:
    "The commit, with a + where the tree differs from it."
    git = lambda *a: subprocess.run(["git", *a], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return git("rev-parse", "--short", "HEAD") + (
        "+" if git("status", "--porcelain", "--", "sft_nb", "benchmarks") else ""
    )


def machine(device: str) -> dict:
    versions = dict(python=platform.python_version(), torch=torch.__version__, numpy=numpy.__version__)
    versions |= dict(scipy=scipy.__version__, sklearn=sklearn.__version__)
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return dict(processor=processor(), gpu=gpu, threads=torch.get_num_threads(), versions=versions, revision=revision())


def timed(f: Callable[[], dict], device: str) -> dict:
    "f's own figures with its CPU and wall seconds."
    sync = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    sync()
    cpu, wall = time.process_time(), time.perf_counter()
    out = f()
    sync()
    return dict(out, cpu_s=time.process_time() - cpu, wall_s=time.perf_counter() - wall)


def peak_bytes(f: Callable[[], object]) -> int:
    "Peak resident memory during f above the start, sampled every 2 ms (Linux), since a high-water mark cannot be reset."
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    start, peak, done = resident(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        f()
    finally:
        done.set()
        watcher.join()
    return max(0, peak - start)


def paired(
    name: str,
    config: dict,
    subjects: dict[str, Callable[[], dict]],  # Each returns its own figures
    repeats: int,
    device: str,
    judge: Callable[[str, int], dict] | None = None,  # (subject, repeat) -> more figures, outside the timing
    keep: bool = True,  # False in every process but one
) -> dict:
    "Run every subject `repeats` times in turn; append all of it to results/NAME.jsonl and return it."
    runs = {s: [] for s in subjects}
    for r in range(repeats):
        for s, f in subjects.items():
            runs[s].append(timed(f, device))
            if judge is not None:
                runs[s][-1] |= judge(s, r)
            print(
                f"  {r + 1}/{repeats} {s}: {runs[s][-1]['cpu_s']:.2f} s CPU, {runs[s][-1]['wall_s']:.2f} s wall",
                flush=True,
            )
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = dict(benchmark=name, when=when, config=config, machine=machine(device), runs=runs)
    if keep:
        RESULTS.mkdir(exist_ok=True)
        with open(RESULTS / f"{name}.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")
            f.flush()
            os.fsync(f.fileno())
    return record


def ratios(record: dict, base: str, other: str, key: str = "cpu_s") -> list[float]:
    "base / other, pair by pair."
    return [a[key] / b[key] for a, b in zip(record["runs"][base], record["runs"][other], strict=True)]


def middle(xs: list[float], digits: int = 2) -> str:
    "median (min to max)"
    if len(xs) == 1:
        return f"{xs[0]:.{digits}f}"
    return f"{statistics.median(xs):.{digits}f} ({min(xs):.{digits}f} to {max(xs):.{digits}f})"


def show(record: dict, base: str, columns: dict[str, Callable[[dict], object]]) -> None:
    "A table: CPU and wall seconds, the paired ratio against `base`, and the benchmark's own columns."
    print(f"\n{record['benchmark']}: {json.dumps(record['config'])}")
    print("\t".join(["", "CPU s", "wall s", f"{base} / this (CPU)", *columns]))
    for s, runs in record["runs"].items():
        cells = [
            middle([r["cpu_s"] for r in runs]),
            middle([r["wall_s"] for r in runs]),
            middle(ratios(record, base, s), 1),
        ]
        print("\t".join([s, *cells, *(str(f(runs[-1])) for f in columns.values())]))
