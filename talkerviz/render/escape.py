"""Make text from models and files safe on a terminal, and in Mermaid, Graphviz, Markdown and spreadsheets."""

from __future__ import annotations

import html
import re
import string
from urllib.parse import quote

# Also in the middle of an arrow's label Mermaid takes it for a statement.
_DIRECTION = re.compile(r"(?<=direction)\s(?=\s*(?:TB|TD|BT|RL|LR))")
_SAFE_ASCII = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,-_/")


# Control characters but for line breaks, those of C1, line separators, lone surrogates, and marks that change the
# direction of what follows: they could move the cursor, write over lines, or have a name read as another.
_UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    """Text for a terminal: what is no printable character or line break stands as its code, such as `\\x1b`."""
    return _UNSEEN.sub(lambda found: _code(found[0]), text)


def _code(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


def spreadsheet_cell(text: str) -> str:
    """Text for a CSV file, which no spreadsheet takes for a formula: an apostrophe stands before what begins one."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def one_line(text: str) -> str:
    """Text without line breaks, control characters and lone surrogates, none of which a label can hold."""
    return "".join(char if char.isprintable() else " " for char in text)


def mermaid_label(text: str) -> str:
    """Text for a quoted Mermaid label: whatever could mean something to Mermaid, Markdown or HTML as `#35;` codes."""
    escaped = "".join(char if char in _SAFE_ASCII or ord(char) > 127 else f"#{ord(char)};" for char in one_line(text))
    return _DIRECTION.sub("#32;", escaped)


def dot_html(text: str) -> str:
    """Text for an HTML-like Graphviz label."""
    # Where a text is a bracket alone, Graphviz's reader takes it for the end of something.
    return html.escape(one_line(text), quote=True).replace("]", "&#93;")


def dot_string(text: str) -> str:
    """Text for a Graphviz string, whose quotes the graphviz package adds."""
    # An HTML entity in a string is decoded, so a name that looks like one is kept from being one.
    return one_line(text).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")


def shortened(text: str, most: int = 60) -> str:
    """Text of at most so many characters: in the place of the rest, in the middle, stands an ellipsis."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


_PLAIN = frozenset(" .,-+/%=';")
_BETWEEN_LETTERS = re.compile(r"(?<=[^\W_])\\_(?=[^\W_])")


def markdown(text: str) -> str:
    """Text in a line of Markdown, still legible in the source: `talker.model.self_attn` stays as it is."""
    escaped = "".join(
        f"\\{char}" if char in string.punctuation and char not in _PLAIN else char for char in one_line(text)
    )
    return _BETWEEN_LETTERS.sub("_", escaped)


def markdown_cell(text: str) -> str:
    """Text for a table in Markdown: `markdown`, but brackets stay as well, for they lead nowhere in a cell."""
    return re.sub(r"\\([()\[\]])", r"\1", markdown(text)).replace("](", "]\\(").strip()


def link_target(name: str) -> str:
    """The name of a page as an address relative to the chart's own, whatever is in the name."""
    return quote(one_line(name).lstrip("/"), safe="/#")
