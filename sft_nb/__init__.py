__version__ = "0.1.0"

# torchvision from PyPI is compiled against a CUDA torch. Beside a CPU-only torch its operators cannot load, and
# `import torchvision` dies with the message below. Models, transforms and datasets need none of those operators, so
# when, and only when, that very message appears, we declare the two that are looked up at import and import again.
import importlib.machinery
import sys
import warnings

_MESSAGE = "operator torchvision::nms does not exist"
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _missing(*args):
    raise RuntimeError(
        "torchvision's compiled operators are not available: this torch and this torchvision were built for "
        "different devices. Install both from one index to use nms and the detection models."
    )


def _declare_operators():
    "Declare nms and qnms; the returned libraries must stay alive as long as torch does."
    from torch.library import Library

    lib = Library("torchvision", "DEF")
    for name, schema in _SCHEMAS.items():
        lib.define(schema)
        for key in ("CPU", "CUDA"):
            lib.impl(name, _missing, key)
    return lib


class _Loader:
    "torchvision's own loader, with a second try after declaring the operators."

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        try:
            self.loader.exec_module(module)
        except RuntimeError as e:
            if str(e) != _MESSAGE:
                raise
            for name in [n for n in sys.modules if n.startswith("torchvision.")]:
                del sys.modules[name]
            module._sft_nb_operators = _declare_operators()
            self.loader.exec_module(module)
            warnings.warn(
                "torchvision was built for another torch: its compiled operators (nms, image decoding) are off; "
                "models, transforms and datasets work.",
                stacklevel=2,
            )


class _Finder:
    "Hands torchvision's spec on with our loader around its own; finds nothing else."

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if "torchvision" not in sys.modules and not any(getattr(f, "__name__", "") == "_Finder" for f in sys.meta_path):
    sys.meta_path.insert(0, _Finder)
