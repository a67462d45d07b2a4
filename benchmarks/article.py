"""The article's program against features once and a certified head: ResNet-50, to an evaluated theta_fine.

The article: all parameters frozen, a new fc, Adam on it, batches of 32, 10 epochs, the network in train mode, pictures
one by one through a Dataset and a DataLoader. Ours: the backbone runs once over the training pictures, the head is
solved until its certificate is below 1e-8. Both then evaluate on the same test pictures, each in its own way. Weights
are random unless --weights names a torchvision model whose published file is in the cache: time does not depend on
them. The article's cost grows linearly with the pictures and ours at most so, hence more pictures do not lower the ratio.
There is a test picture for every five training pictures, as in CIFAR-10; `fit_cpu_s` is the CPU time up to theta_fine,
without the evaluation.

Residual branches of the random network are damped to 0.1 (the weight of each block's last BatchNorm): undamped, a random
ResNet-50 amplifies every rounding error, which trained networks do not, and no bfloat16 feature would pass its check.
"""

import copy
import time

import torch
from common import arguments, middle, paired, ratios, show
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet50
from torchvision.models.resnet import Bottleneck
from torchvision.transforms.functional import to_tensor

from sft_nb.data import Images, Loader
from sft_nb.features import extract
from sft_nb.models import normalise
from sft_nb.probing import solve_head
from sft_nb.ways import relative_error

NORMALISE = normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Pictures(Dataset):
    "As torchvision's CIFAR10 gives them: one H x W x 3 array at a time, through ToTensor."

    def __init__(self, ds):
        self.x, self.y = ds.x.permute(0, 2, 3, 1).contiguous().numpy(), ds.y.tolist()

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return to_tensor(self.x[i]), self.y[i]


def pictures(n, px, seed):
    "Ten classes that differ in colour, under noise: enough to tell, at any size."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 10
    tint = torch.rand(10, 3, 1, 1, generator=torch.Generator().manual_seed(0))[y]
    return Images(((torch.rand(n, 3, px, px, generator=g) + tint) * 127).to(torch.uint8), y)


@torch.no_grad()
def network(train):
    "A ResNet-50 with random weights whose BatchNorm statistics are those of its pictures, as after pre-training."
    torch.manual_seed(0)
    model = resnet50(weights=None).train()
    for m in model.modules():
        if isinstance(m, Bottleneck):
            m.bn3.weight.fill_(0.1)
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # a plain average
    for xb, _ in Loader(train[:64], 32, NORMALISE):
        model(xb)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.1
    return model


def article(train, test, epochs, device):
    model = network(train)
    for p in model.parameters():
        p.requires_grad = False
    model.fc = nn.Linear(model.fc.in_features, 10)
    model.to(device)
    opt = torch.optim.Adam(model.fc.parameters())
    loss = nn.CrossEntropyLoss()

    def run():
        start = time.process_time()
        for _ in range(epochs):
            for xb, yb in DataLoader(Pictures(train), batch_size=32, shuffle=True):
                opt.zero_grad()
                loss(model(xb.to(device)), yb.to(device)).backward()
                opt.step()
        right, fit = 0, time.process_time() - start
        with torch.no_grad():  # the article evaluates nothing; this is the least that one would add
            for xb, yb in DataLoader(Pictures(test), batch_size=32):
                right += (model(xb.to(device)).argmax(1).cpu() == yb).sum().item()
        return dict(accuracy=right / len(test), fit_cpu_s=fit)

    return run


def ours(train, test, device, dtype):
    backbone = network(train)
    backbone.fc = nn.Identity()
    freshly = lambda ds: Loader(ds, 128 if ds.x.shape[-1] < 64 else 32, NORMALISE, device=device)

    def run():
        start = time.process_time()
        phi = extract(backbone.to(device), freshly(train), dtype=dtype)
        probe = solve_head(phi, 10, l2=1e-3)
        fit = time.process_time() - start
        there = extract(backbone, freshly(test), dtype=dtype)
        right = (probe.logits(there.x).argmax(1) == there.y).double().mean().item()
        return dict(accuracy=right, gap=probe.gap, fit_cpu_s=fit)

    return run


if __name__ == "__main__":
    args = arguments(__doc__, px=32, train=0, epochs=10)
    n = (
        args.train
        or {(False, False): 10_000, (True, False): 256, (False, True): 320, (True, True): 32}[args.px > 64, args.quick]
    )
    train, test = pictures(n, args.px, 1), pictures(max(32, n // 5), args.px, 2)
    config = dict(px=args.px, train=n, test=len(test), epochs=args.epochs, device=args.device, quick=args.quick)
    subjects = {
        "article": article(train, test, args.epochs, args.device),
        "features once, fp32": ours(train, test, args.device, torch.float32),
        "features once, bf16": ours(train, test, args.device, torch.bfloat16),
    }
    for dtype in (torch.float32, torch.bfloat16):  # the one-time choice of kernels is not what is measured
        ours(train[:64], test[:32], args.device, dtype)()
    with torch.inference_mode():
        few, net = NORMALISE(train.x[:16].to(args.device)), network(train).eval().to(args.device)
        net.fc = nn.Identity()
        half = copy.deepcopy(net).bfloat16()(few.bfloat16())
        config["bf16_error"] = relative_error(
            half, net(few)
        )  # what of it a head notices decides whether the bfloat16 row is one
    record = paired("article", config, subjects, 1 if args.quick else args.repeats, args.device)
    show(
        record,
        "article",
        dict(accuracy=lambda r: f"{r['accuracy']:.3f}", gap=lambda r: f"{r['gap']:.1e}" if "gap" in r else ""),
    )
    for s in list(subjects)[1:]:
        whole, fit = ratios(record, "article", s), ratios(record, "article", s, "fit_cpu_s")
        print(
            f"{s}: {middle(fit, 1)} times less CPU than the article's program to theta_fine, {middle(whole, 1)} evaluated"
        )
