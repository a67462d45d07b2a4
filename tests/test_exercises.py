"Every exercise's check rejects the starter and accepts the folded solution."

import re

import matplotlib.pyplot as plt
import pytest
from notebook import NOTEBOOKS, code_cells, exercises, is_imports, load, run

CHAPTERS = [p for p in NOTEBOOKS if p.stem != "index"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_exercises(path):
    nb = load(path)
    found = exercises(nb)
    assert 3 <= len(found) <= 5, f"{len(found)} exercises"
    names = {"__name__": "__main__"}
    module = re.search(r"#\| default_exp ([\w.]+)", "\n".join(code_cells(nb)))
    if module:
        exec(f"from sft_nb.{module[1]} import *", names)
    for code in code_cells(nb):
        if is_imports(code):
            exec(code, names)
    for e in found:
        run(e.starter, names)
        verdict = run(e.check, names)
        assert verdict.ok is False, f"check {e.number} accepts its starter"
        run(e.solution, names)
        verdict = run(e.check, names)
        assert verdict.ok is True, f"check {e.number} rejects its solution: {verdict}"
    plt.close("all")
