"""What a chapter takes on this machine, run as a reader runs it: jupyter nbconvert --execute, one notebook at a time.

python benchmarks/minutes.py [--folder FOLDER] [NAME ...]     FOLDER is a copy of the book: sft_nb book FOLDER

CPU and wall seconds with the start of its kernel, and the largest memory of one process, are appended to
results/minutes.jsonl; `tests/write_teaching.py` writes the teachers' table from it. The cache is an empty one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import RESULTS, machine


def executed(path: Path, where: str) -> dict:
    "The figures of one run, and whether it came to its end."
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", where, path.name]
    with open(Path(where) / "said", "w+", encoding="utf-8") as said:
        start = time.perf_counter()
        p = subprocess.Popen(
            command, cwd=path.parent, env=os.environ | dict(SFT_NB_CACHE=where), stdout=said, stderr=said
        )
        _, status, used = os.wait4(p.pid, 0)  # with the kernel, for which nbconvert has waited
        wall = time.perf_counter() - start
        said.seek(0)
        complaint = said.read() if status else ""
    cpu = used.ru_utime + used.ru_stime
    figures = dict(cpu_s=round(cpu, 1), wall_s=round(wall, 1), peak_mb=round(used.ru_maxrss / 1024))
    return dict(chapter=path.stem, ended=status == 0, **figures, **(dict(complaint=complaint[-500:]) if status else {}))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", help="all chapters, if none is named")
    p.add_argument("--folder", default="nbs")
    args = p.parse_args()
    paths = sorted(Path(args.folder).resolve().glob("*.ipynb"), key=lambda q: q.stem.split("_"))
    for path in [q for q in paths if not args.names or q.stem in args.names]:
        with tempfile.TemporaryDirectory() as where:
            record = executed(path, where) | dict(when=time.strftime("%Y-%m-%d"), machine=machine("cpu"))
        said = f"{record['cpu_s']} s CPU, {record['peak_mb']} MB" if record["ended"] else record["complaint"]
        print(f"{path.stem}: {said}", flush=True)
        with open(RESULTS / "minutes.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
