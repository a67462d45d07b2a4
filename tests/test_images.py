"Appendix ZE: its stand-in files are what torchvision publishes, and its switch says what is missing."

import tarfile

import pytest
import torch
import torchvision
from conftest import ROOT
from notebook import load, source
from torchvision.datasets import CIFAR10
from torchvision.models import ResNet50_Weights

CELLS = {c["id"]: source(c) for c in load(ROOT / "nbs" / "ZE_full_size.ipynb")["cells"] if c["cell_type"] == "code"}
STAND_INS, FILES = ["17a00003", "17a00004", "17a00006", "17a00008", "17a00010", "17a00011"], "17a00013"


@pytest.fixture
def begun(tmp_path, monkeypatch):
    "The chapter up to its files, with the switch in a position; whatever it sets outside itself is put back."
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(ResNet50_Weights.DEFAULT.value, "url", ResNet50_Weights.DEFAULT.url)
    monkeypatch.setenv("SFT_NB_MIRROR", "")
    monkeypatch.chdir(tmp_path)
    names = {}

    def begin(full):
        for cell in STAND_INS:
            exec(CELLS[cell].replace("FULL = False", f"FULL = {full}"), names)
        return names

    yield begin
    names["folder"].cleanup()


def test_torchvision_reads_the_stand_ins(begun, tmp_path):
    names = begun(full=False)
    exec(CELLS[FILES], names)
    theirs = torchvision.models.resnet50(weights=ResNet50_Weights.DEFAULT).state_dict()  # checks the hash
    ours = names["theta_pre"]
    assert {n for n in theirs if not n.startswith("fc.")} == ours.keys()
    assert all(torch.equal(theirs[n], t) for n, t in ours.items())
    with tarfile.open(names["root"] / CIFAR10.filename) as tar:
        safe = dict(filter="data") if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and later have it
        tar.extractall(tmp_path / "unpacked", **safe)
    ds = names["official"](tmp_path / "unpacked", train=False)  # checks every file's hash
    x, y = torch.from_numpy(ds.data).permute(0, 3, 1, 2), torch.tensor(ds.targets)
    assert torch.equal(x, names["task"].test.x) and torch.equal(y, names["task"].test.y)
    assert tuple(ds.classes) == names["task"].classes


def test_with_the_switch_on_it_takes_the_published_files_or_says_what_to_do(begun, tmp_path):
    names = begun(full=True)
    assert names["official"] is CIFAR10
    with pytest.raises(OSError, match=r"resnet50-11ad3fa6\.pth could not be downloaded") as e:
        exec(CELLS[FILES], names)
    assert str(tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth") in str(e.value)
    assert not [p for p in (tmp_path / "hub").rglob("*") if p.is_file()]
