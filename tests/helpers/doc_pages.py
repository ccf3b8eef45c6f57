"""Pages of docs/: their commands, cells and shown output."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from repo_paths import DOCS

PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))

_FENCE = re.compile(r'^( *)```(\w*|\{[\w-]+\}[^\n]*)(?: title="([^"]+)")?\n(.*?)^\1```$', re.M | re.S)
_EXIT = re.compile(r"\s+# exit (\d+)$")
# What differs from machine to machine: numbers with one of these units, and whatever has a decimal point.
_UNITS = (r" ?(?:ns|µs|ms|s)\b", r" ?[kMGT]?(?:FLOP|B)/s", " ?[%×]")
_NUMBER = r"[+−±]?\d[\d,]*(?:\.\d+)?"
_MEASURED = re.compile(rf"{_NUMBER}(?:{'|'.join(f'({unit})' for unit in _UNITS)})|[+−±]?\d[\d,]*\.\d+")


@dataclass(frozen=True)
class Fence:
    """A block of a page.

    Attributes:
        language: `console`, `bash`, `python`, ...
        title: the file's name, of a block that is one.
        text: what is in it.
        line: where it begins.
    """

    language: str
    title: str | None
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """What is typed, the exit code that the page says, and the lines that it shows below."""

    text: str
    code: int
    shown: tuple[str, ...]


def fences(page: str) -> list[Fence]:
    """All blocks of a page, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = [
        Fence(match[2], match[3], textwrap.dedent(match[4]), text.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall("^ *```", text, re.M)), f"{page}: a block that is not understood"
    # Blocks such as `{toctree}` are for Sphinx, and those without a language are drawings.
    return [fence for fence in found if fence.language and not fence.language.startswith("{")]


def commands(fence: Fence) -> Iterator[Command]:
    """Those of a block: after `$ ` each, with what it shows below, or, in a script, a line each."""
    lines = fence.text.replace("\\\n", " ").splitlines()
    if fence.language != "console":
        lines = [f"$ {line}" for line in lines if line and not line.startswith("#")]
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    assert starts[:1] == [0], f"line {fence.line}: a block of commands begins with one"
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        text = lines[start].removeprefix("$ ")
        code = _EXIT.search(text)
        shown = (line.strip() for line in lines[start + 1 : end])
        yield Command(_EXIT.sub("", text), int(code[1]) if code else 0, tuple(line for line in shown if line))


def is_shown(line: str, output: str) -> bool:
    """Whether a line of a page is in what was printed.

    `…` stands for anything, a measured number for any other of its kind; blanks and rules of tables are not compared.
    """
    pattern, end = "", 0
    line = _plain(line)
    for found in _MEASURED.finditer(line):
        unit = next((unit for unit, text in zip(_UNITS, found.groups(), strict=True) if text), "")
        pattern += _text(line[end : found.start()]) + _NUMBER + unit
        end = found.end()
    pattern += _text(line[end:])
    return any(re.fullmatch(pattern, _plain(printed)) for printed in output.splitlines())


def _text(shown: str) -> str:
    return ".*".join(map(re.escape, re.split(" ?… ?", shown)))


def _plain(line: str) -> str:
    return " ".join(re.sub("[─━]+", "─", line).split())
