"""Sphinx configuration of the guide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import typer
from sphinx.application import Sphinx

from talkerviz.cli import COMMANDS
from talkerviz.version import __version__

project = "talkerviz"
author = "the talkerviz authors"
copyright = "the talkerviz authors, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

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
napoleon_use_ivar = True

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

_TITLED_FENCE = re.compile(r'^```(?P<language>\w+) title="(?P<title>[^"]+)"$', re.M)
_MARKDOWN_LINK = re.compile(r"\[`?([^\]`]+)`?\]\[([\w.]+)\]")
# Files of the repository that are no pages: MyST takes `.md` for pages unless told otherwise.
_REPOSITORY_FILE = re.compile(r"\]\(((?:\.\./)+(?:reports|examples|CONTRIBUTING)[^)#]*)\)")
_PICTURE = re.compile(r"!\[([^\]]*)\]\(path:")
_OPTIONS = "<!-- options of every command -->"


def prepare_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Translate what GitHub also shows well: captions of files, links into the repository, the options of commands."""
    text = _TITLED_FENCE.sub(r"```{code-block} \g<language>\n:caption: \g<title>\n", source[0])
    text = _REPOSITORY_FILE.sub(r"](path:\1)", text)
    text = _PICTURE.sub(r"![\1](", text)
    source[0] = text.replace(_OPTIONS, command_options()) if _OPTIONS in text else text


def command_options() -> str:
    """Return a table of options for each command, as `--help` has them."""
    # Each module adds its commands to the application that they share.
    apps = [import_module(f"talkerviz.cli.{module}").app for module, _ in COMMANDS.values()]
    commands = typer.main.get_command(apps[-1]).commands  # type: ignore[attr-defined]
    return "\n".join(line for name in COMMANDS for line in _command_tables(commands[name], f"talkerviz {name}"))


def _command_tables(command: Any, name: str) -> Iterator[str]:
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or not getattr(parameter, "help", None):
            continue
        flags = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("-"))
        rows.append(f"| {flags or f'`{parameter.metavar or parameter.name.upper()}`'} | {_cell(parameter.help)} |")
    yield f"\n## {name}\n\n{_cell(command.help or '')}\n"
    if rows:
        yield "| option | effect |\n| --- | --- |"
        yield from rows
    for child, nested in getattr(command, "commands", {}).items():
        yield from _command_tables(nested, f"{name} {child}")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")


def link_markdown_references(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn `[text][dotted.name]` in docstrings into links to the documented name."""
    lines[:] = _MARKDOWN_LINK.sub(r":py:obj:`\1 <\2>`", "\n".join(lines)).split("\n")


def setup(app: Sphinx) -> None:
    """Register the hooks."""
    app.connect("source-read", prepare_page)
    # Before napoleon, which has 500.
    app.connect("autodoc-process-docstring", link_markdown_references, priority=400)
