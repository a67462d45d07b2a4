"Every test runs offline, on one thread, on the pocket world."

import runpy
import signal
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parent.parent
runpy.run_path(str(ROOT / "tests" / "offline" / "sitecustomize.py"))  # the network is refused from here on
sys.path.insert(0, str(ROOT / "tests"))
matplotlib.use("agg")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is to run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # programs that tests start would be deaf to it, too

import torch  # noqa: E402

import sft_nb  # noqa: E402, F401  (before torchvision)

torch.set_num_threads(1)


def pytest_configure(config):
    for marker in (
        "slow: minutes, not seconds",
        "gpu: needs a GPU",
        "net: needs a network",
        "browser: needs a browser",
        "tools: needs TensorFlow and ONNX",
    ):
        config.addinivalue_line("markers", marker)
    for rule in (
        r"error:::sft_nb(\..*)?$",  # what a library says to our own code is mended, not read past
        r"default::UserWarning:sft_nb\.cli$",  # the command line passes on what is said to its reader
        "ignore:torchvision was built for another torch",  # ours, of such a machine
    ):
        config.addinivalue_line("filterwarnings", rule)


def pytest_collection_modifyitems(config, items):
    if config.getoption("-m"):
        return
    for item in items:
        for marker in ("slow", "gpu", "net", "browser", "tools"):
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"run with -m {marker}"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
