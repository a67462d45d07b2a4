"""Run every notebook with nbdev_test: offline, within a time limit, and counted.

nbdev_test has no time limit, and a pattern that matches nothing passes; both are mended here.
Usage: python tests/run_notebooks.py [NAME ...]      for example: python tests/run_notebooks.py 02_freezing zh/23_faq
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "nbs"
# Left out unless named: its code is that of the English one, cell by cell, as tests/test_chinese.py proves
PROVEN = {"zh/00_tour"}
LIMIT = int(os.environ.get("NOTEBOOK_LIMIT", 1500))  # seconds for all of one folder


def environment() -> dict[str, str]:
    "One thread for each worker, no display, and tests/offline in front, which refuses the network."
    path = os.pathsep.join([str(ROOT / "tests" / "offline"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    threads = dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", MPLBACKEND="agg", PYTHONIOENCODING="utf-8")
    return os.environ | threads | dict(PYTHONPATH=path)


def called(path: Path) -> str:
    "02_freezing, or zh/23_faq in a sub-folder."
    return path.relative_to(BOOK).with_suffix("").as_posix()


def notebooks(names: list[str]) -> list[Path]:
    every = {called(p): p for p in sorted(BOOK.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts}
    if unknown := set(names) - every.keys():
        sys.exit(f"no such notebook: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    return [p for name, p in every.items() if name in (names or every.keys() - PROVEN)]


def run(command: list[str], limit: int) -> tuple[int, str]:
    "Exit status and output; a run over the limit is killed with all its workers."
    kwargs = {} if os.name == "nt" else dict(start_new_session=True)
    p = subprocess.Popen(
        command, cwd=ROOT, env=environment(), text=True, encoding="utf-8", errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs,
    )  # fmt: skip
    try:
        return (p.returncode, out) if (out := p.communicate(timeout=limit)[0]) is not None else (1, "")
    except subprocess.TimeoutExpired:
        p.kill() if os.name == "nt" else os.killpg(p.pid, 9)
        return 124, p.communicate()[0] + f"\nstopped: the notebooks ran longer than {limit} s"


def tested(folder: Path, wanted: list[Path]) -> tuple[int, str]:
    "Status and output of nbdev_test for these notebooks of one folder; it does not look into those below."
    tool = shutil.which("nbdev_test", path=str(Path(sys.executable).parent))
    only = ["--path", str(folder), "--file_re", f"^({'|'.join(re.escape(p.stem) for p in wanted)})\\.ipynb$"]
    return run([tool, "--do_print", "--timing", "--n_workers", "0" if len(wanted) == 1 else "2", *only], LIMIT)


def main(names: list[str]) -> int:
    wanted, status, out = notebooks(names), 0, ""
    for folder in sorted({p.parent for p in wanted}):
        failed, said = tested(folder, [p for p in wanted if p.parent == folder])
        status, out = status or failed, out + said
    print(out)
    done = re.findall(r"- Completed (\S+\.ipynb)", out)
    missing = [called(p) for p in wanted if str(p) not in done]
    if missing:
        print(f"{len(missing)} of {len(wanted)} notebooks did not run to their end: {', '.join(missing)}")
    else:
        print(f"{len(wanted)} notebooks ran" + (", at least one failed" if status else ""))
    return status or bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
