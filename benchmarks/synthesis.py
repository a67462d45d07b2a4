"""The records of appendix ZT: python benchmarks/synthesis.py [SPEAKER ...]

A network that speaks learns five speakers, and the sixth from two recordings each of five words, in four ways and without
a network, with three draws of the words, into results/synthesis.jsonl. Two minutes of one core for a speaker (0 to 5). It
needs `sft_nb fetch spoken_digits`.
"""

import copy
import math
import sys

import numpy as np
import torch
from common import RESULTS, revision

from sft_nb.core import set_seed
from sft_nb.data import Loader
from sft_nb.features import Features, extract
from sft_nb.models import load_pretrained
from sft_nb.probing import solve_head
from sft_nb.sounds import Sounds, to_rows
from sft_nb.sources.spoken import spoken_digits
from sft_nb.store import append_line
from sft_nb.synthesis import ADAPT, Talker, distortions, griffin_lim, pictures, say_all, stretched, teach


def judge(r):
    "Names words by their sound: a head on takes 10 to 19 of everybody, from which nobody learns to speak."
    pre, own = load_pretrained("hearing"), r.take >= 10
    phi = lambda x: (
        extract(pre.backbone, Loader(Sounds(x, torch.zeros(len(x)).long()), 100, pre.transform), engine="eager").x
    )
    head = solve_head(Features(phi(r.x[own]), r.word[own]), 10, 0.01)
    return lambda waves: head.logits(phi(to_rows([torch.as_tensor(w) for w in waves]))).argmax(1)


def without_network(r, new, few):
    "The others' mean pictures and lengths, with the new speaker's mean difference in each band."
    seen = pictures(r.x)
    m, n = torch.stack([stretched(p) for p in seen]), torch.tensor([math.log(p.shape[1]) for p in seen])
    others = [(r.who != new) & (r.word == w) for w in range(10)]
    mean, length = torch.stack([m[o].mean(0) for o in others]), torch.stack([n[o].mean() for o in others])
    offset = (m[few] - mean[r.word[few]]).mean((0, 2))[:, None]
    longer = (n[few] - length[r.word[few]]).mean()
    return [
        stretched(p + offset, round(math.exp(k + longer))).clamp(0, 1.05) for p, k in zip(mean, length, strict=True)
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    r = spoken_digits()
    named = judge(r)
    for new in map(int, sys.argv[1:] or range(6)):
        set_seed(0)
        net = Talker()
        teach(net, r, (r.who != new).nonzero()[:, 0], [*net.parameters()], 700, 2e-3, anyone=new)
        for draw in range(3):
            words = torch.randperm(10, generator=torch.Generator().manual_seed(draw))
            few = ((r.who == new) & torch.isin(r.word, words[:5]) & (r.take < 2)).nonzero()[:, 0]
            real = [pictures(r.x[(r.who == new) & (r.word == w) & (r.take == draw + 2)])[0] for w in range(10)]
            said = {
                "a real take": real,
                "nothing (anyone)": say_all(net, new),
                "no network": without_network(r, new, few),
            }
            for how, (chosen, steps, lr) in ADAPT.items():
                set_seed(draw)
                mine = Talker() if how == "from scratch" else copy.deepcopy(net)
                said[how] = say_all(teach(mine, r, few, chosen(mine), steps, lr), new)
            for how, pics in said.items():
                dB, heard = (
                    np.array(distortions(pics, r, new)),
                    named([griffin_lim(p) for p in pics]) == torch.arange(10),
                )
                seen, unseen = words[:5].tolist(), words[5:].tolist()
                row = dict(speaker=new, draw=draw, how=how, seen=dB[seen].mean(), unseen=dB[unseen].mean())
                row |= dict(
                    named_seen=float(heard[seen].float().mean()), named_unseen=float(heard[unseen].float().mean())
                )
                append_line(RESULTS / "synthesis.jsonl", row | dict(revision=revision()))
            print(new, draw, flush=True)
