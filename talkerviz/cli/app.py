"""The application that commands belong to."""

from __future__ import annotations

import typer


def new_app() -> typer.Typer:
    """One without commands."""
    return typer.Typer(
        name="talkerviz",
        help="Run a speech talker, or any torch model, and see every module call.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


app = new_app()
