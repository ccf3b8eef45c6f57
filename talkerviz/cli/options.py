"""Arguments and options of commands that read traces; those of `render` are made from `RenderOptions`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from talkerviz.render.options import OPTIONS, Option, RenderOptions, Scope
from talkerviz.render.registry import FORMATS, formats_of_name

TracePath = Annotated[Path, typer.Argument(metavar="TRACE", help="Trace file that `talkerviz trace` wrote.")]
Rank = Annotated[int | None, typer.Option(min=0, help=OPTIONS["rank"].help)]


_PANELS: Mapping[Scope, str] = {"all": "Calls", "chart": "Charts", "nested": "Charts", "table": "Tables"}


def format_help(formats: Sequence[str]) -> str:
    """Describe `--format` for a command that writes these formats."""
    return f"Output format: {', '.join(formats)}. Default: by the ending of the output file."


Format = typer.Option("-f", "--format", help=format_help(FORMATS))


def with_render_options(*names: str, **helps: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command some options of `render`, passed to it as its argument `options`.

    Args:
        names: names of the options; all of them if there are none.
        helps: help texts in place of those of `RenderOptions`, by option.
    """
    chosen = [replace(OPTIONS[name], help=helps.get(name, OPTIONS[name].help)) for name in names or OPTIONS]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            values = {option.name: arguments.pop(option.name) for option in chosen}
            # Typer has None for an option that may be given several times and is not.
            given = {name: value for name, value in values.items() if value is not None}
            command(**arguments, options=RenderOptions(**given))

        parameters = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "options"
        ]
        keywords = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in parameters]
        # The command's own options come last in its help, after those that many commands share.
        first = [parameter for parameter in keywords if parameter.default is parameter.empty]
        last = [parameter for parameter in keywords if parameter.default is not parameter.empty]
        signature = inspect.Signature([*first, *map(_parameter, chosen), *last])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return run

    return decorate


def _parameter(option: Option) -> inspect.Parameter:
    """Make the parameter from which typer makes the command line's option."""
    default, kind = option.default, option.type | None
    if option.is_patterns:
        default, kind = None, list[str] | None
    elif option.default is not None:
        kind = option.type
    flags = (f"--{option.name}/{option.flag}",) if option.type is bool else (option.flag,)
    declared = typer.Option(
        *flags, help=option.help, min=option.minimum, metavar=option.metavar, rich_help_panel=_PANELS[option.applies_to]
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, declared]
    )


def format_of(fmt: str | None, output: str, formats: Sequence[str] = FORMATS) -> str:
    """Return the format that was named, or else the one that the output's name ends in.

    Raises:
        ValueError: unknown format, or the name has the ending of several formats or of none.
    """
    if fmt is not None:
        if fmt not in formats:
            raise ValueError(f"unknown format {fmt!r}: choose from {', '.join(formats)}")
        return fmt
    candidates = formats_of_name(output, tuple(formats))
    if len(candidates) == 1:
        return candidates[0]
    raise ValueError(
        f"{'' if output == '-' else f'-o {output}: '}name the format with -f, one of {', '.join(candidates or formats)}"
    )
