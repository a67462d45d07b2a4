"""`extract` against a loop by hand and against the engines that a user could pick instead, with all that each needs first.

Every subject starts from torchvision's network in eval mode and ends with the features of all pictures: export, compilation
and search are in its time. `extract` runs twice: when nothing is remembered of such a network, and when the first run is.
ONNX Runtime and OpenVINO are measured where they are installed (pip install onnx onnxruntime openvino). Weights are random,
since time does not depend on them, and residual branches are damped, so that half precision is what it is after training.
"""

import copy
import os
import tempfile
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from common import arguments, middle, paired, ratios
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import Bottleneck

from sft_nb import engines
from sft_nb.features import extract
from sft_nb.ways import relative_error

# network, pixels, pictures, in batches of
CASES = [
    ("resnet50", 32, 64, 32),
    ("resnet50", 32, 512, 128),
    ("resnet50", 32, 4096, 256),
    ("resnet50", 224, 64, 16),
    ("resnet50", 224, 96, 32),
    ("resnet50", 224, 192, 32),
    ("efficientnet_b0", 224, 128, 32),
    ("vit_b_16", 224, 48, 16),
    ("convnext_tiny", 128, 256, 32),
]
QUICK = [("resnet18", 32, 256, 64), ("mobilenet_v3_small", 64, 128, 32)]


def network(name, px):
    "Without its head, its BatchNorm statistics those of some pictures."
    torch.manual_seed(0)
    net = get_model(name, weights=None)
    for part in ("fc", "classifier", "heads", "head"):
        if hasattr(net, part):
            setattr(net, part, nn.Flatten(1))
    for m in net.modules():
        if isinstance(m, Bottleneck):
            nn.init.constant_(m.bn3.weight, 0.1)
    with torch.no_grad():
        net.train()(torch.rand(16, 3, px, px))
    return net.eval()


def loop(net, batches):
    "As one writes it."

    @torch.inference_mode()
    def run():
        return torch.cat([net(xb) for xb, _ in batches])

    return run


def by_onnx(net, batches):
    import onnxruntime

    def run():
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = str(Path(folder) / "net.onnx")
            axes = {"x": {0: "n"}}
            torch.onnx.export(net, batches[0][0][:2], path, dynamo=False, input_names=["x"], dynamic_axes=axes)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return torch.cat([torch.from_numpy(session.run(None, {"x": xb.numpy()})[0]) for xb, _ in batches])

    return run


def by_openvino(net, batches, kind):
    import openvino

    def run():
        model = openvino.convert_model(copy.deepcopy(net), example_input=batches[0][0][:2])
        model.reshape([-1, *batches[0][0].shape[1:]])
        told = {"INFERENCE_PRECISION_HINT": kind, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        request = openvino.Core().compile_model(model, "CPU", told).create_infer_request()
        rows = [request.infer({0: xb.numpy()}, share_inputs=True)[0].copy() for xb, _ in batches]
        return torch.cat([torch.from_numpy(z) for z in rows])

    return run


def ours(net, batches, dtype, forget):
    def run():
        if forget:
            engines._KNOWN.clear()
            (engines.cache_folder() / "engines.json").unlink(missing_ok=True)
        return extract(net, batches, dtype)

    return run


def subjects(net, batches):
    made = {"eager": loop(net, batches)}
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        made[f"extract, {name}"] = ours(net, batches, dtype, True)
        made[f"extract, {name}, remembered"] = ours(net, batches, dtype, False)
    rivals = {}
    if find_spec("onnxruntime"):
        rivals["ONNX Runtime, fp32"] = by_onnx
    if find_spec("openvino"):
        rivals |= {f"OpenVINO, {n}": partial(by_openvino, kind=k) for n, k in (("fp32", "f32"), ("bf16", "bf16"))}
    for name, rival in rivals.items():
        try:
            rival(net, batches[:1])()
            made[name] = rival(net, batches)
        except Exception as e:  # a rival that cannot have this network is no reason to measure nothing
            print(f"{name} is left out: {' '.join(str(e).split())[:100]}")
    return made


def figures(run, want):
    def told():
        out = run()
        rows = out if isinstance(out, torch.Tensor) else out.x
        return dict(engine=getattr(out, "engine", ""), off=relative_error(rows, want))

    return told


if __name__ == "__main__":
    args = arguments(__doc__, only="")  # a network of CASES
    for name, px, n, size in QUICK if args.quick else [c for c in CASES if args.only in c[0]]:
        net = network(name, px)
        x = torch.rand(n, 3, px, px) + 0.3 * torch.rand(10, 3, 1, 1)[torch.arange(n) % 10]
        batches = [(b, torch.arange(len(b)) % 10) for b in x.split(size)]
        want = loop(net, batches)()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SFT_NB_CACHE"] = folder
            made = {s: figures(f, want) for s, f in subjects(net, batches).items()}
            config = dict(network=name, px=px, pictures=n, batch=size, quick=args.quick)
            record = paired("engines", config, made, 1 if args.quick else args.repeats, args.device)
        print(f"\n{name}, {n} pictures of {px} px in batches of {size}: times as fast as eager, CPU time")
        for s, runs in record["runs"].items():
            print(f"  {s:28} {middle(ratios(record, 'eager', s)):24} {runs[-1]['engine']}")
