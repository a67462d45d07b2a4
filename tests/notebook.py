"Reading notebooks in tests: their cells, and the exercises with their solutions."

import ast
import json
import re
from dataclasses import dataclass

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"), key=lambda p: p.stem.split("_"))  # Z before ZA

CHINESE = sorted((ROOT / "nbs" / "zh").glob("*.ipynb"))


def called(path):
    "02_freezing, or zh/00_tour: what to call it in the name of a test."
    return path.relative_to(ROOT / "nbs").with_suffix("").as_posix()


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def code_cells(nb):
    return [source(c) for c in nb["cells"] if c["cell_type"] == "code"]


def is_imports(code):
    "A cell that holds imports and calls of style() alone."
    body = ast.parse(code).body
    return bool(body) and all(isinstance(n, ast.Import | ast.ImportFrom) for n in body)


@dataclass
class Exercise:
    number: int
    starter: str
    check: str
    solution: str


def exercises(nb):
    "The exercises of a notebook, by number: starter, check and the folded solution."
    code = code_cells(nb)
    starters = {int(m[1]): c for c in code if (m := re.match(r"# exercise (\d+): your turn", c))}
    checks = {int(m[1]): c for c in code if (m := re.match(r"# check (\d+)", c))}
    text = "\n".join(source(c) for c in nb["cells"] if c["cell_type"] == "markdown")
    folded = re.findall(r"<details>\s*<summary>Solution (\d+)</summary>(.*?)</details>", text, re.S)
    solutions = {int(n): "\n".join(re.findall(r"```python\n(.*?)```", body, re.S)) for n, body in folded}
    assert starters.keys() == checks.keys() == solutions.keys(), (
        f"starters {sorted(starters)}, checks {sorted(checks)} and solutions {sorted(solutions)} do not match"
    )
    return [Exercise(n, starters[n], checks[n], solutions[n]) for n in sorted(starters)]


def run(code, names):
    "Run a cell in `names`; the value of its last expression."
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if last else None
