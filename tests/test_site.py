"The pages: faults are seen, a module's page says what its comments say, and in a browser nothing is wider than a phone."

import importlib.util
import os
import shutil

import check_site
import pytest
from conftest import ROOT

from sft_nb.probing import Probe, solve_head

SITE = ROOT / "_docs" / "html"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FAULTS = {
    '<a href="no.html">x</a>': "no.html leads nowhere",
    '<a href="other.html#y">x</a>': "other.html#y: no such place on that page",
    '<img src="a.png" alt="">': "a picture without a sentence: a.png",
    '<script src="https://far.example/x.js"></script>': "loads https://far.example/x.js",
    '<script type="application/vnd.jupyter.widget-view+json">{}</script>': "a widget, which says nothing without its kernel",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen_and_a_page_without_one_passes(tmp_path, fault):
    (tmp_path / "a.png").write_bytes(b"x")
    good = '<h2 id="z">z</h2><a href="#z">z</a><a href="index.html#z">z</a><a href="https://far.example">f</a><img src="a.png" alt="A line.">'
    (tmp_path / "other.html").write_text(good)
    (tmp_path / "index.html").write_text(good)
    assert check_site.problems(tmp_path) == []
    check_site.read.cache_clear()
    (tmp_path / "index.html").write_text(good + fault)
    assert check_site.problems(tmp_path) == [f"index.html: {FAULTS[fault]}"]
    check_site.read.cache_clear()


def build():
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_modules_page_has_the_comments_of_parameters_and_no_tags_of_its_docstrings():
    pages = build()
    said = pages.entry("solve_head", solve_head, 2)
    assert said.startswith("## `solve_head`") and "tol:float=1e-08, # Largest certified gap" in said
    assert "The certified argmin of mean cross-entropy" in said
    assert pages.entry("Probe", Probe, 2).split("```")[1].startswith("python\nclass Probe(\n")

    def shown():
        "As an <img>, or `<img>`."

    assert pages.words(shown) == "As an &lt;img>, or `<img>`."


def test_every_chapter_is_in_the_list_of_pages():
    listed = [name for _, rows in build().sections() for _, name in rows]
    assert sorted(listed) == sorted(p.stem for p in (ROOT / "nbs").glob("*.ipynb") if p.stem != "index")


@pytest.fixture(scope="module")
def chrome():
    if CHROMIUM is None or not (SITE / "index.html").exists():
        pytest.skip("needs `make docs` and a chromium: apt-get install chromium, or set CHROMIUM to its path")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -c constraints.txt -e '.[browser]'")
    with sync_api.sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        yield chrome
        chrome.close()


def opened(chrome, **options):
    "A page, and whatever it asks of another place or complains of."
    page, wrong = chrome.new_context(**options).new_page(), []
    page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or wrong.append(r.url))
    page.on("pageerror", lambda e: wrong.append(str(e)))
    return page, wrong


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_no_page_is_wider_than_its_window_or_asks_elsewhere(chrome, width, scheme):
    page, wrong = opened(chrome, viewport=dict(width=width, height=800), color_scheme=scheme)
    for path in sorted(p for p in SITE.rglob("*.html") if "slides" not in p.parts):
        page.goto(path.as_uri())
        page.wait_for_function("!window.MathJax || MathJax.startup.promise && MathJax.startup.promise.then(() => true)")
        room, needed = page.evaluate("[document.documentElement.clientWidth, document.documentElement.scrollWidth]")
        assert needed <= room, f"{path.name}: {needed} pixels of {room}"
        formulas = page.evaluate(
            "[document.querySelectorAll('.math').length, document.querySelectorAll('mjx-container').length]"
        )
        assert bool(formulas[0]) <= bool(formulas[1]), path.name
    assert wrong == []


@pytest.mark.browser
def test_the_search_finds_and_what_is_folded_opens(chrome):
    page, wrong = opened(chrome)
    page.goto((SITE / "search.html").as_uri() + "?q=preconditioner")
    page.wait_for_selector("#search-results li")
    page.goto((SITE / "00_tour.html").as_uri())
    first = page.locator("details", has_text="Answer 1").first
    assert not first.locator("p").first.is_visible()
    first.locator("summary").click()
    assert first.locator("p").first.is_visible() and wrong == []
