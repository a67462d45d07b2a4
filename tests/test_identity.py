"identity: other if anything was edited that can change a result, the same in every way of being the same."

import copy
import functools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn
from torchvision.transforms import v2

from sft_nb.cache import Cache, cache_key, cached, key_parts
from sft_nb.data import Images, Loader, jitter
from sft_nb.features import extract
from sft_nb.freezing import freeze, unfreeze
from sft_nb.identity import differs, identity
from sft_nb.models import architecture, load_pretrained
from sft_nb.sources.pocket import PocketResNet

START = """
import functools, math, enum, dataclasses, collections
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
K, TABLE, SHIFT, WORDS = 2.0, {"a": [1, 2]}, torch.ones(3), {"one", "two", "three", "four"}
class Mode(enum.Enum):
    A = 1
    B = 2
def helper(x, k=1):
    return x * k
"""

# What is edited -> a cell that defines f, and the same cell with the edit
EDITS = {
    "a name that is called": ("def f(x): return torch.sin(x)", "torch.sin", "torch.cos"),
    "a method that is called": ("def f(x): return x.sin()", "sin", "cos"),
    "a constant": ("def f(x): return x * 2", "2", "3"),
    "its type": ("def f(x): return x * 2", "2", "2.0"),
    "a default": ("def f(x, k=1.0): return x * k", "1.0", "9.0"),
    "a keyword default": ("def f(x, *, k=1.0): return x * k", "1.0", "9.0"),
    "a global": ("K = 1\ndef f(x): return x * K", "K = 1", "K = 2"),
    "a tensor that is read": ("T = torch.ones(3)\ndef f(x): return x * T.sum()", "ones", "zeros"),
    "an array that is read": ("T = np.ones(3)\ndef f(x): return x * T.sum()", "ones", "zeros"),
    "a helper": ("def g(x): return x + 1\ndef f(x): return g(x)", "+ 1", "+ 2"),
    "a helper's helper": ("def h(x): return x + 1\ndef g(x): return h(x)\ndef f(x): return g(x)", "+ 1", "+ 2"),
    "a helper's default": ("def g(x, k=1): return x + k\ndef f(x): return g(x)", "k=1", "k=2"),
    "code inside": ("def f(x): return [i + 1 for i in x]", "+ 1", "+ 2"),
    "a lambda inside": ("def f(x): return (lambda t: t.sin())(x)", "sin", "cos"),
    "a global of a lambda inside": ("K = 1\ndef f(x): return (lambda t: t * K)(x)", "K = 1", "K = 2"),
    "a class inside": ("def f(x):\n    class A:\n        k = 1\n    return x * A.k", "k = 1", "k = 2"),
    "what is enclosed": ("def make(k): return lambda x: x * k\nf = make(1)", "make(1)", "make(2)"),
    "a function that is enclosed": ("def make(g): return lambda x: g(x)\nf = make(torch.sin)", "torch.sin", "torch.cos"),
    "a partial's argument": ("f = functools.partial(helper, k=1)", "k=1", "k=2"),
    "a partial's function": ("f = functools.partial(helper, k=1)", "helper", "math.pow"),
    "a function behind a decorator": ("@torch.no_grad()\ndef f(x): return x + 1", "+ 1", "+ 2"),
    "a function behind wraps": ("def d(g):\n    @functools.wraps(g)\n    def w(x): return g(x)\n    return w\n@d\ndef f(x): return x + 1", "+ 1", "+ 2"),
    "a function behind a memory": ("@functools.lru_cache\ndef f(x): return x + 1", "+ 1", "+ 2"),
    "an attribute": ("class A:\n    def __init__(self, k): self.k = k\n    def __call__(self, x): return x * self.k\nf = A(1)", "A(1)", "A(2)"),
    "an attribute behind a repr": ("class A:\n    def __init__(self, k): self.k = k\n    def __call__(self, x): return x * self.k\n    def __repr__(self): return 'A'\nf = A(1)", "A(1)", "A(2)"),
    "a slot": ("class A:\n    __slots__ = ('k',)\n    def __init__(self, k): self.k = k\n    def __call__(self, x): return x * self.k\nf = A(1)", "A(1)", "A(2)"),
    "__call__": ("class A:\n    def __call__(self, x): return x + 1\nf = A()", "+ 1", "+ 2"),
    "a method": ("class A:\n    def g(self, x): return x + 1\n    def __call__(self, x): return self.g(x)\nf = A()", "+ 1", "+ 2"),
    "a bound method": ("class A:\n    def g(self, x): return x + 1\nf = A().g", "+ 1", "+ 2"),
    "whose method": ("class A:\n    def __init__(self, k): self.k = k\n    def g(self, x): return x * self.k\nf = A(1).g", "A(1)", "A(2)"),
    "a parent's method": ("class P:\n    def __call__(self, x): return x + 1\nclass A(P): pass\nf = A()", "+ 1", "+ 2"),
    "a class method": ("class A:\n    @classmethod\n    def g(cls, x): return x + 1\nf = A.g", "+ 1", "+ 2"),
    "a static method": ("class A:\n    @staticmethod\n    def g(x): return x + 1\n    def __call__(self, x): return self.g(x)\nf = A()", "+ 1", "+ 2"),
    "a property": ("class A:\n    @property\n    def k(self): return 1\n    def __call__(self, x): return x * self.k\nf = A()", "return 1", "return 2"),
    "a cached property": ("class A:\n    @functools.cached_property\n    def k(self): return 1\n    def __call__(self, x): return x * self.k\nf = A()", "return 1", "return 2"),
    "an attribute of the class": ("class A:\n    k = 1\n    def __call__(self, x): return x * self.k\nf = A()", "k = 1", "k = 2"),
    "a dataclass's field": ("@dataclasses.dataclass\nclass A:\n    k: int = 1\n    def __call__(self, x): return x * self.k\nf = A()", "k: int = 1", "k: int = 2"),
    "a named tuple's field": ("P = collections.namedtuple('P', 'k')\nT = P(1)\ndef f(x): return x * T.k", "P(1)", "P(2)"),
    "a module's attribute": ("class A(nn.Module):\n    def __init__(self, k):\n        super().__init__()\n        self.k = k\n    def forward(self, x): return x * self.k\nf = A(1)", "A(1)", "A(2)"),
    "forward": ("class A(nn.Module):\n    def forward(self, x): return x + 1\nf = A()", "+ 1", "+ 2"),
    "forward of a layer": ("class A(nn.Module):\n    def forward(self, x): return x + 1\nf = nn.Sequential(nn.ReLU(), A())", "+ 1", "+ 2"),
    "a library layer's option": ("f = nn.Conv2d(1, 1, 3)", "3)", "3, padding_mode='reflect')"),
    "the order of layers": ("f = nn.Sequential(nn.ReLU(), nn.Tanh())", "nn.ReLU(), nn.Tanh()", "nn.Tanh(), nn.ReLU()"),
    "the order of named layers": ("f = nn.Sequential(collections.OrderedDict([('a', nn.ReLU()), ('b', nn.ReLU())]))", "('a', nn.ReLU()), ('b', nn.ReLU())", "('b', nn.ReLU()), ('a', nn.ReLU())"),
    "the mode": ("f = nn.Dropout()", "Dropout()", "Dropout().eval()"),
    "a hook": ("f = nn.ReLU()\nf.register_forward_hook(lambda m, a, out: out + 1)", "+ 1", "+ 2"),
    "an unsaved buffer": ("f = nn.ReLU()\nf.register_buffer('b', torch.tensor([1.0]), persistent=False)", "1.0", "2.0"),
    "a number in a dictionary": ("T = {'a': [1, {'b': 1}]}\ndef f(x): return x * T['a'][0]", "'b': 1", "'b': 2"),
    "the order of a dictionary": ("T = {'a': 1, 'b': 2}\ndef f(x): return list(T)", "{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}"),
    "an element of a set": ("T = {'a', 'b'}\ndef f(x): return x in T", "'b'", "'c'"),
    "a set in the code": ("def f(x): return x in {'a', 'b'}", "'b'", "'c'"),
    "a choice of an enumeration": ("T = Mode.A\ndef f(x): return T", "Mode.A", "Mode.B"),
    "a mask": ("T = np.ma.array([1, 2], mask=[0, 1])\ndef f(x): return x * T.sum()", "[0, 1]", "[1, 0]"),
    "a forward of one object": ("f = nn.ReLU()\nf.forward = lambda x: x + 1", "+ 1", "+ 2"),
    "a type": ("T = torch.float32\ndef f(x): return x.to(T)", "float32", "float16"),
    "a function in a table": ("T = [torch.sin, F.relu]\ndef f(x): return T[0](x)", "torch.sin", "torch.cos"),
    "an exception that is caught": ("def f(x):\n    try: return x\n    except KeyError: return 0", "KeyError", "ValueError"),
    "how it is called": ("def f(x, y=1): return x", "(x, y=1)", "(x, *, y=1)"),
    "a local import": ("def f(x):\n    from torch.nn.functional import relu as g\n    return g(x)", "relu", "gelu"),
    "an attribute of a function": ("def f(x): return x * f.k\nf.k = 1", "f.k = 1", "f.k = 2"),
    "of two that call each other": ("def g(x): return f(x) + 1\ndef f(x): return g(x)", "+ 1", "+ 2"),
    "a transform of torchvision": ("from torchvision.transforms import v2\nf = v2.Normalize([0.5], [0.5])", "[0.5], [0.5]", "[0.5], [0.4]"),
}  # fmt: skip


