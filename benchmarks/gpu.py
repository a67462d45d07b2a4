"""What a GPU makes of it: ResNet-50's features, the usual program against ours, and the certified head.

Features: CIFAR-10's size of pictures, whole on the device as uint8, resized and normalised there, at 224 and at 32 px. Ways:
torchvision's network as it comes; `extract` in float32 and in bfloat16; BatchNorm folded, channels last, bfloat16, with the
transform's constants on the device; the same as one CUDA graph, through torch.compile, and through both. A way counts only
if its features of 16 pictures are within `CLOSE` of the CPU's in float32, and the fastest is chosen with its preparation
counted in. `waits` is how often PyTorch saw the processor wait for the GPU within ten batches; the ways of this file should
have none. `of_peak` is the share of the bfloat16 peak that a large matrix product reaches on the same machine.

Article: its loop of 10 epochs against features once and a certified head, both to an evaluated theta_fine. Head: seconds and
peak memory for 50,000 x 2,048 features and 10 classes; with --large for 1,000,000 x 2,048 and 1,000 classes, 8 GB generated
on the device in chunks, of which the solver computes the logits anew in every pass. Weights are random, as in article.py; time does not depend on them. Without a GPU only --quick runs:
tiny sizes on the CPU, to see that the script works; its records are marked and no claim is made from them.
"""

import copy
import sys
import time
import warnings

import torch
from article import article, network, pictures
from common import arguments, middle, paired, peak_bytes, ratios
from problems import problem
from torch import nn
from torchvision.models import ResNet50_Weights
from torchvision.transforms import functional as F

from sft_nb.data import Images, Loader
from sft_nb.features import Features, extract
from sft_nb.probing import solve_head
from sft_nb.training import step_flops
from sft_nb.ways import folded, relative_error

PRESET = ResNet50_Weights.DEFAULT.transforms()  # resize to 232, crop 224, normalise
EAGER = "bf16, folded, channels last"
CLOSE = 0.06  # relative error of useful half-precision features


def on_device(px, device):
    "The preset, with its constants on the device: its own are copied there and checked for every batch."
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (PRESET.mean, PRESET.std))

    def prepare(xb):
        if xb.shape[-1] != px:
            xb = F.resize(xb, PRESET.resize_size, interpolation=PRESET.interpolation, antialias=PRESET.antialias)
            xb = F.center_crop(xb, PRESET.crop_size)
        return xb.float().div_(255).sub_(mean).div_(std)

    return prepare


def backbone_of(train):
    net = network(train).eval().requires_grad_(False)
    net.fc = nn.Identity()
    return net


def graphed(phi, xb):
    "phi as one CUDA graph for batches of xb's shape; others go through phi itself."
    still, side = xb.clone(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # so that nothing is allocated or tuned for the first time during the capture
        for _ in range(3):
            phi(still)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = phi(still)

    def run(xb):
        if xb.shape != still.shape:
            return phi(xb)
        still.copy_(xb)
        graph.replay()
        return out.clone()

    return run


def ways(net, px, xb):
    "Name -> a function that makes phi: uint8 pictures on the device -> features there."
    device, prepare = xb.device, on_device(px, xb.device)
    ready = lambda xb: prepare(xb).to(torch.bfloat16, memory_format=torch.channels_last)
    plain = lambda: copy.deepcopy(net).to(device)
    last = lambda: folded(net).to(device, torch.bfloat16, memory_format=torch.channels_last)
    through = lambda net: lambda xb: net(ready(xb)).float()
    found = {"fp32, as torchvision builds it": lambda: (lambda net: lambda xb: net(prepare(xb)))(plain())}
    found[EAGER] = lambda: through(last())
    if device.type == "cuda":
        compiled = lambda: through(torch.compile(last()))
        found[f"{EAGER}, CUDA graph"] = lambda: graphed(found[EAGER](), xb)
        found[f"{EAGER}, compiled"] = compiled
        found[f"{EAGER}, compiled, CUDA graph"] = lambda: graphed(compiled(), xb)
    return found


def extracted(net, px, device, dtype):
    "The package's own way: `extract` over a Loader."
    net, prepare = copy.deepcopy(net).to(device), on_device(px, device)
    return lambda x, batch: (
        extract(net, Loader(Images(x, torch.zeros(len(x)).long().to(device)), batch, prepare, device=device), dtype).x
    )


def whole(phi):
    "phi of a whole set in memory, batch by batch; nothing in the loop waits for the device."

    @torch.inference_mode()
    def run(x, batch):
        return torch.cat([phi(xb) for xb in x.split(batch)])

    return run


def waits(run, device):
    "How often `run` makes the processor wait for the GPU, as PyTorch sees it; None without a GPU."
    if not device.startswith("cuda"):
        return None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in seen)


