"""How the pages become a site: `make docs`. Nothing is fetched from the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import celery_bgtask


sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "celery_bgtask"
author = "celery_bgtask contributors"
copyright = author  # noqa: A001 - as Sphinx calls it
version = release = celery_bgtask.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "lua_headers",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = True
smartquotes = False  # a default is shown as one types it

myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what, the source says which type
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# What the documentation of others explains. Their inventories would have to be
# fetched: `make docs INVENTORIES=1` does so and makes links of these names.
nitpick_ignore_regex = [(r"py:.*", r"(celery|kombu|rich|redis|collections|typing)\..*")]
if os.environ.get("INVENTORIES"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "celery": ("https://docs.celeryq.dev/en/stable/", None),
        "kombu": ("https://docs.celeryq.dev/projects/kombu/en/stable/", None),
        "python": ("https://docs.python.org/3/", None),
    }

# A prompt is not copied along, nor what a command prints.
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"celery_bgtask {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
