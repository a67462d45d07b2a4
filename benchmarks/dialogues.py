"""What chapter 18 says of mistakes, of made-up countries and of forgetting: python benchmarks/dialogues.py [PART ...]

Parts: mistakes, where, ignorance, breadth, forgetting, reading, published; all but the last if none is named. Each line of
results/dialogues.jsonl is a measurement of one draw (seed) of 65 pairs; what stands there already is not measured again.
The last one needs `sft_nb fetch smollm2` and ten minutes; `reading` pre-trains five more networks, half an hour.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir

import torch
from common import RESULTS

from sft_nb.core import set_seed
from sft_nb.countries import FIELDS, documents, made_up, part, questions, statement, value
from sft_nb.data import Examples, Loader, few_shot, load_split, shuffled
from sft_nb.language import IGNORE, TURN, Dialogues, dialogue, exact, pack, write
from sft_nb.models import adapt, load_pretrained, load_theta
from sft_nb.peft import add_lora, interpolate
from sft_nb.sources.language import LENGTH, Size, as_dialogues, as_theta, pretrain, reading, untrained
from sft_nb.store import load, save
from sft_nb.strategies import FULL, Phase, run_phases, scaled
from sft_nb.texts import to_texts

FILE, SEEDS = RESULTS / "dialogues.jsonl", range(3)


def noted() -> set:
    lines = FILE.read_text(encoding="utf-8").splitlines() if FILE.exists() else []
    return {(r["what"], r["seed"]) for r in map(json.loads, lines)}


def note(what: str, seed: int, f: Callable[[], dict]) -> None:
    "Measure, unless it was, and write it down."
    if (what, seed) not in noted():
        row = dict(what=what, seed=seed) | {k: round(v, 4) if isinstance(v, float) else v for k, v in f().items()}
        print(row, flush=True)
        with open(FILE, "a", encoding="utf-8") as out:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def ready(x):
    "Batches of tensors that are made already."
    return Examples(x, torch.zeros(len(x), dtype=torch.int64))


def tune(pre, ds, seed, lr=3e-4, total=100, batch=16, transform=None, phases=FULL, change=None):
    "A copy of theta_pre after a hundred steps."
    set_seed(seed)
    model = adapt(pre, 5)
    if change is not None:
        change(model)
    dl = Loader(ds, batch, transform or pre.transform, shuffle=True, seed=seed)
    list(run_phases(model, dl, scaled(phases, lr, max(1, round(total / len(dl))))))
    return model


def completions(tokens, countries):
    "Statements up to their fact, and the fact as the label."
    facts = [(statement(c, f), " " + value(c, f)) for c in countries for f in FIELDS]
    return tokens.ending([s.removesuffix(v) for s, v in facts], [v for _, v in facts])


class World:
    "The sets that every model is asked."

    def __init__(self, pre, task="countries"):
        self.pre, self.tokens, self.task = pre, pre.transform, load_split(task)
        rows = lambda ds: Loader(ds, 100, self.tokens)
        self.test, self.new = rows(self.task.test), rows(load_split("countries_new").test)
        known = pack(self.tokens.encode(documents(220, 10_001))[:, :, :LENGTH], LENGTH)
        self.text = Loader(ready(known), 50, lambda x: x)
        self.facts = Loader(ready(completions(self.tokens, part("test"))), 100, lambda x: x)

    def few(self, seed, shots=13):
        return few_shot(self.task.train, shots, seed)

    def measure(self, model) -> dict:
        share = lambda dl: float(exact(model, dl).float().mean())
        return dict(
            exact=share(self.test), new=share(self.new), text=model.mean_loss(self.text), facts=share(self.facts)
        )

    def written(self, model, start=None, n=100) -> dict:
        "What it writes after each start: how much of it is right, begins rightly, never ends."
        some = self.task.test[torch.arange(0, len(self.task.test), len(self.task.test) // n)]
        pairs = [t.split(TURN) for t in to_texts(some.x)]
        starts = [start(q) if start else self.tokens.prompt(q) for q, _ in pairs]
        end = self.tokens.pieces.special["<end>"]
        out = write(model, starts, end)
        want = [self.tokens.pieces.encode(" " + a) for _, a in pairs]
        both = list(zip(out, want, strict=True))
        return dict(
            right=sum(w.ended and w.ids == a for w, a in both) / len(both),
            begins=sum(w.ids[: len(a)] == a for w, a in both) / len(both),
            runs_on=sum(not w.ended for w in out) / len(out), said=self.tokens.pieces.decode(out[0].ids),
        )  # fmt: skip


def left(x):
    "Rows filled up on the left."
    sizes = ((x[:, 0] != 0) * torch.arange(1, x.shape[2] + 1)).amax(1)
    return torch.stack([r.roll(x.shape[2] - int(n), 1) for r, n in zip(x, sizes, strict=True)])


def mistakes(pre):
    world = World(pre)
    tokens, mark = pre.transform, pre.transform.pieces.special
    for seed in SEEDS:
        few = world.few(seed)
        x = tokens(few.x)
        right = tune(pre, few, seed)

        def trained(what, x, after=None, seed=seed, x_right=x, **kw):
            "A model that learned from these rows, judged on the right ones."

            def run():
                model = tune(pre, ready(x), seed, transform=lambda b: b, **kw)
                model.backbone.separate = True
                told = dict(trained=model.mean_loss(Loader(ready(x), 50, lambda b: b)))
                return told | world.measure(model) | world.written(model)

            note(what, seed, run)

        trained("none", x)
        whole = x.clone()
        whole[:, 1, :-1] = torch.where(x[:, 0, 1:] != 0, x[:, 0, 1:], IGNORE)
        trained("loss on the prompt too", whole)
        no_end = x.clone()
        no_end[:, 1][x[:, 1] == mark["<end>"]] = IGNORE
        trained("no end mark in the labels", no_end)
        twice = torch.full_like(x[:, 1], IGNORE)
        twice[:, :-1] = x[:, 1, 1:]
        trained("labels shifted twice", torch.stack([x[:, 0], twice], 1))
        unshifted = torch.full_like(x[:, 1], IGNORE)
        unshifted[:, 1:] = x[:, 1, :-1]
        trained("labels not shifted", torch.stack([x[:, 0], unshifted], 1))
        joint = lambda m: setattr(m.backbone, "separate", False)
        trained("left padding without a mask, in training", left(x), change=joint)
        packed = pack(x, LENGTH)
        trained("packed, documents apart", packed, batch=3)
        trained("packed, documents see each other", packed, batch=3, change=joint)
        for lr in (1e-3, 3e-3, 1e-2):
            trained(f"rate {lr:g}", x, lr=lr)
        for total in (20, 300):
            trained(f"{total} steps", x, total=total)

        def at_left(separate, right=right):
            dl = Loader(ready(left(tokens(world.task.test.x))), 100, lambda b: b)
            right.backbone.separate = separate
            share = float(exact(right, dl).float().mean())
            right.backbone.separate = True
            return dict(exact=share)

        note("left padding without a mask, when asked", seed, lambda: at_left(False))
        note("left padding with a mask, when asked", seed, lambda: at_left(True))
        line = tokens.pieces.encode("\n")
        starts = {
            "as trained": tokens.prompt,
            "a line break after <assistant>": lambda q, line=line: tokens.prompt(q) + line,
            "no <assistant>": lambda q: tokens.prompt(q)[:-1],
            "plain text, no marks": tokens.opening,
            "the question in small letters": lambda q: tokens.prompt(q.lower()),
            "<bos> twice": lambda q: [mark["<bos>"], *tokens.prompt(q)],
            "no <bos>": lambda q: tokens.prompt(q)[1:],
        }
        for name, start in starts.items():
            note(f"asked: {name}", seed, lambda start=start, right=right: world.written(right, start))


def where(pre):
    "Which numbers learn, at 65 pairs; the rates were chosen on other pairs."
    world = World(pre)
    two = torch.zeros(len(pre.backbone.embed.weight), 1)
    two[[pre.transform.pieces.special[m] for m in ("<user>", "<assistant>")]] = 1

    def rows(model):
        model.backbone.embed.weight.register_hook(lambda g: g * two)

    lora = lambda r, *where: lambda m: add_lora(m, r, 2 * r, *where)
    qv = ("backbone.*.q", "backbone.*.v")
    phase = lambda *names: (Phase(names, 20, 1e-3, schedule="one_cycle"),)
    ways = {
        "norm gains": (phase("backbone.*norm*"), 3e-2, None), "two vectors": (phase("backbone.embed.*"), 3e-2, rows),
        "LoRA 4 on q, v": (phase("*.lora_[AB]"), 1e-2, lora(4, *qv)), "LoRA 8 on q, v": (phase("*.lora_[AB]"), 1e-2, lora(8, *qv)),
        "LoRA 4 everywhere": (phase("*.lora_[AB]"), 3e-3, lora(4)), "head, by Adam": (phase("head.*"), 3e-3, None),
    }  # fmt: skip
    for seed in SEEDS:
        for name, (phases, lr, change) in ways.items():

            def run(phases=phases, lr=lr, change=change, name=name, seed=seed):
                model = tune(pre, world.few(seed), seed, lr, phases=phases, change=change)
                n = (
                    2 * model.head.in_features
                    if name == "two vectors"
                    else sum(p.numel() for p in model.parameters() if p.requires_grad)
                )
                return dict(numbers=n) | world.measure(model)

            note(f"where: {name}", seed, run)


def asked(model, tokens, countries):
    "What it says of countries, and how sure it is."
    qs = questions(countries, (0,))
    out = write(model, [tokens.prompt(q) for q, *_ in qs], tokens.pieces.special["<end>"], 12)
    said = [tokens.pieces.decode(w.ids).strip() for w in out]
    sure = torch.tensor([w.probability for w in out])
    known = {f: {value(c, f) for c in part("test", "train", "valid", "unread")} for f in FIELDS}
    return dict(
        right=sum(s == a for s, (_, a, _) in zip(said, qs, strict=True)) / len(qs),
        formed=sum(s in known[f] for s, (*_, f) in zip(said, qs, strict=True)) / len(qs),
        refused=sum(s == NO for s in said) / len(qs), median=float(sure.median()), sure=float((sure > 0.9).float().mean()),
        said=[(q, s, round(float(p), 2)) for (q, *_), s, p in list(zip(qs, said, sure, strict=True))[:4]],
    )  # fmt: skip


NO = "I do not know"


def ignorance(pre):
    world, fiction = World(pre), made_up(60)
    for seed in SEEDS:
        few = world.few(seed)
        model = tune(pre, few, seed)
        for name, cs in (("read", part("test")), ("never read", part("unread")), ("made up", fiction)):
            note(f"asked about {name}", seed, lambda cs=cs, model=model: asked(model, pre.transform, cs))
        refusals = [dialogue(q, NO) for q, *_ in questions(fiction[:30])]
        for k in (4, 16, 64, 128):
            drawn = [refusals[i] for i in shuffled(len(refusals), seed)[:k].tolist()]
            texts = to_texts(few.x)

            def run(drawn=drawn, texts=texts, seed=seed):
                m = tune(
                    pre,
                    Dialogues(texts + drawn, torch.zeros(len(texts) + len(drawn), dtype=torch.int64)),
                    seed,
                    total=150,
                )
                told = {
                    n: asked(m, pre.transform, cs)
                    for n, cs in (("read", part("test")), ("never", part("unread")), ("made", fiction[30:]))
                }
                return dict(
                    exact=told["read"]["right"],
                    false=told["read"]["refused"],
                    never=told["never"]["refused"],
                    made=told["made"]["refused"],
                )

            note(f"{k} refusals", seed, run)
        for share in (0.5, 1.0):  # facts that theta_pre has never read
            new = as_dialogues(questions(part("unread")))
            k = round(share * len(few))
            x = to_texts(new[shuffled(len(new), seed)[:k]].x) + to_texts(few[shuffled(len(few), seed)[k:]].x)
            note(
                f"{share:g} new facts",
                seed,
                lambda x=x, seed=seed: world.measure(
                    tune(pre, Dialogues(x, torch.zeros(len(x), dtype=torch.int64)), seed, total=300)
                ),
            )


def breadth(pre):
    world = World(pre)
    for seed in SEEDS:
        for k in (1, 2, 3, 4):
            kinds = random.Random(seed).sample(range(5), k)
            ds = world.task.train
            on = torch.stack([ds.y == f for f in kinds]).any(0).nonzero()[:, 0]

            def run(on=on, kinds=kinds, ds=ds, seed=seed):
                hit = exact(tune(pre, ds[on[shuffled(len(on), seed)[:65]]], seed), world.test)
                seen = torch.stack([world.task.test.y == f for f in kinds]).any(0)
                return dict(
                    kinds=[FIELDS[f] for f in kinds],
                    seen=float(hit[seen].float().mean()),
                    unseen=float(hit[~seen].float().mean()),
                )

            note(f"{k} kinds of question", seed, run)


def forgetting(pre):
    world, old = World(pre), Dialogues(documents(400, 777), torch.zeros(400, dtype=torch.int64))
    base = adapt(pre, 5)
    note("theta_pre", 0, lambda: world.measure(base))
    for seed in SEEDS:
        few = world.few(seed)
        for lr in (3e-4, 1e-3):
            model = tune(pre, few, seed, lr)
            for a in (0.25, 0.5, 0.75, 1.0):
                mixed = lambda a=a, model=model: world.measure(
                    load_theta(adapt(pre, 5), interpolate(base.state_dict(), model.state_dict(), a))
                )
                note(f"rate {lr:g}, {a:g} of the way", seed, mixed)
            g = torch.Generator().manual_seed(seed)

            def replay(model, x, y, logits, g=g):
                xo = pre.transform(old.x[torch.randint(len(old), (4,), generator=g)])
                return model.loss(x, y, logits) + model.loss(xo, None, model(xo))

            phases = (Phase(("*",), 20, 1e-3, schedule="one_cycle", loss=replay),)
            note(
                f"rate {lr:g}, old texts beside",
                seed,
                lambda few=few, lr=lr, seed=seed, phases=phases: world.measure(tune(pre, few, seed, lr, phases=phases)),
            )


def reading_part(_):
    "Other theta_pre: other seeds, and other forms of D_pre with the same facts."
    keep = Path(gettempdir()) / "sft_nb-language"
    keep.mkdir(exist_ok=True)
    for mix, seed_pre in (("headed", 1), ("headed", 2), ("plain", 0), ("diverse", 0)):
        path = keep / f"{mix}-{seed_pre}.safetensors"
        names = [f"{mix} {seed_pre}: {t}" for t in ("countries", "countries_sentences")]
        if {(n, s) for n in names for s in SEEDS} <= noted():
            continue
        ds, tokens = reading(seed_pre, mix)
        model = untrained(size := Size(len(tokens.pieces)))
        if path.exists():
            load_theta(model, load(path)[0])
        else:
            for model, _ in pretrain(ds, size, seed_pre):  # noqa: B007  (the last one)
                pass
            save(path, model.state_dict(), dict(kind="theta"))
        pre = as_theta(model.eval(), tokens, f"{mix}-{seed_pre}")
        for name, task in zip(names, ("countries", "countries_sentences"), strict=True):
            world = World(pre, task)
            for seed in SEEDS:
                note(
                    name,
                    seed,
                    lambda world=world, pre=pre, seed=seed: (
                        dict(before=world.measure(adapt(pre, 5))["facts"])
                        | world.measure(tune(pre, world.few(seed), seed))
                    ),
                )
    pre = load_pretrained("pocket-lm")
    world = World(pre, "countries_sentences")
    for seed in SEEDS:
        note("headed 0: countries_sentences", seed, lambda seed=seed: world.measure(tune(pre, world.few(seed), seed)))


def published(_):
    "SmolLM2 on the same pairs, in whole sentences: LoRA on q and v."
    pre = load_pretrained("smollm2")
    task = load_split("countries_sentences")
    test = task.test[shuffled(400, 0)[:100]]
    dl, text = Loader(test, 10, pre.transform), pre.transform.encode([t for t in documents(40, 5)])

    def measure(model):
        hit = exact(model, dl)
        kinds = {f: float(hit[test.y == k].float().mean()) for k, f in enumerate(FIELDS)}
        return dict(exact=float(hit.float().mean())) | kinds | dict(text=model.mean_loss([(text, None)]))

    note("published, before", 0, lambda: measure(adapt(pre, 5)))
    phases = (Phase(("*.lora_[AB]",), 3, 5e-4, schedule="one_cycle"),)
    for seed in SEEDS:
        few = few_shot(task.train, 13, seed)
        add = lambda m: add_lora(m, 8, 16, "backbone.*.q", "backbone.*.v")
        note(
            "published, LoRA 8 on q, v, 65 pairs",
            seed,
            lambda few=few, seed=seed, add=add: measure(tune(pre, few, seed, 5e-4, 27, 8, phases=phases, change=add)),
        )


PARTS = dict(mistakes=mistakes, where=where, ignorance=ignorance, breadth=breadth, forgetting=forgetting, reading=reading_part, published=published)  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or [*PARTS][:-1]:
        PARTS[name](load_pretrained("pocket-lm"))
