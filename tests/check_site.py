"""Are the built pages whole? Every link and anchor leads somewhere, every picture has a sentence, nothing comes from elsewhere.

python tests/check_site.py [FOLDER]     `make docs` calls it; it needs no network and no browser.
"""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "audio": "src"}


class Page(HTMLParser):
    "What a page links to, what it loads, what may be linked to in it, and what is wrong with it by itself."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.ids, self.wrong = [], [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if (link := attrs.get(LOADS.get(tag, ""))) and attrs.get("rel") not in ("canonical",):
            self.loads.append(link)
        if tag == "script" and attrs.get("type", "").startswith("application/vnd.jupyter.widget"):
            self.wrong.append("a widget, which says nothing without its kernel")
        in_a_panel = attrs.get("src", "").startswith("data:") and "alt" in attrs  # whose words stand beside it
        if tag == "img" and not attrs.get("alt", "").strip() and not in_a_panel:
            self.wrong.append(f"a picture without a sentence: {attrs.get('src', '')[:60]}")


@cache
def read(path: Path) -> Page:
    return Page(path)


def problems(site: Path) -> list[str]:
    "One line for each, beginning with its page."
    found = []
    for path in sorted(site.rglob("*.html")):
        page = read(path)
        wrong = list(page.wrong)
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loads and parts.scheme != "data":
                    wrong.append(f"loads {link}")
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            to = to / "index.html" if to.is_dir() else to
            if not to.is_file():
                wrong.append(f"{link} leads nowhere")
            elif parts.fragment and to.suffix == ".html" and unquote(parts.fragment) not in read(to).ids:
                wrong.append(f"{link}: no such place on that page")
        found += [f"{path.relative_to(site)}: {w}" for w in dict.fromkeys(wrong)]
    return found


if __name__ == "__main__":
    site = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_docs" / "html"
    pages, found = len([*site.rglob("*.html")]), problems(site)
    print("\n".join(found) or f"{pages} pages: every link leads somewhere, every picture has its sentence")
    sys.exit(bool(found) or not pages)
