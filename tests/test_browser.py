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
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "only-for-this-test"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
pytestmark = pytest.mark.browser


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
def lab(tmp_path_factory):
    "The address of a JupyterLab of its own, over a copy of the notebooks."
    place = tmp_path_factory.mktemp("lab")
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
    command += f" --IdentityProvider.token={TOKEN} --ServerApp.root_dir={place / 'book' / 'nbs'}"
    with open(place / "log", "w") as log:
        server = subprocess.Popen([sys.executable, *command.split()], env=env, stdout=log, stderr=log)
        try:
            _ready(f"http://127.0.0.1:{port}/api/status?token={TOKEN}")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium, or set CHROMIUM to its path")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -c constraints.txt -e '.[browser]'")
    with sync_api.sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chrome
        chrome.close()


def menu(page, *names):
    "A menu, and an entry of it."
    page.click(f'.lm-MenuBar-item:has-text("{names[0]}")')
    for name in names[1:]:
        page.locator(".lm-Menu-item", has_text=re.compile(rf"^{re.escape(name)}$")).first.click()


def idle(page, seconds):
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=1000 * seconds)


def opened(browser, lab, name):
    "A notebook in a page, its kernel idle."
    page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.goto(f"{lab}/lab/tree/{name}?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    idle(page, 60)
    page.wait_for_timeout(1500)  # earlier than that, Run All asks which kernel to take
    return page


def run_all(page, lab, name, seconds=300):
    "Run > Run All Cells, save, and the notebook as it was then stored."
    menu(page, "Run", "Run All Cells")
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


def dark(page):
    page.click('.lm-MenuBar-item:has-text("Settings")')
    page.locator(".lm-Menu-item", has_text=re.compile("^Theme$")).first.hover()
    page.locator(".lm-Menu-item", has_text=re.compile("^JupyterLab Dark$")).first.click()
    page.wait_for_selector('body[data-jp-theme-light="false"]', state="attached")
    page.wait_for_timeout(1000)


def test_the_tour_runs_in_a_browser(browser, lab, tmp_path):
    page = opened(browser, lab, "000_tour.ipynb")
    nb = run_all(page, lab, "000_tour.ipynb")
    page.screenshot(path=tmp_path / "tour.png")
    assert not errors(nb) and not not_run(nb)


def test_a_slider_is_dragged(browser, lab, tmp_path):
    page = opened(browser, lab, "16_widgets.ipynb")
    nb = run_all(page, lab, "16_widgets.ipynb")
    assert not errors(nb) and not not_run(nb)
    box = shown(page, ".widget-vbox:has(.widget-slider):has(svg)")
    page.screenshot(path=tmp_path / "light.png")
    before = box.locator("svg").first.inner_html()
    handle = box.locator(".noUi-handle").first
    handle.focus()
    for _ in range(5):
        handle.press("ArrowRight")
    page.wait_for_timeout(1000)
    assert box.locator("svg").first.inner_html() != before
    dark(page)
    page.screenshot(path=tmp_path / "dark.png")


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


def test_the_dashboard_trains_pauses_and_stops(browser, lab, tmp_path):
    page = opened(browser, lab, "22_dashboard.ipynb")
    nb = run_all(page, lab, "22_dashboard.ipynb")
    assert not errors(nb) and not not_run(nb)
    epochs = shown(page, '.jupyter-widgets:has(> label:text-is("epochs")) input')
    epochs.fill("2000")
    epochs.press("Enter")
    boxes = '.widget-vbox:has(> .widget-hbox button:has-text("Forecast"))'
    panel = shown(
        page, f"{boxes}:has-text('linear_probing')"
    )  # of two panels, the one that has run it: these controls' own
    page.screenshot(path=tmp_path / "light.png")
    panel.evaluate(LOOK)
    press(page, panel, "Start")
    until(page, panel, "running")
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
    dark(page)
    page.screenshot(path=tmp_path / "dark.png")


def upload(page, box, button, path):
    "Choose a file in the dialog that the button opens."
    with page.expect_file_chooser() as chooser:
        press(page, box, button)
    chooser.value.set_files(path)


def test_own_pictures_are_uploaded_learned_and_named(browser, lab, tmp_path):
    page = opened(browser, lab, "27_pictures.ipynb")
    nb = run_all(page, lab, "27_pictures.ipynb")
    assert not errors(nb) and not not_run(nb)
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as z:
        for name, colour in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
            for i in range(8):
                Image.new("RGB", (40, 30), tuple(v + 5 * i for v in colour)).save(tmp_path / "one.png")
                z.write(tmp_path / "one.png", f"mine/{name}/{i}.png")
    own = shown(page, '.widget-vbox:has(> .widget-hbox button:has-text("Learn"))')
    upload(page, own, "or a zip", tmp_path / "mine.zip")
    page.wait_for_timeout(1500)
    press(page, own, "Learn")
    own.locator("text=learned blue, red").first.wait_for(timeout=60_000)
    upload(page, own, "A new picture", tmp_path / "one.png")
    own.locator("text=this looks like blue").first.wait_for(timeout=20_000)
    page.screenshot(path=tmp_path / "own.png")


def test_without_a_front_end_a_widget_is_its_still_picture():
    from nbconvert import HTMLExporter

    nb = nbformat.read(ROOT / "nbs" / "16_widgets.ipynb", 4)
    assert "widgets" not in nb.metadata
    html, _ = HTMLExporter().from_notebook_node(nb)
    outputs = [o.data for c in nb.cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    stills = [
        d["image/svg+xml"]
        for d in outputs
        if "Controls and buttons" in d.get("text/plain", "") and "image/svg+xml" in d
    ]
    assert stills and html.count("data:image/svg+xml;base64,") >= len(stills)
