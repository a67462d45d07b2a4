"""Feature problems for the head solvers: synthetic, but conditioned like a backbone's features.

Each is made of ten overlapping classes in a latent space that go through random ReLU features, so that the values are
non-negative, correlated and of a spectrum that decays over several decades.
"""

import torch

from sft_nb.features import Features


def relu_features(n: int, d: int, classes: int, decay: float, spread: float, seed: int = 0) -> Features:
    """Non-negative features [n, d] of `classes` Gaussian classes.

    decay: the power by which the latent spectrum falls; larger is worse conditioned. spread: standard deviation within
    a class, in units of the distance of the class centres; larger means more overlap.
    """
    g = torch.Generator().manual_seed(seed)
    latent = min(256, d)
    scale = torch.arange(1, latent + 1).float() ** -decay
    centres = torch.randn(classes, latent, generator=g) * scale
    y = torch.randint(0, classes, (n,), generator=g)
    mix = torch.randn(latent, d, generator=g) / latent**0.5
    bias = 0.3 * torch.randn(d, generator=g) * scale.norm() / latent**0.5
    x = torch.empty(n, d)
    for i in range(0, n, 4096):
        z = centres[y[i : i + 4096]]
        z = z + spread * scale * torch.randn(len(z), latent, generator=g)
        x[i : i + 4096] = (z @ mix + bias).relu_()
    return Features(x.div_(x.std()), y)


# name -> (n, d, classes, decay, spread); the last is the size of CIFAR-10 through a ResNet-50
PROBLEMS = {
    "well conditioned, 20,000 x 512": (20_000, 512, 10, 0.0, 2.0),
    "badly conditioned, 20,000 x 512": (20_000, 512, 10, 1.0, 1.0),
    "ResNet-50's size, 50,000 x 2,048": (50_000, 2048, 10, 0.5, 2.0),
}
QUICK = {name.split(",")[0]: (4000, 256, c, decay, spread) for name, (n, d, c, decay, spread) in PROBLEMS.items()}
