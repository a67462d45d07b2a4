"The notebooks as a reader meets them: JupyterLab in a real browser (`make test-browser`)."

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile
from scipy.signal import resample_poly

from sft_nb.data import load_split
from sft_nb.records import Config, known_names
from sft_nb.sounds import RATE, to_waves
from sft_nb.sources import text
from sft_nb.sources.lite import is_here
from sft_nb.sources.speech import made_digits
from sft_nb.texts import to_texts

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "only-for-this-test"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("processes")]


def _ready(url, patience=60):
    "Wait until the server answers."
    end = time.monotonic() + patience
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder, whose book/nbs the browser sees."
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def lab(place):
    "The address of a JupyterLab of its own, over a copy of the notebooks."
    skip = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".pytest_cache", ".hypothesis")
    for name in ("nbs", "results", "sft_nb"):
        shutil.copytree(ROOT / name, place / "book" / name, ignore=skip)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    env = os.environ | {f"JUPYTER_{k}": str(place / v) for k, v in own.items()}
    env |= {f"JUPYTERLAB_{k}_DIR": str(place / k.lower()) for k in ("SETTINGS", "WORKSPACES")}
    env |= {"PYTHONPATH": str(place / "book"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    env.pop("MPLBACKEND", None)
    command = f"-m jupyterlab --no-browser --ip=127.0.0.1 --port={port} --allow-root --ServerApp.port_retries=0"
    command += f" --config={ROOT / 'lab_config.py'}"  # that of `make lab`, which says how large an upload may be
    command += f" --IdentityProvider.token={TOKEN} --ServerApp.root_dir={place / 'book' / 'nbs'}"
    with open(
        place / "log", "w"
    ) as log:  # in a folder without notebooks, so that the file signs none: see the first test
        server = subprocess.Popen([sys.executable, *command.split()], cwd=place, env=env, stdout=log, stderr=log)
        try:
            _ready(f"http://127.0.0.1:{port}/api/status?token={TOKEN}")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(60)  # it ends its kernels first
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium, or set CHROMIUM to its path")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -c constraints.txt -e '.[browser]'")
    with sync_api.sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chrome
        chrome.close()


def tell(what):
    "A line at once: these tests take minutes, and nobody likes to wait before an empty screen."
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


ASKED = ".jp-Dialog button.jp-mod-accept"


def menu(page, *names):
    "A menu, and an entry of it."
    page.click(f'.lm-MenuBar-item:has-text("{names[0]}")')
    for name in names[1:]:
        page.locator(".lm-Menu-item", has_text=re.compile(rf"^{re.escape(name)}$")).first.click()


def idle(page, seconds):
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=1000 * seconds)


