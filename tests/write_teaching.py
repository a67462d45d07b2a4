"""What the pages for teachers say, from the notebooks, the map and results/minutes.jsonl; `write_links.py` writes them.

Points follow the solution's length, and minutes of reading the map's: nothing is typed twice.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from notebook import exercises, load, source

ROOT = Path(__file__).resolve().parent.parent

LESSON = [  # minutes, the beginning of a heading of the tour (or of what happens), what happens
    (5, "A photograph", "The two photographs. Everybody writes down what the network will say of the dahlia."),
    (10, "1.", "What a pre-trained network is. Which of these pictures belong together?"),
    (5, "2.", "The five digits are read aloud before the labels are shown."),
    (10, "3.", "The formula at the board; every symbol is a line of code."),
    (15, "4.", "The usual program, typed by the class or run. Then its test accuracy, guessed before it is run."),
    (15, "5.", "The same features at the argmin. Why was the first number so low? This is the hour's surprise."),
    (15, "6.", "Five ways to begin. Each bench defends one of them before the table is shown."),
    (5, "8.", "Where it does not transfer: hue."),
    (10, "Exercises", "The first two, in pairs; the rest is homework."),
]
TERM = [  # the chapters of a week, and what is asked for at its end
    (["00"], "the exercises of the tour"),
    (["01", "02"], "a network, and the proof that it stood still"),
    (["03", "04"], "a classifier of torchvision, taken apart"),
    (["05"], "a claim of somebody else's, judged"),
    (["06", "07"], "a certified head for a task of one's own"),
    (["08", "16"], "thirty photographs of one's own, and what was learned from them"),
    (["09"], "Adam from memory"),
    (["10"], "a fine-tuned network in kilobytes"),
    (["11"], "a strategy as a value"),
    (["12"], "an experiment, designed before it is run"),
    (["13", "14"], "a choice among networks, and what fine-tuning changed in the chosen one"),
    (["17", "18"], "texts or a language model: one of the two"),
    (["19", "22"], "sounds, or the faults of a training by its curves"),
    (["21"], "a plan for a large run, and its price; the projects are shown"),
]
POINTS = ((3, 1), (7, 2), (10**9, 3))  # lines of the solution, at most; points


@dataclass
class Chapter:
    path: Path
    reading: int  # minutes, of the map

    @cached_property
    def nb(self) -> dict:
        return load(self.path)

    @cached_property
    def text(self) -> str:
        return "\n\n".join(source(c) for c in self.nb["cells"] if c["cell_type"] == "markdown")

    @property
    def number(self) -> str:
        return self.path.stem.split("_")[0]

    @property
    def link(self) -> str:
        title = self.text.splitlines()[0].removeprefix("# ")
        return f"[{self.number} {title}]({self.path.name})"

    @cached_property
    def exercises(self) -> list[tuple[int, str, int]]:
        "Number, first paragraph and points of each."
        found, cells = [], [source(c) for c in self.nb["cells"]]
        for e in exercises(self.nb):
            above = cells[cells.index(e.starter) - 1]
            asked = re.search(rf"^\*\*(?:Exercise )?{e.number}\.\*\* *(.+?)(?=\n\n|\Z)", above, re.M | re.S)
            lines = [line for line in e.solution.splitlines() if line.strip()]
            points = next(p for most, p in POINTS if len(lines) <= most)
            found.append((e.number, " ".join(asked[1].split()), points))
        return found

    @property
    def points(self) -> int:
        return sum(p for *_, p in self.exercises)

    @property
    def questions(self) -> str:
        return re.split(r"\n## ", self.text.partition("\n## Questions")[2])[0].strip()


def chapters() -> list[Chapter]:
    "In the order of the map."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[.+?\]\(nbs/(\w+\.ipynb)\) \| (\d+) \|", text, re.M)
    return [Chapter(ROOT / "nbs" / name, int(minutes)) for name, minutes in rows]


def measured() -> dict[str, dict]:
    "The latest record of each chapter that came to its end."
    path = ROOT / "results" / "minutes.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {r["chapter"]: r for r in map(json.loads, lines) if r["ended"]}


def table(head: str, rows: list[str]) -> str:
    return "\n".join([head, re.sub(r"[^|]+", "---", head), *rows])


def lesson(tour: Chapter) -> str:
    headings = re.findall(r"^## (.+)$", tour.text, re.M)
    at = 0
    rows = []
    for minutes, begins, what in LESSON:
        heading = next(h for h in headings if h.startswith(begins))
        plain = re.sub(r"\$.*?\$", "theta_pre", heading)
        rows.append(f"| {at} to {at + minutes} | {plain} | {what} |")
        at += minutes
    assert at == 90, at
    return table("| minutes | of the tour | what happens |", rows)


def term(book: dict[str, Chapter]) -> str:
    rows = []
    for week, (numbers, asked) in enumerate(TERM, 1):
        read = [book[n] for n in numbers]
        minutes, points = sum(c.reading for c in read), sum(c.points for c in read)
        rows.append(f"| {week} | {', '.join(c.link for c in read)} | {minutes} | {points} | {asked} |")
    return table("| week | chapters | minutes of reading | points in exercises | at the end |", rows)


def machines(book: list[Chapter], runs: dict[str, dict]) -> str:
    "One row for each chapter: what it takes on the machine of the records."
    rows = [
        f"| {c.link} | {c.reading} | {r['cpu_s']:.0f} | {r['peak_mb']:,} | {len(c.exercises)} | {c.points} |"
        if (r := runs.get(c.path.stem))
        else f"| {c.link} | {c.reading} | not measured | | {len(c.exercises)} | {c.points} |"
        for c in book
    ]
    head = "| chapter | minutes of reading | CPU seconds | memory, MB | exercises | points |"
    return table(head, rows)


def said_of(runs: dict[str, dict]) -> str:
    "Where the seconds come from."
    if not runs:
        return "Nothing has been measured yet: `python benchmarks/minutes.py`."
    where = sorted({f"{r['machine']['processor']}, torch {r['machine']['versions']['torch']}" for r in runs.values()})
    slow, big = max(runs.values(), key=lambda r: r["cpu_s"]), max(runs.values(), key=lambda r: r["peak_mb"])
    total = sum(r["cpu_s"] for r in runs.values())
    when = sorted({r["when"] for r in runs.values()})
    return (
        f"Measured on {' and '.join(dict.fromkeys((when[0], when[-1])))}, on {'; '.join(where)}, one thread, no GPU: {len(runs)} notebooks, each run whole by `jupyter nbconvert --execute` "
        f"out of a copy that `sft_nb book` had made, with the kernel's start. All of them take {total / 60:.0f} minutes "
        f"of processor time; the longest is {slow['chapter']} with {slow['cpu_s']:.0f} seconds, and the largest is "
        f"{big['chapter']} with {big['peak_mb']:,} MB. The records are `results/minutes.jsonl`; "
        f"`python benchmarks/minutes.py` makes those of another machine. **Not measured:** Colab, Binder, Windows and "
        f"a Mac, and several students on one machine: there, count a core and the memory of the table for each."
    )


def tasks(book: list[Chapter]) -> str:
    parts = []
    for c in book:
        rows = "\n".join(f"{n}. ({p} point{'s' * (p > 1)}) {asked}" for n, asked, p in c.exercises)
        parts.append(f"### {c.link}\n\n{rows}")
    return "\n\n".join(parts)


def teaching(book: list[Chapter], runs: dict[str, dict]) -> str:
    numbered = [c for c in book if c.number.isdigit()]
    by_number = {c.number: c for c in book}
    few, more = POINTS[0][0], POINTS[1][0]
    return f"""# For teachers

