"The house: which module may import which. Read from the source, so that a wrong import cannot hide."

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

FLOORS = {
    0: ["core"],  # needs nothing of ours
    1: ["processes", "objective", "world", "store", "ways", "countries", "pieces", "book"],
    2: ["zoo", "fetch", "engines"],
    3: ["data", "freezing", "plots", "distributed"],
    4: ["models", "albums", "identity", "solver", "texts", "sounds"],
    5: [
        "sources.lite",
        "sources.pocket",
        "sources.vision",
        "sources.counts",
        "sources.corpora",
        "sources.speech",
        "sources.spoken",
        "sources.resemblyzer",
        "sequences",
        "synthesis",
        "features",
        "training",
        "evaluation",
        "peft",
    ],
    6: ["probing", "cache", "blocks", "deltas", "exports", "sources.clothing", "tagging", "adapters", "language"],
    7: ["maps", "starts", "sources.text", "sources.sentences", "sources.language"],
    8: ["strategies", "transferability", "understanding", "sources.smollm", "sources.causal"],
    9: ["resume", "rates", "records", "choosing", "landscape", "cost"],
    10: ["experiments", "tables"],
    11: ["sweeps"],
    12: ["widgets", "sessions", "cli"],
    13: ["controls", "panels"],
    14: ["dashboard", "pictures"],
    15: ["own_texts", "own_sounds"],
}
VIEWS = {"widgets", "controls", "dashboard", "pictures", "own_texts", "own_sounds", "panels"}  # what knows ipywidgets
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
OPTIONAL = {
    "sources.vision": {"pillow_heif"},
    "sounds": {"soundfile"},
    "ways": {"onnxruntime", "openvino"},
    "sources.text": {"transformers", "tokenizers", "huggingface_hub"},
    "sources.causal": {"tokenizers"},
    "exports": {"keras"},
}  # taken where it is installed, and never needed
PATHS = {".".join(p.relative_to(ROOT / "sft_nb").with_suffix("").parts): p for p in (ROOT / "sft_nb").rglob("*.py")}
MODULES = sorted(m for m in PATHS if m.split(".")[-1] not in ("__init__", "_modidx"))
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
    for node in ast.walk(ast.parse(PATHS[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((a.name, []) for a in node.names)
        if isinstance(node, ast.ImportFrom):
            name = node.module or ""
            home = ["sft_nb", *module.split(".")][: -node.level] if node.level else []
            yield ".".join([*home, *filter(None, [name])]), [a.name for a in node.names]


def ours(module):
    for name, names in imports(module):
        if name in ("sft_nb", "sft_nb.sources"):
            yield from (f"{name}.{n}".removeprefix("sft_nb.") for n in names)
        elif name.startswith("sft_nb."):
            yield name.removeprefix("sft_nb.")


def test_every_module_has_a_floor():
    assert set(MODULES) <= set(FLOOR), "a module without a floor"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_read_in_one_sitting(module):
    "One idea takes at most 350 lines; what is longer holds two."
    assert len(PATHS[module].read_text(encoding="utf-8").splitlines()) <= 350


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


def test_worlds_are_found_by_their_files_and_named_by_no_room():
    "Whoever needs a world asks `zoo`; the pages for pictures and for texts of one's own alone ask whether weights are here."
    named = {m for m in MODULES for other in ours(m) if other.startswith("sources.") and not m.startswith("sources.")}
    assert named <= {"pictures", "own_texts", "panels"}


def test_nothing_unpickles_freely():
    "No bare torch.load and no pickle.load(s) call anywhere in the package."
    for module in MODULES:
        for node in ast.walk(ast.parse(PATHS[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                call = ast.unparse(node.func)
                assert call not in ("pickle.load", "pickle.loads"), f"{module}: {call}"
                if call == "torch.load":
                    safe = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                    assert safe.get("weights_only") is True, f"{module}: torch.load without weights_only=True"


def test_every_public_name_is_documented():
    for module in MODULES:
        for node in ast.parse(PATHS[module].read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"