def opened(browser, lab, name):
    "A notebook in a page, its kernel idle."
    tell(f"opening {name}")
    page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.goto(f"{lab}/lab/tree/{name}?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    idle(page, 60)
    page.wait_for_timeout(1500)  # earlier than that, Run All asks which kernel to take
    return page


def run_all(page, lab, name, seconds=300):
    "Run > Run All Cells, save, and the notebook as it was then stored."
    tell(f"running all cells of {name}")
    menu(page, "Run", "Run All Cells")
    end = time.monotonic() + 60
    while not page.locator('.jp-Notebook-ExecutionIndicator[data-status="busy"]').count():
        if page.locator(ASKED).count():  # on a slow machine, which kernel to take: the one that it names
            page.locator(ASKED).first.click()
        assert time.monotonic() < end, f"{name} does not begin to run"
        page.wait_for_timeout(100)
    page.wait_for_timeout(1000)
    idle(page, seconds)
    page.keyboard.press("Control+s")
    page.wait_for_timeout(3000)
    return nbformat.reads(_ready(f"{lab}/files/{name}?token={TOKEN}").decode(), 4)


def errors(nb):
    return [o.evalue for c in nb.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]


def not_run(nb):
    return [c.id for c in nb.cells if c.cell_type == "code" and c.source.strip() and not c.execution_count]


def shown(page, selector):
    "The first such element, scrolled to; cells far away are not in the page, so look for it from the top down."
    page.locator(".jp-WindowedPanel-outer").first.evaluate("e => e.scrollTop = 0")
    for _ in range(200):
        if page.locator(selector).count():
            found = page.locator(selector).first
            found.scroll_into_view_if_needed()
            return found
        page.locator(".jp-WindowedPanel-outer").first.evaluate("e => e.scrollTop += 400")
        page.wait_for_timeout(120)
    raise AssertionError(f"the notebook shows no {selector}")


def theme(page, name):
    page.click('.lm-MenuBar-item:has-text("Settings")')
    page.locator(".lm-Menu-item", has_text=re.compile("^Theme$")).first.hover()
    page.locator(".lm-Menu-item", has_text=re.compile(f"^JupyterLab {name}$")).first.click()
    light = str(name == "Light").lower()
    page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")
    page.wait_for_timeout(1000)


LOOKS = [(1400, "Light"), (800, "Light"), (800, "Dark"), (1400, "Dark")]  # a window of 800 is one of 1,600 at 200 %
AXE = """async box => (await axe.run(box, {resultTypes: ['violations']})).violations
  .filter(v => ['serious', 'critical'].includes(v.impact)).map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200))])"""
WIDE = """e => { const out = e.closest('.jp-OutputArea-output');
  return [...out.querySelectorAll('.widget-vbox'), out].filter(e => e.scrollWidth > e.clientWidth + 1).length }"""
SHORT = """e => [...e.querySelectorAll('.slider-container, input, select')].filter(c => c.checkVisibility())
  .map(c => c.getBoundingClientRect().width).filter(width => width < 60).length"""


def sized(page, width):
    page.set_viewport_size({"width": width, "height": 1000})
    page.wait_for_timeout(1000)


def looked_at(page, tmp_path, **selectors):
    "Each widget in two widths and two themes: nothing serious to axe, no scroll bar below it, no control squeezed."
    pytest.importorskip("axe_playwright_python", reason="pip install -c constraints.txt -e '.[browser]'")
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    for width, name in LOOKS:
        sized(page, width)
        theme(page, name)
        for what, selector in selectors.items():
            tell(f"looking at the {what}, {width} pixels wide, {name.lower()}")
            box = shown(page, selector)
            page.wait_for_timeout(2500)  # names come a moment after the drawing
            page.screenshot(path=tmp_path / f"{what}-{width}-{name}.png")
            assert not box.evaluate(AXE), (what, width, name)
            assert not box.evaluate(WIDE) and not box.evaluate(SHORT), (what, width, name)
    sized(page, 1400)
    theme(page, "Light")


@pytest.mark.parametrize("name", ["F_widgets.ipynb", "22_dashboard.ipynb"])
def test_before_anything_is_run_the_pictures_are_there(browser, lab, name):
    "A notebook just downloaded is not trusted: JupyterLab shows its PNG, and no SVG. First of all, for it runs nothing."
    page = opened(browser, lab, name)
    assert shown(page, ".jp-OutputArea-output img").bounding_box()["width"] > 100
    page.context.close()


def test_the_tour_runs_in_a_browser(browser, lab, tmp_path):
    page = opened(browser, lab, "00_tour.ipynb")
    nb = run_all(page, lab, "00_tour.ipynb")
    for width, name in LOOKS:
        sized(page, width)
        theme(page, name)
        page.screenshot(path=tmp_path / f"tour-{width}-{name}.png")
    assert not errors(nb) and not not_run(nb)


SLIDERS = ".sft-box:has(.widget-slider):has(svg)"
CONTROLS = ".sft-box:has(select):has(pre)"
PANEL = '.sft-box:has(button:has-text("Forecast"))'
LP_FT = f'{PANEL}:has(code:has-text("lp_ft"))'  # the one that the reader sets
STRATEGIES = list(known_names(Config.__dataclass_fields__["strategy"]))


def test_a_slider_is_moved_by_its_keys(browser, lab, tmp_path):
    page = opened(browser, lab, "F_widgets.ipynb")
    nb = run_all(page, lab, "F_widgets.ipynb")
    assert not errors(nb) and not not_run(nb)
    box = shown(page, SLIDERS)
    before = box.locator("svg").first.inner_html()
    handle = box.locator(".noUi-handle").first
    assert "lr = 0.3" in before and handle.get_attribute("aria-label") == "lr"  # where its cell put it, and with a name
    handle.focus()
    for key in ("ArrowRight", "ArrowUp"):
        for _ in range(5):
            handle.press(key)
    page.wait_for_timeout(1000)
    assert "lr = 0.8" in box.locator("svg").first.inner_html()
    handle.focus()
    assert page.evaluate("() => document.activeElement.getAttribute('role')") == "slider"
    looked_at(page, tmp_path, sliders=SLIDERS)


def test_a_keyboard_sets_the_controls(browser, lab, tmp_path):
    page = opened(browser, lab, "Z_controls.ipynb")
    nb = run_all(page, lab, "Z_controls.ipynb")
    assert not errors(nb) and not not_run(nb)
    looked_at(page, tmp_path, controls=CONTROLS)
    field = lambda name, kind: shown(page, f'.jupyter-widgets:has(> label:text-is("{name}")) {kind}')
    strategy = field("strategy", "select")
    assert strategy.input_value() == "full"
    page.wait_for_timeout(2500)
    strategy.focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_timeout(500)
    assert strategy.input_value() == STRATEGIES[STRATEGIES.index("full") - 1]
    assert page.evaluate("() => document.activeElement.tagName") == "SELECT"  # and not another cell
    shots = field("shots", "input")
    shots.fill("")
    shots.focus()
    page.keyboard.type("1.5")
    page.keyboard.press("Enter")
    shown(page, "text=shots must be a whole number from 1 to 100000; got 1.5")
    assert shots.input_value() == "1.5" and not page.locator("text=sft_nb run").count()


def press(page, box, name):
    box.locator("button", has_text=name).first.click()


def state(box):
    return box.locator('b[role="status"]').first.inner_text()


def until(page, box, word, seconds=60):
    "Seconds until the panel's state says this word."
    start = time.perf_counter()
    while word not in state(box):
        assert time.perf_counter() - start < seconds, f"the panel says {state(box)!r} and never {word!r}"
        page.wait_for_timeout(20)
    return time.perf_counter() - start


LOOK = """e => { window.redraws = 0;
  new MutationObserver(m => window.redraws += 1).observe(e, {childList: true, subtree: true, characterData: true}) }"""


SCROLLED = "() => document.querySelector('.jp-WindowedPanel-outer').scrollTop"
SIDEWAYS = """e => [e.closest('.jp-WindowedPanel-outer'), e.closest('.jp-OutputArea-output'),
  ...e.querySelectorAll('.widget-box')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.className)"""
PLACES = """e => { const page = document.querySelector('.jp-WindowedPanel-outer').getBoundingClientRect();
  const place = c => { const r = c.getBoundingClientRect();
    return {left: r.left, right: r.right, top: r.top, bottom: r.bottom, in: r.top >= page.top && r.bottom <= page.bottom} };
  return [':scope input, :scope select', ':scope svg'].map(s => [...e.querySelectorAll(s)].map(place)) }"""


def one_screen(page, panel):
    "Where there is room, all controls stand beside both curves, in the window at once; else above them."
    for width, aside, beside in ((1400, True, True), (1000, False, True), (800, False, False), (800, True, False)):
        sized(page, width)
        if (
            page.locator(".jp-DirListing").is_visible() is not aside
        ):  # the file browser takes a third of a narrow window
            page.keyboard.press("Control+b")
            page.wait_for_timeout(1000)
        panel.evaluate("e => e.scrollIntoView()")
        controls, curves = panel.evaluate(PLACES)
        assert len(controls) == len(fields(Config)) and len(curves) == 2
        where = (width, aside, controls, curves)
        if beside:
            assert max(c["right"] for c in controls) < min(c["left"] for c in curves), where
            assert all(c["in"] for c in controls + curves), where  # a change and its effect are seen together
        else:
            assert max(c["bottom"] for c in controls) < min(c["top"] for c in curves), where
        assert not panel.evaluate(SIDEWAYS), where
    sized(page, 1400)


def test_the_dashboard_trains_pauses_and_stops(browser, lab, tmp_path):
    page = opened(browser, lab, "22_dashboard.ipynb")
    nb = run_all(page, lab, "22_dashboard.ipynb")
    assert not errors(nb) and not not_run(nb)
    panel = shown(page, LP_FT)
    for _ in range(6):  # cells above, once they are drawn, push it down again
        panel.evaluate("e => e.scrollIntoView()")
        page.wait_for_timeout(300)
    seen_at = page.evaluate(SCROLLED)
    epochs = panel.locator('.jupyter-widgets:has(> label:text-is("epochs")) input')
    epochs.fill("2000")
    epochs.press("Enter")
    panel.evaluate(LOOK)
    press(page, panel, "Start")
    until(page, panel, "running")
    assert "epochs=2000" in panel.locator("code").first.inner_text() and "under way" in panel.inner_text()
    page.wait_for_timeout(1500)
    rate = page.evaluate("() => window.redraws") / 1.5
    press(page, panel, "Pause")
    paused = until(page, panel, "paused")
    press(page, panel, "Continue")
    until(page, panel, "running")
    press(page, panel, "Stop")
    stopped = until(page, panel, "stopped")
    print(
        f"\nPause shown after {1000 * paused:.0f} ms, Stop after {1000 * stopped:.0f} ms, {rate:.1f} redraws a second"
    )
    assert stopped < 3 and rate > 0.5
    assert page.evaluate("() => document.activeElement.textContent") == "Stop"  # the focus stays where it was
    assert page.evaluate(SCROLLED) == seen_at  # set, started, watched, stopped on one screen
    looked_at(page, tmp_path, panel=LP_FT)
    panel = shown(page, LP_FT)
    one_screen(page, panel)
    press(page, panel, "Continue")
    until(page, panel, "running")
    menu(page, "Kernel")
    page.locator('.lm-Menu-item[data-command="kernelmenu:restart"]').first.click()
    page.locator(ASKED).first.click()
    panel.locator("text=The kernel of this panel has").wait_for(timeout=30_000)
    assert not panel.locator("text=running").is_visible() and not panel.locator("text=s left").is_visible()


OWN = '.widget-vbox:has(> .widget-hbox button:has-text("Learn"))'


def upload(page, box, button, path):
    "Choose a file in the dialog that the button opens."
    with page.expect_file_chooser() as chooser:
        press(page, box, button)
    chooser.value.set_files(path)


def test_own_pictures_are_uploaded_learned_and_named(browser, lab, tmp_path):
    page = opened(browser, lab, "08_pictures.ipynb")
    nb = run_all(page, lab, "08_pictures.ipynb")
    assert not errors(nb) and not not_run(nb)
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as z:
        for name, colour in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
            for i in range(8):
                Image.new("RGB", (40, 30), tuple(v + 5 * i for v in colour)).save(tmp_path / "one.png")
                z.write(tmp_path / "one.png", f"mine/{name}/{i}.png")
        z.writestr("mine/notes.txt", os.urandom(12 * 2**20))  # beyond the 10 MiB at which a plain Jupyter hangs up
    own = shown(page, OWN)
    upload(page, own, "or a zip", tmp_path / "mine.zip")
    page.wait_for_timeout(1500)
    press(page, own, "Learn")
    own.locator("text=learned blue, red").first.wait_for(timeout=60_000)
    upload(page, own, "A new picture", tmp_path / "one.png")
    own.locator("text=this looks like blue").first.wait_for(timeout=20_000)
    page.screenshot(path=tmp_path / "own.png")


def notebook(place, name, source):
    "A notebook of one cell, where the browser sees it."
    cell = nbformat.v4.new_code_cell(source)
    python = dict(name="python3", display_name="Python 3", language="python")
    nb = nbformat.v4.new_notebook(cells=[cell], metadata=dict(kernelspec=python))
    nbformat.write(nb, place / "book" / "nbs" / name)


def clothes(folder, kinds=("hat", "shoes", "t-shirt"), each=10):
    "A folder with so many photographs of each of three kinds of clothes, and one more, of shoes."
    try:
        task = load_split("clothing")
    except OSError as e:
        pytest.skip(str(e))
    picture = lambda x: Image.fromarray(x.permute(1, 2, 0).numpy())
    for name in kinds:
        (folder / name).mkdir(parents=True)
        for k, x in enumerate(task.train.x[task.train.y == task.classes.index(name)][:each]):
            picture(x).save(folder / name / f"IMG_{k}.jpg", quality=95)
    picture(task.test.x[task.test.y == task.classes.index("shoes")][0]).save(folder.parent / "new.jpg")


TWO_LINES = "from sft_nb.pictures import OwnPictures\nOwnPictures()"


def test_ten_photographs_of_three_kinds_are_learned_in_a_notebook_of_two_lines(browser, lab, place, tmp_path):
    if not is_here("efficientnet_lite0"):
        pytest.skip("the weights of efficientnet_lite0 are not here: sft_nb fetch efficientnet_lite0")
    clothes(tmp_path / "clothes")
    notebook(place, "two_lines.ipynb", TWO_LINES)
    page = opened(browser, lab, "two_lines.ipynb")
    assert not errors(run_all(page, lab, "two_lines.ipynb"))
    own = shown(page, OWN)
    own.locator("input").first.fill(str(tmp_path / "clothes"))
    own.locator("input").first.press("Enter")
    press(page, own, "Learn")
    own.locator("text=learned hat, shoes, t-shirt").first.wait_for(timeout=120_000)
    assert "judged by 5-fold cross-validation on all 30 pictures" in own.inner_text()
    assert "trained on ImageNet" in own.inner_text()
    page.screenshot(path=tmp_path / "learned.png", full_page=True)
    upload(page, own, "A new picture", tmp_path / "new.jpg")
    own.locator("text=this looks like shoes").first.wait_for(timeout=20_000)
    page.screenshot(path=tmp_path / "named.png")
    looked_at(page, tmp_path, own=OWN)


CHOSEN = """from sft_nb.controls import controls
from sft_nb.dashboard import Panel
Panel(controls())"""


def test_a_text_task_is_chosen_and_trained_and_its_sentences_are_shown(browser, lab, place, tmp_path):
    if not text.is_here():
        pytest.skip("the weights of minilm are not here: sft_nb fetch minilm")
    notebook(place, "text_panel.ipynb", CHOSEN)
    page = opened(browser, lab, "text_panel.ipynb")
    assert not errors(run_all(page, lab, "text_panel.ipynb"))
    panel = shown(page, PANEL)
    field = lambda name: panel.locator(f'.jupyter-widgets:has(> label:text-is("{name}"))').locator("input, select")
    for name, value in (("pretrained", "minilm"), ("task", "chart"), ("epochs", "2")):
        field(name).fill(value)
        field(name).press("Enter")
    field("strategy").select_option("bitfit")
    panel.locator("text=sft_nb run").wait_for(timeout=30_000)  # what is chosen fits together
    press(page, panel, "Start")
    until(page, panel, "finished", 120)
    page.wait_for_timeout(1500)
    page.screenshot(path=tmp_path / "text-trained.png")
    assert "accuracy on validation texts" in panel.inner_text() and panel.locator("li q").count() == 8
    looked_at(page, tmp_path, texts=PANEL)


def test_a_typed_sentence_gets_its_classes(browser, lab, place, tmp_path):
    if not text.is_here():
        pytest.skip("the weights of minilm are not here: sft_nb fetch minilm")
    task = load_split("chart")
    rows = zip(to_texts(task.train.x), task.train.y.tolist(), strict=True)
    (tmp_path / "mine.csv").write_text(
        "text,label\n" + "".join(f'"{t}",{task.classes[y]}\n' for t, y in rows), encoding="utf-8"
    )
    notebook(place, "own_texts.ipynb", "from sft_nb.own_texts import OwnTexts\nOwnTexts()")
    page = opened(browser, lab, "own_texts.ipynb")
    assert not errors(run_all(page, lab, "own_texts.ipynb"))
    own = shown(page, OWN)
    own.locator("input").first.fill(str(tmp_path / "mine.csv"))
    own.locator("input").first.press("Enter")
    press(page, own, "Learn")
    own.locator("text=learned animals").first.wait_for(timeout=120_000)
    typed = own.locator('.jupyter-widgets:has(> label:text-is("a new text")) input')
    typed.fill("a brown bear")
    typed.press("Enter")
    own.locator("text=this reads like animals").first.wait_for(timeout=20_000)
    page.screenshot(path=tmp_path / "own-texts.png", full_page=True)
    looked_at(page, tmp_path, own_texts=OWN)


ASKING = '.widget-vbox:has(> .jupyter-widgets > label:text-is("question"))'


def test_a_question_is_typed_and_both_models_answer(browser, lab, tmp_path):
    page = opened(browser, lab, "18_language.ipynb")
    assert not errors(run_all(page, lab, "18_language.ipynb", 600))
    box = shown(page, ASKING)
    typed = box.locator("input").first
    typed.fill("What is the capital of Iceland?")
    typed.press("Enter")
    box.locator("text=Reykjavik").first.wait_for(timeout=30_000)
    page.screenshot(path=tmp_path / "asked.png")
    rows = [r.split("\t") for r in box.locator("table").inner_text().splitlines()]
    assert [r[0].strip() for r in rows[1:]] == ["theta_pre", "theta_fine"] and "Reykjavik" in rows[2][1]
    looked_at(page, tmp_path, asking=ASKING)


def test_without_a_front_end_a_widget_is_its_still_picture():
    from nbconvert import HTMLExporter

    nb = nbformat.read(ROOT / "nbs" / "F_widgets.ipynb", 4)
    assert "widgets" not in nb.metadata
    html, _ = HTMLExporter().from_notebook_node(nb)
    outputs = [o.data for c in nb.cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    stills = [d for d in outputs if "Controls and buttons" in d.get("text/plain", "") and "image/png" in d]
    assert stills and html.count("data:image/png;base64,") >= len(stills)
    assert not [d for d in stills if "image/svg+xml" in d]


def spoken(rate=48_000):
    "Words by one voice out of the table, and one of them in a file that the microphone will hear."
    r = made_digits(noise=(30, 45))
    of = lambda word, take: to_waves(r.x[(r.word == word) & (r.who == 3) & (r.take == take)][0])[0].numpy()
    return lambda word, take: resample_poly(
        np.concatenate([np.zeros(2400), of(word, take), np.zeros(2400)]), rate, RATE
    )


# The player's own figures, half a second after it began
PLAYS = """e => new Promise(done => { e.muted = false; e.play().then(() => setTimeout(() =>
  done([e.duration, e.currentTime, e.error && e.error.message]), 400), x => done([x.message])) })"""


def test_a_word_is_spoken_named_and_played(browser, lab, place, tmp_path):
    word = spoken()
    for name, k in (("one", 1), ("seven", 7), ("zero", 0)):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for take in range(6):
            wavfile.write(tmp_path / "mine" / name / f"{take}.wav", 48_000, word(k, take).astype(np.float32))
    said = np.concatenate([word(7, 12), np.zeros(48_000 * 2)])  # once in three seconds, over and over
    wavfile.write(tmp_path / "mic.wav", 48_000, (said * 2**15).astype(np.int16))
    microphone = f"--use-fake-device-for-media-stream --use-file-for-fake-audio-capture={tmp_path / 'mic.wav'}"
    flags = [
        *FLAGS,
        *microphone.split(),
        "--use-fake-ui-for-media-stream",
        "--autoplay-policy=no-user-gesture-required",
    ]
    notebook(place, "own_sounds.ipynb", "from sft_nb.own_sounds import OwnSounds\nOwnSounds()")
    chrome = browser.browser_type.launch(executable_path=CHROMIUM, args=flags)
    page = opened(chrome, lab, "own_sounds.ipynb")
    assert not errors(run_all(page, lab, "own_sounds.ipynb"))
    own = shown(page, OWN)
    press(page, own, "Record a word")
    own.locator("text=nothing is learned yet").first.wait_for(timeout=20_000)
    own.locator("input").first.fill(str(tmp_path / "mine"))
    own.locator("input").first.press("Enter")
    press(page, own, "Learn")
    own.locator("text=learned one, seven, zero").first.wait_for(timeout=120_000)
    press(page, own, "Record a word")
    own.locator("text=this sounds like seven").first.wait_for(timeout=30_000)
    duration, at, wrong = own.locator("audio").last.evaluate(PLAYS)
    assert 0.2 < duration < 1.2 and 0.1 < at <= duration and wrong is None
    assert own.locator('img[alt="bands over time"]').first.bounding_box()["width"] > 300
    page.screenshot(path=tmp_path / "spoken.png", full_page=True)
    own.locator('input[type="file"]').last.set_input_files(tmp_path / "mine" / "zero" / "3.wav")
    own.locator("text=this sounds like zero").first.wait_for(timeout=30_000)
    looked_at(page, tmp_path, own_sounds=OWN)
    own.locator('input[type="file"]').last.set_input_files(ROOT / "settings.ini")
    own.locator("text=Unable to decode audio data").first.wait_for(timeout=20_000)
    chrome.close()