> A lesson, a term, exercises with points, what the machines have to bear, slides and questions.

This page is put together from the notebooks by `python tests/write_links.py`, so that it agrees with them.

**Before the first lesson.** Install once where there is a network, as the [first page](index.ipynb) says, or give the
class a wheel and `sft_nb book FOLDER` ([how](ZZF_book.ipynb)): their copies hold no outputs, so no answer is in view
before the prediction. Run the tour once beforehand on the machines of the room. What a class writes stays in its copies.

**What makes the lessons work.** Before most cells stands *Before you run the next cell*: a question. Let everybody write
a number down before anybody presses a key. The numbers that surprise are the lesson; the slides only lead there.

## Ninety minutes

With the [tour](00_tour.ipynb). Section 7 draws the picture that ends it, and is read at home.

{lesson(by_number["00"])}

## A term

Fourteen weeks of one lecture and one exercise. The first six are the core, and make a short course of their own.

{term(by_number)}

## Slides

`make slides` makes slides of the tour with what its cells have shown, in one folder that needs no network: open
`_docs/html/slides/00_tour.html`; the key S shows the speaker's window, and `?print-pdf` behind the address, printed, makes
a PDF. Which cell is a slide stands in the notebook's metadata (JupyterLab: the gear at the right), so that your own copy
of a chapter becomes slides in the same way.

## Questions

The [questions of all chapters](questions.md) in words, with their answers folded, on one page.

## What to expect on which machine

{said_of(runs)}

{machines(book, runs)}

## Exercises and points

Every exercise has a check that answers at once, so points are for what passes it. They follow the length of our solution:
up to {few} lines 1 point, up to {more} lines 2, above that 3. In the numbered chapters there are
{sum(len(c.exercises) for c in numbered)} exercises with {sum(c.points for c in numbered)} points.

{tasks(numbered)}
"""


def questions(book: list[Chapter]) -> str:
    asked = [c for c in book if c.questions]
    parts = "\n\n".join(f"## {c.link}\n\n{c.questions}" for c in asked)
    return f"""# Questions in words

> The questions that end the chapters, with their answers folded: for an oral examination, or for oneself.

Put together from the notebooks by `python tests/write_links.py`. [For teachers](teaching.md) says more.

{parts}
"""


def pages() -> dict[Path, str]:
    "The two pages and what their files are to hold."
    book, runs = chapters(), measured()
    return {ROOT / "nbs" / "teaching.md": teaching(book, runs), ROOT / "nbs" / "questions.md": questions(book)}
