"The torchvision hook: it mends the one broken pair, and leaves every other import alone."

import subprocess
import sys
import textwrap

import pytest

PACKAGE = "sft_nb"


def run(code, path):
    code = (
        f"import sys, warnings; sys.path.insert(0, {str(path)!r})\nwarnings.simplefilter('always')\n"
        + textwrap.dedent(code)
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture
def fake(tmp_path):
    "Write a torchvision of our own into a folder that comes first on the path."

    def write(source):
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(textwrap.dedent(source))
        (tmp_path / "torchvision" / "part.py").write_text("loaded = True\n")
        return tmp_path

    return write


BROKEN = """
    import torch
    from torchvision import part
    if not hasattr(torch.ops.torchvision, "nms"):
        raise RuntimeError("operator torchvision::nms does not exist")
    tries = globals().get("tries", 0) + 1
    """


def test_a_healthy_torchvision_stays_untouched(fake):
    done = run(
        """
        import sft_nb, torchvision, torch
        assert torchvision.fine == 1
        assert not hasattr(torch.ops.torchvision, "nms"), "operators were declared for a healthy torchvision"
        assert not hasattr(torchvision, "_sft_nb_operators")
        """,
        fake("fine = 1\n"),
    )
    assert done.returncode == 0, done.stderr
    assert "UserWarning" not in done.stderr


def test_the_broken_pair_is_mended_and_says_so_once(fake):
    done = run(
        """
        import sft_nb, torch, torchvision
        import torchvision as again
        assert torchvision.part.loaded and again is torchvision
        try:
            torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        except RuntimeError as e:
            assert "compiled operators are not available" in str(e), e
        else:
            raise AssertionError("nms ran")
        """,
        fake(BROKEN),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("torchvision was built for another torch") == 1


@pytest.mark.parametrize(
    "error", ["RuntimeError('operator torchvision::roi_align does not exist')", "ImportError('broken')"]
)
def test_any_other_error_goes_through(fake, error):
    done = run("import sft_nb, torchvision", fake(f"raise {error}\n"))
    assert done.returncode != 0 and error.split("(")[0] in done.stderr
    assert "built for another torch" not in done.stderr


def test_the_real_one_works():
    code = "import sft_nb, torch; from torchvision.models import resnet18; print(resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "torch.Size([1, 1000])" in done.stdout, done.stderr


def test_importing_the_package_does_not_import_torch():
    done = subprocess.run(
        [sys.executable, "-c", "import sft_nb, sys; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