def made(cell, file="a cell"):
    "What a cell calls f, the cell run in a fresh namespace, as a kernel would, under a file name of its own."
    space = {"__name__": "__main__"}
    exec(compile(START, "start", "exec"), space)
    torch.manual_seed(0)
    exec(compile(cell, file, "exec"), space)
    return space["f"]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_seen_and_a_second_run_is_not(edit):
    cell, old, new = EDITS[edit]
    assert cell.count(old) >= 1
    told = identity(made(cell))
    assert differs(told, identity(made(cell))) == "", "the same cell, run again"
    assert differs(told, identity(made("\n\n# above\n" + cell, "another cell"))) == "", "line numbers and file names"
    assert differs(told, identity(made(cell.replace(old, new)))), "the edit"


PROCESS = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {tests!r})
from test_identity import EDITS, identity, made
json.dump({{n: identity(made(cell)) for n, (cell, _, _) in EDITS.items()}}, sys.stdout)
"""


def test_the_same_in_another_process_whatever_its_hash_seed():
    here = {n: identity(made(cell)) for n, (cell, _, _) in EDITS.items()}
    code, env = PROCESS.format(tests=str(Path(__file__).parent)), os.environ | dict(PYTHONHASHSEED="77")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert {n: differs(here[n], there[n]) for n in here} == {n: "" for n in here}


def test_the_same_after_use_and_after_travelling():
    "Specialised bytecode, a copy, a pickle, a saved state, another type of thread: none of it is an edit."

    def busy(x, k=2):
        return sum(i * k for i in range(x))

    told = identity(busy)
    for _ in range(3000):
        busy(3)
    assert identity(busy) == told
    net = load_pretrained("pocket").backbone
    told = identity(net)
    assert identity(copy.deepcopy(net)) == told == identity(pickle.loads(pickle.dumps(net)))
    net(torch.zeros(1, 3, 32, 32)).sum().backward()
    assert identity(net) == told, "a gradient is no part of the function"
    transform = v2.Compose([v2.Resize(8), v2.Normalize([0.5], [0.5])])
    assert identity(transform) == identity(pickle.loads(pickle.dumps(transform)))


def test_what_freezing_does_is_not_part_of_phi():
    net = load_pretrained("pocket").backbone
    told = identity(net, mode=False)
    assert identity(freeze(net), mode=False) == told == identity(unfreeze(net), mode=False)
    assert identity(net) != told


def test_every_weight_buffer_and_block_of_code_of_a_network():
    torch.manual_seed(0)
    net = PocketResNet(3)
    told = identity(net)
    for n, t in [*net.named_parameters(), *net.named_buffers()]:
        with torch.no_grad():
            was = t.view(-1)[-1].clone()
            t.view(-1)[-1] += 1
            assert differs(told, identity(net)).startswith(f"{n}: was "), n
            t.view(-1)[-1] = was
    assert differs(told, identity(net)) == ""
    swapped = copy.deepcopy(net)
    swapped.relu = nn.ReLU6()
    assert "relu: was torch.nn.modules.activation.ReLU" in differs(told, identity(swapped))


@pytest.mark.parametrize("name", ["swin_t", "googlenet", "densenet121"])
def test_networks_of_other_families(name):
    torch.manual_seed(0)
    a, transform = architecture(name)
    told = identity(a)
    assert identity(copy.deepcopy(a)) == told and identity(transform) == identity(copy.deepcopy(transform))
    torch.manual_seed(1)
    assert differs(told, identity(architecture(name)[0]))


def test_a_module_of_ones_own_is_looked_at_where_it_is_used(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    package = tmp_path / "mine_of_the_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    cells = {
        "import": "import mine_of_the_test.inner\ndef f(x): return mine_of_the_test.inner.g(x)",
        "from": "from mine_of_the_test import inner\ndef f(x): return inner.g(x)",
        "name": "from mine_of_the_test.inner import g\ndef f(x): return g(x)",
        "inside": "def f(x):\n    from mine_of_the_test import inner\n    return inner.g(x)",
        "relative": "__package__ = 'mine_of_the_test'\ndef f(x):\n    from .inner import g\n    return g(x)",
        "relative module": "__package__ = 'mine_of_the_test'\ndef f(x):\n    from . import inner\n    return inner.g(x)",
        "inside, by name": "def f(x):\n    from mine_of_the_test.inner import g\n    return g(x)",
    }
    told = {}
    for k in (1, 2):
        (package / "inner.py").write_text(f"K = {k}\nother = open\ndef h(x): return x + {k}\ndef g(x): return h(x)\n")
        for name, cell in cells.items():
            for m in [m for m in sys.modules if m.startswith("mine_of_the_test")]:
                del sys.modules[m]
            told[name, k] = identity(made(cell))
            assert identity(made(cell)) == told[name, k]
    for name in cells:
        assert "constants: was None; 1, now None; 2" in differs(told[name, 1], told[name, 2]), name


STREAM = torch.Generator()
UNSEEN = {
    "a stream": (lambda: lambda x, g=STREAM: x, "default g is a torch._C.Generator, which gives other numbers each time"),
    "numpy's stream": (lambda: functools.partial(print, np.random.default_rng(0)), r"args.\[0\] is a numpy.*other numbers"),
    "an open file": (lambda: functools.partial(print, open(__file__)), r"args.\[0\] is a _io.TextIOWrapper, into which"),
    "a generator": (lambda: functools.partial(sum, (i for i in "ab")), r"args.\[0\] is a builtins.generator"),
    "no numbers": (lambda: nn.Linear(2, 2, device="meta"), "(bias|weight) is a torch.nn.parameter.Parameter, whose numbers"),
    "a set of functions": (lambda: lambda x, s={print, len, test_what_is_told}: x, "default s is a builtins.set, whose order"),
    "nothing to call": (lambda: 3, "3 is not a function"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("what", UNSEEN)
def test_what_cannot_be_seen_through_is_refused_in_one_sentence(what):
    make, told = UNSEEN[what]
    with pytest.raises(ValueError, match=told) as e:
        identity(make())
    assert "\n" not in str(e.value)


def test_what_is_told():
    told = identity(jitter(2))
    assert told["closure pixels"] == "2" and told["it"] == "sft_nb.data.jitter.<locals>.shift"
    assert differs(told, identity(jitter(3))) == "closure pixels: was 2, now 3"
    assert differs(dict(a="1"), dict(b="1")) == "a: was 1, now not there\nb: was not there, now 1"
    assert not any("0x" in v or "/" in v for v in identity(load_pretrained("pocket").backbone).values())


# In a cache: the edits that gave stale features, from the outside


PHI = load_pretrained("pocket").backbone
DS = Images(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) % 2)


@pytest.mark.parametrize("edit", ["a name that is called", "a default", "a keyword default", "a global", "code inside"])
def test_an_edited_transform_gives_no_stale_features(edit, tmp_path):
    cell, old, new = EDITS[edit]
    cell = cell.replace("[i + 1 for i in x]", "torch.stack([i + 1 for i in x])")
    loaders = [Loader(DS, 8, lambda xb, f=made(c): f(xb / 255)) for c in (cell, cell.replace(old, new), cell)]
    first, second, third = (cached(PHI, dl, cache=Cache(tmp_path)).x.clone() for dl in loaders)
    assert torch.equal(first, third) and not torch.equal(first, second) and len(Cache(tmp_path).files()) == 2
    assert torch.allclose(second, extract(PHI, loaders[1]).x)


def test_an_edited_network_or_augmentation_gives_no_stale_features():
    cell = "class A(nn.Module):\n    def forward(self, x): return x.flatten(1) + 1\nf = A()"
    dl = Loader(DS, 8)
    assert cache_key(made(cell), dl) == cache_key(made(cell), dl) == cache_key(made(cell).eval(), dl)
    assert cache_key(made(cell), dl) != cache_key(made(cell.replace("+ 1", "+ 2")), dl)
    cell = "def f(x, g): return x // 2"
    of = lambda cell: key_parts(PHI, Loader(DS, 8, augment=made(cell)), views=2)
    assert of(cell) == of(cell)
    assert differs(of(cell), of(cell.replace("2", "3"))) == "augment: constants: was None; 2, now None; 3"


def test_a_network_that_keeps_references_to_its_own_weights_is_told():
    "An LSTM does: two with equal weights are the same, and a weight that moved is seen."
    nets = [torch.nn.LSTM(3, 4) for _ in range(3)]
    for net in nets[:2]:
        net.load_state_dict(nets[2].state_dict())
    with torch.no_grad():
        nets[1].weight_hh_l0[0, 0] += 1
    same, other = (differs(identity(nets[2]), identity(n)) for n in nets[:2])
    assert same == "" and "weight" in other
