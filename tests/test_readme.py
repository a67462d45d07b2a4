"What the README says is so."

import base64
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from notebook import NOTEBOOKS, load

from sft_nb.cli import _parser, main

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_picture_is_the_tours_last():
    outputs = [o for c in load(ROOT / "nbs" / "00_tour.ipynb")["cells"] for o in c.get("outputs", [])]
    pngs = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert base64.b64decode("".join(pngs[-1])) == (ROOT / "nbs" / "images" / "tour.png").read_bytes()


def test_its_map_has_every_chapter():
    for path in NOTEBOOKS:
        assert path.stem == "index" or f"(nbs/{path.name})" in README, f"{path.name} is not on the map"


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_its_ten_lines_run(capsys):
    code = next(c for c in re.findall(r"```python\n(.*?)```", README, re.S) if "solve_head" in c)
    exec(code, {})
    accuracy, gap = re.match(r"([\d.]+) certified to ([\d.e-]+)", capsys.readouterr().out).groups()
    assert float(accuracy) > 0.4 and float(gap) <= 1e-8


def test_its_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"


def test_its_table_of_our_records_pools_only_what_is_alike(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = next(line for line in README.splitlines() if line.startswith("sft_nb table results/"))
    assert main([*line.split("#")[0].split()[1:], "--format", "json"]) == 0
    said = capsys.readouterr()
    rows = [json.loads(row) for row in said.out.splitlines()]
    assert len(rows) > 20 and len({row["n"] for row in rows}) == 1 and said.err == ""


def test_its_command_line_is_understood_as_it_stands():
    section = README.split("## The command line")[1].split("```")[1]
    for line in section.splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["sft_nb"] and words[1] != "table":
            _parser(words[1]).parse_args(words[1:])
        if words[:1] == ["torchrun"]:
            after = words[words.index("sft_nb.cli") + 1 :]
            _parser(after[0]).parse_args(after)


def test_its_claims_are_those_of_the_records():
    pytest.importorskip("sklearn")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "claims.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
