"Everything here is read from settings.ini, so that names, versions and requirements are written once."

import json
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
EXTRAS = "dev", "text", "fast", "keras", "onnx", "tensorflow", "browser", "docs"


class WithTheBook(build_py):
    """A wheel also holds what `sft_nb book` copies: the notebooks, without their outputs, and the records they read."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # there they lie beside the package
        place = Path(self.build_lib) / cfg["lib_name"] / "notebooks"
        shutil.rmtree(place, ignore_errors=True)  # of an earlier build
        for name in (cfg["nbs_path"], "results"):
            shutil.copytree(here / name, place / name, ignore=shutil.ignore_patterns(".*"))
        for path in place.rglob("*.ipynb"):
            notebook = json.loads(path.read_text(encoding="utf-8"))
            for cell in notebook["cells"]:
                if "outputs" in cell:
                    cell["outputs"] = []
            path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")


setup(
    cmdclass=dict(build_py=WithTheBook),
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=cfg["author"],
    author_email=cfg["author_email"],
    keywords=cfg["keywords"],
    # Said aloud, because then an editable install is a line in the path and not an import hook: a hook comes last, and
    # in the folder above a clone that is called sft_nb, too, Python would find that folder first, as an empty package
    package_dir={"": "."},
    packages=find_packages(include=["sft_nb", "sft_nb.*"]),
    package_data={"sft_nb": ["weights/*.safetensors", "*.tsv", "sources/*.tsv"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in EXTRAS},
    entry_points={
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
        "console_scripts": ["sft_nb=sft_nb.cli:main"],
    },
    zip_safe=False,
)
