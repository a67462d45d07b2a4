"""The records of appendix ZS: python benchmarks/ctc.py [SEED ...]

Strings of two to four spoken digits, learned by CTC from the network that heard made words and from scratch, with equal
steps and rates, into results/ctc.jsonl. Half a minute of one core for a seed. It needs `sft_nb fetch spoken_digits`.
"""

import sys
import time

import torch
from common import RESULTS, revision

from sft_nb import zoo
from sft_nb.core import set_seed
from sft_nb.sequences import Speller, spell, strings, token_error
from sft_nb.sounds import LogMel
from sft_nb.sources.speech import WIDTH
from sft_nb.sources.spoken import spoken_digits
from sft_nb.store import append_line

if __name__ == "__main__":
    torch.set_num_threads(1)
    r, see = spoken_digits(), LogMel()
    known = r.who < 4
    tests = {"other takes": known & (r.take >= 15), "unseen speakers": ~known}
    asked = {n: strings(r, 150, chosen, 1) for n, chosen in tests.items()}
    for seed in map(int, sys.argv[1:] or range(5)):
        ds, said = strings(r, 200, known & (r.take < 15), 1000 + seed)
        for start in ("hearing", "scratch"):
            set_seed(seed)
            begun = time.process_time()
            model = Speller(zoo.network("hearing", weights=start == "hearing").backbone, WIDTH, 11)
            losses = [*spell(model, see(ds.x), said, 250, seed=seed)]
            error = {n: token_error(model.write(see(d.x)), s) for n, (d, s) in asked.items()}
            row = dict(start=start, seed=seed, steps=250, error=error, loss=sum(losses[-25:]) / 25)
            append_line(RESULTS / "ctc.jsonl", row | dict(seconds=time.process_time() - begun, revision=revision()))
            print(row, flush=True)
