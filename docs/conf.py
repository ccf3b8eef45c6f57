"""Sphinx configuration of the guide."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

from talkerviz.version import __version__

project = "talkerviz"
author = "the talkerviz authors"
copyright = "the talkerviz authors, Apache-2.0"  # noqa: A001
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
# Every name that a page or a docstring links to has to be there.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]

myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Docstrings have Markdown's single backticks.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"talkerviz {version}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["pages.css"]
pygments_style = "friendly"
pygments_dark_style = "monokai"
# Blocks of commands with their output, and Mermaid or cell magics, have no lexer that takes them all.
suppress_warnings = ["misc.highlighting_failure"]

_TITLED_FENCE = re.compile(r'^(?P<fence>```)(?P<language>\w+) title="(?P<title>[^"]+)"$', re.M)
_MARKDOWN_LINK = re.compile(r"\[`?([^\]`]+)`?\]\[([\w.]+)\]")


def caption_titled_blocks(app: Sphinx, page: str, source: list[str]) -> None:
    """Give blocks with a `title`, which are files, that title as their caption."""
    source[0] = _TITLED_FENCE.sub(r"```{code-block} \g<language>\n:caption: \g<title>\n", source[0])


def link_markdown_references(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Turn `[text][dotted.name]` in docstrings into links to what the name stands for."""
    text = _MARKDOWN_LINK.sub(r":py:obj:`\1 <\2>`", "\n".join(lines))
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> None:
    """Register the two hooks."""
    app.connect("source-read", caption_titled_blocks)
    app.connect("autodoc-process-docstring", link_markdown_references, priority=400)
