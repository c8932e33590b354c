"""The documentation: built by `make docs`, with warnings as errors."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from generate import write_pages

import equiscale

project = "equiscale"
author = "the equiscale developers"
copyright = "the equiscale developers"
version = release = equiscale.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/**/*.ipynb", "gallery/**/*.py", "**/README.md"]
html_theme = "furo"
html_title = f"equiscale {version}"
html_static_path: list[str] = []
html_theme_options = {
    "source_repository": "https://github.com/equiscale/equiscale/",
    "source_branch": "main",
    "source_directory": "docs/",
}

# Names in single backticks are looked up, as the docstrings write them.
default_role = "py:obj"
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes", "Exactness", "Source"]
napoleon_use_rtype = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r".*\.py",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "reset_modules_order": "before",
    "plot_gallery": "True",
    "min_reported_time": 60,
    "parallel": 2,
}

write_pages(Path(__file__).parent / "generated")


def as_text(_app: Any, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """A symbol with a full stop, as in "num_channels: C.", is no list that begins with C."""
    lines[:] = [re.sub(r"^(:param \w+: |\s*)([A-Z])\.$", r"\1\2\.", line) for line in lines]


def setup(app: Any) -> None:
    """After napoleon has made fields of the docstrings' sections."""
    app.connect("autodoc-process-docstring", as_text, priority=900)