def peak(device, n):
    "FLOP/s of a bfloat16 matrix product, the best of five."
    a = torch.randn(n, n, device=device).bfloat16()
    sync = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    best, repeats = float("inf"), 10
    for _ in range(5):
        sync()
        start = time.perf_counter()
        for _ in range(repeats):
            a @ a
        sync()
        best = min(best, (time.perf_counter() - start) / repeats)
    return 2 * n**3 / best


def prepared(makers, x, batch, want):
    "name -> (run, seconds to prepare it, error), for the ways that work here; and what the others said."
    good, failed = {}, {}
    for name, make in makers.items():
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                run = make()
                run(x[:batch], batch)  # tunes and compiles
            seconds, error = time.perf_counter() - start, relative_error(run(x[:16], 16).cpu(), want)
        except Exception as e:  # compilers and captures fail in many ways, and a failure is a result
            failed[name] = " ".join(f"{type(e).__name__}: {e}".split())[:200]
            continue
        good[name] = run, seconds, error
    return good, failed


def features(args, px, n, batch):
    "Images/s of every way; the name of the one that is fastest for n pictures, its preparation included."
    ds, device = pictures(n, 32, 1), args.device
    x, net = ds.x.to(device), backbone_of(ds)
    with torch.inference_mode():
        want = net(on_device(px, "cpu")(ds.x[:16]))
    some = on_device(px, "cpu")(ds.x[:1])
    top = peak(device, args.matrix or (8192 if device.startswith("cuda") else 512))
    makers = {name: (lambda make=make: whole(make())) for name, make in ways(net, px, x[:batch]).items()}
    for dtype, name in ((torch.float32, "extract, fp32"), (torch.bfloat16, "extract, bf16")):
        makers[name] = lambda dtype=dtype: extracted(net, px, device, dtype)
    good, failed = prepared(makers, x, batch, want)
    config = dict(part="features", px=px, pictures=n, batch=batch, device=device, quick=args.quick, failed=failed)
    config |= dict(flops_per_image=step_flops(net, some), peak_flops=top)
    config["prepare_s"], config["error"] = ({k: v[i] for k, v in good.items()} for i in (1, 2))
    config["waits"] = {k: waits(lambda run=v[0]: run(x[: 10 * batch], batch), device) for k, v in good.items()}

    def subject(run):
        def once():
            run(x, batch)
            return dict(images=n)

        return once

    record = paired("gpu", config, {k: subject(v[0]) for k, v in good.items()}, args.repeats, device)
    return summary(record)


def summary(record):
    "A table of the features' record; the fastest way that is close enough."
    c, total = record["config"], {}
    print(
        f"\n{c['px']} px on {record['machine']['gpu'] or 'the CPU'}: bfloat16 peak {c['peak_flops'] / 1e12:.2f} TFLOP/s"
    )
    print("\t".join(["", "images/s", "of peak", "error", "prepare s", "waits"]))
    for name, runs in record["runs"].items():
        rates = [r["images"] / r["wall_s"] for r in runs]
        of_peak = max(rates) * c["flops_per_image"] / c["peak_flops"]
        if c["error"][name] <= CLOSE and not name.startswith("extract"):
            total[name] = c["prepare_s"][name] + c["pictures"] / max(rates)
        print(
            f"{name}\t{middle(rates, 0)}\t{of_peak:.1%}\t{c['error'][name]:.1e}\t{c['prepare_s'][name]:.1f}\t{c['waits'][name]}"
        )
    for name, said in c["failed"].items():
        print(f"{name}\tdoes not run here: {said}")
    return min(total, key=total.get)


