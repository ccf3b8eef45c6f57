"""Options of `render`: the one place where an option's type, default, help and limits are written.

The command line, the signature and help of `Trace.render`, and the checks are made from the fields of `RenderOptions`.
To add an option, add a field, and use it where the trace is rendered.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from talkerviz.analysis.pivot import Across
from talkerviz.analysis.summary import By
from talkerviz.flowchart.model import MAX_BOXES, Edges, View

Style = Literal["nested", "flat", "source"]
Scope = Literal["all", "chart", "nested", "table"]
"""Formats that an option applies to: all, charts, charts in style `nested`, or tables."""

DEFAULT_ROWS = 20
"""Rows of a printed table, which fill a screen; files have all of them."""


@dataclass(frozen=True)
class _Help:
    """Description of an option, beside its type.

    Attributes:
        help: description for `--help` and the docstring of `Trace.render`.
        applies_to: formats that the option applies to.
        minimum: smallest number allowed, or None.
        metavar: placeholder for the value in `--help`, or None.
    """

    help: str
    applies_to: Scope = "all"
    minimum: int | None = None
    metavar: str | None = None


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """Options of `render`, each with its help.

    Raises:
        ValueError: a value that is none of an option's choices, of another type, or below its minimum.
    """

    style: Annotated[
        Style,
        _Help(
            "Chart style: nested folds repeats, flat draws a box per call, source is the Mermaid document of the "
            "project's origin.",
            "chart",
        ),
    ] = "nested"
    phase: Annotated[str | None, _Help("Only this phase, such as prefill or decode.")] = None
    frame: Annotated[int | None, _Help("Only this frame, counted from 0.", minimum=0)] = None
    module: Annotated[
        str | None, _Help("Only modules whose path matches this pattern, and the calls inside them.", metavar="GLOB")
    ] = None
    rank: Annotated[int | None, _Help("Only this rank of a merged trace.", minimum=0)] = None
    depth: Annotated[
        int | None,
        _Help("Only calls nested at most this deep; 0 keeps the outermost. Nested charts: levels to open.", minimum=0),
    ] = None
    open: Annotated[
        str | Sequence[str],
        _Help("Draw the inside of modules that match this pattern, at any depth.", "nested", metavar="GLOB"),
    ] = ()
    close: Annotated[
        str | Sequence[str],
        _Help("Do not draw the inside of modules that match this pattern.", "nested", metavar="GLOB"),
    ] = ()
    edges: Annotated[
        Edges | None,
        _Help("Arrows: tensor flow, or call order. Default: flow if it was recorded, else calls.", "nested"),
    ] = None
    fold: Annotated[bool, _Help("Draw repeated modules once.", "nested")] = True
    max_nodes: Annotated[
        int | None,
        _Help(f"Maximum number of boxes; the rest is folded. Default: {MAX_BOXES}.", "nested", minimum=1),
    ] = None
    by: Annotated[By | None, _Help("Rows of the table. Default: module.", "table")] = None
    across: Annotated[Across | None, _Help("Columns side by side, for rows by module or class.", "table")] = None
    sort: Annotated[
        str | None,
        _Help(
            "Column to sort by, numbers largest first. Default: self; run order by phase, part, request and frame.",
            "table",
            metavar="COLUMN",
        ),
    ] = None
    top: Annotated[
        int | None, _Help(f"Maximum number of rows; {DEFAULT_ROWS} in a printed table.", "table", minimum=1)
    ] = None

    def __post_init__(self) -> None:
        for option in OPTIONS.values():
            value = getattr(self, option.name)
            if option.is_patterns:
                patterns = (value,) if isinstance(value, str) else tuple(value)
                object.__setattr__(self, option.name, patterns)
            elif value is not None:
                option.check(value)

    @property
    def view(self) -> View:
        """The part of the options that the flowchart builder takes."""
        return View(self.depth, tuple(self.open), tuple(self.close), self.max_nodes, self.edges, self.fold)


@dataclass(frozen=True)
class Option:
    """A field of `RenderOptions`, taken apart.

    Attributes:
        name: name of the field.
        type: type of its value, without None.
        default: value when it is not given.
        choices: values allowed, if they are a `Literal`; else empty.
        help: one sentence.
        applies_to: formats that it applies to.
        minimum: smallest number allowed, or None.
        metavar: placeholder for the value in `--help`, or None.
    """

    name: str
    type: Any
    default: Any
    choices: tuple[str, ...]
    help: str
    applies_to: Scope
    minimum: int | None
    metavar: str | None

    @property
    def is_patterns(self) -> bool:
        """True for an option that may be given several times."""
        return isinstance(self.default, tuple)

    @property
    def flag(self) -> str:
        """Name on the command line."""
        return f"--{'no-' if self.default is True else ''}{self.name.replace('_', '-')}"

    def check(self, value: object) -> None:
        """Raise ValueError unless the value is allowed."""
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{self.name}: unknown value {value!r}; choose from {', '.join(self.choices)}")
        elif self.type is int:
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{self.name}: must be a whole number, not {value!r}")
            if self.minimum is not None and value < self.minimum:
                raise ValueError(f"{self.name}: must be at least {self.minimum}, not {value}")
        elif not isinstance(value, self.type):
            raise ValueError(f"{self.name}: must be a {self.type.__name__}, not {value!r}")


def _read_options() -> Mapping[str, Option]:
    hints = get_type_hints(RenderOptions, include_extras=True)
    options = {}
    for field in dataclasses.fields(RenderOptions):
        kind, described = get_args(hints[field.name])
        if get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not type(None))
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        options[field.name] = Option(field.name, kind, field.default, choices, **vars(described))
    return options


OPTIONS: Mapping[str, Option] = _read_options()
"""Options by the names of their fields."""


def given_options(options: RenderOptions) -> list[Option]:
    """List the options whose value is not the default."""
    return [option for option in OPTIONS.values() if getattr(options, option.name) != option.default]


def help_lines(indent: str) -> str:
    """Format all options as the entries of an `Args:` section."""
    lines = []
    for option in OPTIONS.values():
        choices = f" One of {', '.join(f'`{choice}`' for choice in option.choices)}." if option.choices else ""
        lines.append(f"{indent}{option.name}: {option.help}{choices}")
    return "\n".join(lines)


def option_name(option: Option) -> str:
    """Return an option's name in Python."""
    return option.name


def option_flag(option: Option) -> str:
    """Return an option's name on the command line."""
    return option.flag


Naming = Callable[[Option], str]
"""Spelling of an option in error messages: `option_name` or `option_flag`."""
