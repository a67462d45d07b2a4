"""Feature problems for the head solvers: what a frozen backbone hands to its head, made up but not made easy.

Each class is a few clusters in a latent space whose variances decay; clusters overlap. Two random layers with ReLU give
features like those of a network's last layer: not negative, about half of them zero, means larger than deviations, a
spectrum that falls over several decades, scales that differ, a few that never vary.
"""

import torch

from sft_nb.features import Features


def problem(spec: dict) -> Features:
    "Features of a problem, by its numbers; deterministic."
    return relu_features(**spec)


def relu_features(
    n: int,
    d: int,
    c: int,
    separation: float = 1.6,  # of the class centres, in units of the spread within a class; smaller overlaps more
    noise: float = 0.02,  # added before the last ReLU: the floor of the spectrum
    seed: int = 0,
    latent: int = 128,
    clusters: int = 2,
    dead: int = 3,
    gain: float = 1.0,  # of all features: as a penalty 1 / gain^2 as strong
    chunk: int = 10_000,
    device: str = "cpu",  # where they are drawn and lie; another device draws other numbers
) -> Features:
    g = torch.Generator(device).manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=g, device=device)
    sd = torch.arange(1, latent + 1, device=device).float() ** -0.5
    centres = randn(c, clusters, latent) * sd * separation
    first, first_bias = randn(latent, 2 * latent) / sd.norm(), randn(2 * latent) * 0.3
    second, second_bias = randn(2 * latent, d) / latent**0.5, randn(d) * 0.3
    scale = gain * torch.exp(0.5 * randn(d))
    scale[torch.randperm(d, generator=g, device=device)[:dead]] = 0
    y = torch.randint(0, c, (n,), generator=g, device=device)
    k = torch.randint(0, clusters, (n,), generator=g, device=device)
    x = torch.empty(n, d, device=device)
    for i in range(0, n, chunk):
        s = slice(i, min(i + chunk, n))
        z = (
            torch.relu((centres[y[s], k[s]] + randn(s.stop - i, latent) * sd) @ first + first_bias) @ second
            + second_bias
        )
        x[s] = torch.relu(z + noise * randn(*z.shape)) * scale
    return Features(x, y)


# The first is the size of CIFAR-10 through a ResNet-50. Its classes overlap so much that the optimum sorts about 92 % of
# the training set, near what the published linear probe reaches on CIFAR-10 (91.5 % on test); the next two are nearly
# separable, at an optimum of 1e-4 nats, with small and with large features. The last two differ in size and overlap.
PROBLEMS = {
    "50,000 x 2,048": dict(n=50_000, d=2048, c=10, separation=0.38, noise=0.3),
    "far apart, 50,000 x 2,048": dict(n=50_000, d=2048, c=10),
    "large features, 50,000 x 2,048": dict(n=50_000, d=2048, c=10, separation=0.7, gain=10.0),
    "20,000 x 512": dict(n=20_000, d=512, c=10, separation=0.38, noise=0.3),
    "far apart, 20,000 x 512": dict(n=20_000, d=512, c=10, separation=1.0, noise=0.5),
}
QUICK = {f"quick: {name}": spec | dict(n=4000, d=256) for name, spec in PROBLEMS.items()}