def ours(train, test, px, batch, best, device):
    "Features once, by the way called best, and a certified head, from pictures on the CPU to an evaluated theta_fine."
    net = backbone_of(train)

    def run():
        start, (a, b) = time.perf_counter(), (ds.to(device) for ds in (train, test))
        with torch.inference_mode():
            phi = whole(ways(net, px, a.x[:batch])[best]())
        probe = solve_head(Features(phi(a.x, batch), a.y), 10, l2=1e-3)
        fit = time.perf_counter() - start
        right = (probe.logits(phi(b.x, batch)).argmax(1) == b.y).double().mean().item()
        return dict(accuracy=right, gap=probe.gap, fit_s=fit)

    return run


def against_the_article(args, px, n, batch, best):
    train, test = pictures(n, px, 1), pictures(max(16, n // 5), px, 2)
    config = dict(
        part="article",
        px=px,
        train=n,
        test=len(test),
        epochs=args.epochs,
        device=args.device,
        quick=args.quick,
        way=best,
    )
    subjects = {
        "article": article(train, test, args.epochs, args.device),
        "ours": ours(train, test, px, batch, best, args.device),
    }
    record = paired("gpu", config, subjects, args.repeats, args.device)
    print(
        f"\n{px} px, {n} pictures: ours takes {middle(ratios(record, 'article', 'ours', 'wall_s'), 1)} times less wall time"
    )


def head(args, spec):
    "Seconds and peak memory of the certified head, which holds heads, a class-by-class matrix and a chunk, but not all logits."
    n, d, c = (spec[k] for k in "ndc")
    scores = 8 * n * c  # bytes of all logits in float64
    need = 4 * n * d + 100 * c * d + 50 * c * c + min(3 * scores, 6.5e9) + 2e9  # few logits are kept, chunks are small
    on_gpu = args.device.startswith("cuda")
    if on_gpu and need > torch.cuda.mem_get_info()[0]:
        print(
            f"\nhead, {spec}: left out, it needs about {need / 1e9:.0f} GB and {torch.cuda.mem_get_info()[0] / 1e9:.0f} GB are free"
        )
        return
    feats, got = problem(spec | dict(device=args.device)), {}
    solve = lambda: got.update(probe=solve_head(feats, spec["c"], args.l2))

    def run():
        if on_gpu:
            base = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            solve()
            top = torch.cuda.max_memory_allocated() - base
        else:
            top = peak_bytes(solve)
        return dict(gap=got["probe"].gap, loss=got["probe"].loss, peak_bytes=top)

    config = dict(part="head", **spec, l2=args.l2, device=args.device, quick=args.quick)
    record = paired("gpu", config, {"certified head": run}, args.repeats, args.device)
    r = record["runs"]["certified head"][-1]
    print(
        f"\nhead, {spec['n']:,} x {spec['d']:,}, {spec['c']} classes: {r['wall_s']:.2f} s, gap {r['gap']:.0e}, peak "
        f"{r['peak_bytes'] / 1e9:.2f} GB above the features, {r['peak_bytes'] / scores:.1f} times all logits in float64"
    )


if __name__ == "__main__":
    args = arguments(__doc__, epochs=10, l2=6.3e-5, matrix=0, large=False)
    if not args.device.startswith("cuda") and not args.quick:
        sys.exit("torch sees no GPU here: --quick runs the script on the CPU with tiny sizes, and marks its records")
    args.repeats, args.epochs = (1, 2) if args.quick else (args.repeats, args.epochs)
    torch.backends.cudnn.benchmark = True  # for everybody: the fastest algorithm for each shape is searched once
    small = args.quick
    for px, n, batch, few in (
        ((224, 16, 8, 16), (32, 64, 32, 64)) if small else ((224, 10_240, 256, 2_000), (32, 50_176, 1024, 10_000))
    ):
        best = features(args, px, n, batch)
        print(f"chosen at {px} px: {best}")
        against_the_article(args, px, few, batch, best)
    overlap = dict(separation=0.38, noise=0.3)
    head(args, dict(n=2_000, d=128, c=10, **overlap) if small else dict(n=50_000, d=2048, c=10, **overlap))
    if args.large:
        head(args, dict(n=4_000, d=64, c=100, **overlap) if small else dict(n=1_000_000, d=2048, c=1000, **overlap))
