"""Sphinx's configuration; `python -m hrm.tools.site` copies it beside the pages it has made."""

import importlib.util
import shutil
from pathlib import Path

project = html_title = "hrm"
author = "the hrm authors"
copyright = ""
extensions = ["myst_nb", "sphinx_copybutton", "sphinx_design"]

# Outputs come with the notebooks; nothing is run while the pages are made.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True
myst_enable_extensions = [
    "dollarmath",
    "amsmath",
    "colon_fence",
    "attrs_inline",
    "attrs_block",
    "deflist",
    "html_image",
]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # API entries begin at the third level

html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}
html_static_path = ["_static"]
html_css_files = ["hrm.css"]
smartquotes = False  # shapes such as [..., V] and quoted code stay as they are
html_use_index = False
html_favicon = "_static/hrm.svg"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "tango"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

# One self-contained file of MathJax that draws SVG and needs no fonts, from an installed package: no request leaves.
_package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "global"}}


def _copy_mathjax(app, error):
    if error is None:
        shutil.copy(_package / "static" / "mathjax" / "tex-svg.js", Path(app.outdir) / "_static" / "tex-svg.js")


def _when_seen(app, pagename, templatename, context, doctree):
    "Pictures of the gallery are loaded when a reader comes near them."
    if body := context.get("body"):
        context["body"] = body.replace('class="sd-card-img-top"', 'class="sd-card-img-top" loading="lazy"')


def setup(app):
    app.connect("build-finished", _copy_mathjax)
    app.connect("html-page-context", _when_seen)
