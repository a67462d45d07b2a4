"The house: which module may import which. Read from the source, so that a wrong import cannot hide."

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

FLOORS = {
    -1: ["core"],  # the cellar: what needs nothing of ours
    0: ["processes", "objective", "world", "store"],
    1: ["data", "freezing", "plots", "distributed"],
    2: ["models", "identity", "solver"],
    3: ["features", "training", "evaluation", "peft"],
    4: ["probing", "cache"],
    3.5: ["blocks"],
    4.5: ["starts"],
    5: ["strategies", "transferability", "understanding"],
    5.5: ["resume", "rates"],
    5.7: ["records"],
    6: ["experiments", "tables"],
    6.5: ["sweeps"],
    7: ["widgets", "sessions", "cli"],
    8: ["dashboard", "pictures"],
}
VIEWS = {"widgets", "dashboard", "pictures"}  # what knows ipywidgets
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
OPTIONAL = {"data": {"pillow_heif"}}  # taken where it is installed, and never needed
MODULES = sorted(p.stem for p in (ROOT / "sft_nb").glob("*.py") if p.stem not in ("__init__", "_modidx"))
RUNTIME = {
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "matplotlib",
    "cycler",
    "safetensors",
    "filelock",
    "sklearn",
    "PIL",
    "tqdm",
    "sft_nb",
}


def imports(module):
    "Every import statement of a module, wherever it stands: (module, names)."
    for node in ast.walk(ast.parse((ROOT / "sft_nb" / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((a.name, []) for a in node.names)
        if isinstance(node, ast.ImportFrom):
            name = node.module or ""
            yield (f"sft_nb.{name}".rstrip(".") if node.level else name), [a.name for a in node.names]


def ours(module):
    for name, names in imports(module):
        if name == "sft_nb":
            yield from names
        elif name.startswith("sft_nb."):
            yield name.split(".")[1]


def test_every_module_has_a_floor():
    assert set(MODULES) <= set(FLOOR), "a module without a floor"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    for other in ours(module):
        assert FLOOR[other] < FLOOR[module], f"{module} (floor {FLOOR[module]}) imports {other} (floor {FLOOR[other]})"


@pytest.mark.parametrize("module", MODULES)
def test_no_star_imports_and_only_declared_packages(module):
    allowed = RUNTIME | ({"ipywidgets", "IPython"} if module in VIEWS else set()) | OPTIONAL.get(module, set())
    for name, names in imports(module):
        assert "*" not in names, f"{module} imports * from {name}"
        top = name.split(".")[0]
        assert top in allowed or top in sys.stdlib_module_names, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_plots_stay_out_of_all_rooms_but_the_view(module):
    assert module in VIEWS or "plots" not in set(ours(module))


def test_import_needs_no_jupyter():
    "With ipywidgets, nbdev, fastcore and IPython made unimportable, every module still imports."
    code = "import sys\nfor m in ('ipywidgets', 'nbdev', 'fastcore', 'IPython', 'jupyterlab'): sys.modules[m] = None\n"
    code += "\n".join(f"import sft_nb.{m}" for m in MODULES)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_nothing_unpickles_freely():
    "No bare torch.load and no pickle.load(s) call anywhere in the package."
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / "sft_nb" / f"{module}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                call = ast.unparse(node.func)
                assert call not in ("pickle.load", "pickle.loads"), f"{module}: {call}"
                if call == "torch.load":
                    safe = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                    assert safe.get("weights_only") is True, f"{module}: torch.load without weights_only=True"


def test_every_public_name_is_documented():
    for module in MODULES:
        for node in ast.parse((ROOT / "sft_nb" / f"{module}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"
