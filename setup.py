"Everything here is read from settings.ini, so that names, versions and requirements are written once."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
EXTRAS = "dev", "text", "fast", "keras", "onnx", "tensorflow", "browser"

setup(
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
