"What an installation brings: the right package from every folder, what the notebooks import, and no half of an environment."

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT
from notebook import NOTEBOOKS, code_cells, load

needs_make = pytest.mark.skipif(os.name == "nt" or not shutil.which("make"), reason="needs make and sh")
PROVIDES = {"PIL": "pillow", "sklearn": "scikit-learn", "cycler": "matplotlib", "IPython": "ipywidgets"}
OPTIONAL = {
    "pillow_heif",
    "onnxruntime",
    "openvino",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "peft",
    "soundfile",
    "keras",
}  # used where it is installed, and not missed where it is not


def settings():
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def imported(code):
    "The packages that a cell imports, the standard library's and ours left out."
    for node in ast.walk(ast.parse(code)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        yield from {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - {"sft_nb"}


def test_a_plain_installation_brings_whatever_a_notebook_imports():
    wanted = {p for nb in NOTEBOOKS for c in code_cells(load(nb)) for p in imported(c)}
    brought = {re.split(r"[<>=]", word)[0] for word in settings()["requirements"].split()}
    assert "fastcore" in wanted and {PROVIDES.get(p, p) for p in wanted - OPTIONAL} <= brought


def test_every_requirement_is_pinned():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    names = "dev", "onnx", "tensorflow", "browser", "docs"
    for word in " ".join(settings()[k] for k in ("requirements", *(f"{name}_requirements" for name in names))).split():
        assert re.search(rf"^{re.split(r'[<>=]', word)[0]}==", text, re.M), word


def test_from_the_folder_above_a_clone_the_package_is_found_and_not_the_folder(tmp_path):
    clone, site = tmp_path / "sft_nb", tmp_path / "site"
    shutil.copytree(ROOT / "sft_nb", clone / "sft_nb", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    for name in ("setup.py", "settings.ini", "README.md"):
        shutil.copy(ROOT / name, clone / name)
    site.mkdir()
    build = f"from setuptools import build_meta; print(build_meta.build_editable({str(tmp_path)!r}))"
    made = subprocess.run([sys.executable, "-c", build], cwd=clone, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(site)
    # -S: without what else is installed here, only the folder that one stands in and this installation
    ask = f"import site; site.addsitedir({str(site)!r}); import sft_nb; print(sft_nb.__version__, sft_nb.__file__)"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for place in (tmp_path, clone, site):
        done = subprocess.run([sys.executable, "-S", "-c", ask], cwd=place, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [settings()["version"], str(clone / "sft_nb" / "__init__.py")], place


def test_a_wheel_holds_every_module_and_the_weights_and_the_book(tmp_path):
    "The files of the worlds too, and what they load; the notebooks and the records, at most 12 MB in all."
    clone = tmp_path / "clone"
    for name in ("sft_nb", "nbs", "results"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("setup.py", "settings.ini", "README.md"):
        shutil.copy(ROOT / name, clone / name)
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    made = subprocess.run([sys.executable, "-c", build], cwd=clone, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 12e6
    held = zipfile.ZipFile(wheel)
    packed = {n for n in held.namelist() if n.startswith("sft_nb/")}
    files = [p for p in (ROOT / "sft_nb").rglob("*") if p.suffix in (".py", ".safetensors", ".tsv")]
    book = {n for n in packed if n.startswith("sft_nb/notebooks/")}
    assert packed - book == {p.relative_to(ROOT).as_posix() for p in files} and "sft_nb/sources/pocket.py" in packed
    there = [p for name in ("nbs", "results") for p in (ROOT / name).rglob("*") if p.is_file()]
    assert book == {
        f"sft_nb/notebooks/{p.relative_to(ROOT).as_posix()}"
        for p in there
        if "/." not in p.relative_to(ROOT).as_posix()
    }
    assert not any(c.get("outputs") for n in book if n.endswith("ipynb") for c in json.loads(held.read(n))["cells"])


@pytest.fixture
def made(tmp_path):
    "`make` an environment with a Python of another version, or one whose pip fails."

    def run(version, env=tmp_path / "env"):
        fake = tmp_path / "python"
        fake.write_text(
            f"""#!/bin/sh
            if [ "$1" = -c ]; then exec {sys.executable} -c "import sys; sys.version_info = {version}; $2"; fi
            mkdir -p $3/bin; printf '#!/bin/sh\\nexit 1\\n' > $3/bin/python; chmod +x $3/bin/python
            """
        )
        fake.chmod(0o700)
        words = ["make", "-C", str(ROOT), f"PYTHON={fake}", f"VENV={env}", f"{env}/built"]
        return subprocess.run(words, capture_output=True, text=True), env

    return run


@needs_make
@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 14), (4, 0)])
def test_another_python_is_told_in_a_sentence_and_leaves_nothing(made, version):
    done, env = made((*version, 1))
    assert done.returncode != 0 and not env.exists() and "Installing" not in done.stdout
    assert "needs Python 3.10 to 3.13, and" in done.stderr and f"is {version[0]}.{version[1]}: name" in done.stderr


@needs_make
@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_what_is_to_come_is_told_first_and_half_an_environment_is_taken_away(made, version, tmp_path):
    done, env = made((*version, 1))
    assert done.returncode != 0 and "GB on the disk" in done.stdout and not env.exists()
    mine = tmp_path / "mine"  # one that was there before is not ours to delete
    (mine / "bin").mkdir(parents=True)
    (mine / "precious").write_text("x")
    done, env = made((*version, 1), mine)
    assert done.returncode != 0 and (mine / "precious").exists() and not (mine / "built").exists()
