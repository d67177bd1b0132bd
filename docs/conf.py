"""Sphinx configuration; `sphinx-build -W --keep-going -b html docs OUT` builds the site."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "ext")]

import dynexit  # noqa: E402

project = "dynexit"
author = "The dynexit authors"
version = release = dynexit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "api_reference"]
exclude_patterns = ["ext", "_build"]
suppress_warnings = ["toc.empty_glob"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_use_legacy_class_based = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Fields", "params_style")]

html_theme = "sphinx_book_theme"
html_title = "dynexit"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"show_navbar_depth": 1, "show_toc_level": 2}

if tags.has("check"):  # for the warnings and the inventory alone; Sphinx defines `tags`
    html_theme, html_theme_options = "basic", {}
