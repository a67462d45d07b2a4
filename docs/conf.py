"The pages, as Sphinx makes them out of what `build.py` lays out. No cell is run: a page shows the stored outputs."

import configparser
from importlib.resources import files
from pathlib import Path

here = Path(__file__).resolve().parent
parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
parser.read(here.parent / "settings.ini", encoding="utf-8")
about = parser["DEFAULT"]

project, author, release = about["title"], about["author"], about["version"]
copyright = about["copyright"]
language = "en"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton"]

# Notebooks
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # what a cell says is read as what a chapter says: links, tables, formulas
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_slug_func = "build.anchor"
myst_heading_anchors = 4
copybutton_selector = "div.cell_input pre, div[class*=highlight-] pre"

# Pages: nothing on them comes from another place
html_theme = "furo"
html_title = "sft_nb"
html_static_path = ["static", str(files("mathjax") / "static" / "mathjax" / "es5" / "tex-svg.js")]
html_css_files, html_js_files = ["book.css"], ["book.js"]
mathjax_path = "tex-svg.js"
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = dict(
    source_repository=f"https://github.com/{about['user']}/{about['repo']}",
    source_branch=about["branch"],
    source_directory=f"{about['nbs_path']}/",
    top_of_page_buttons=[],
)
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"
