"""Escaping of text from models and files for terminals, Mermaid, Graphviz, Markdown and spreadsheets."""

from __future__ import annotations

import html
import re
import string
from urllib.parse import quote

# Mermaid takes it for a statement even in the middle of an arrow's label.
_DIRECTION = re.compile(r"(?<=direction)\s(?=\s*(?:TB|TD|BT|RL|LR))")
_SAFE_ASCII = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,-_/")


# Control characters (C0 without line breaks, C1), line separators, lone surrogates and direction marks: they could move
# the cursor, overwrite lines, or disguise a name as another.
_UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    r"""Escape text for a terminal: unprintable characters but line breaks become codes such as `\x1b`."""
    return _UNSEEN.sub(lambda found: _code(found[0]), text)


def _code(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


def spreadsheet_cell(text: str) -> str:
    """Escape text for CSV, with an apostrophe before text that a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def one_line(text: str) -> str:
    """Replace line breaks, control characters and lone surrogates, which labels cannot hold, by spaces."""
    return "".join(char if char.isprintable() else " " for char in text)


def mermaid_label(text: str) -> str:
    """Escape text for a quoted Mermaid label: characters special to Mermaid, Markdown or HTML as `#35;` codes."""
    escaped = "".join(char if char in _SAFE_ASCII or ord(char) > 127 else f"#{ord(char)};" for char in one_line(text))
    return _DIRECTION.sub("#32;", escaped)


def dot_html(text: str) -> str:
    """Escape text for an HTML-like Graphviz label."""
    # Graphviz's parser takes a text of a lone bracket for a delimiter.
    return html.escape(one_line(text), quote=True).replace("]", "&#93;")


def dot_string(text: str) -> str:
    """Escape text for a Graphviz string, whose quotes the graphviz package adds."""
    # Graphviz decodes HTML entities in strings, so ampersands of names are escaped.
    return one_line(text).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")


def shortened(text: str, most: int = 60) -> str:
    """Shorten text to at most `most` characters, with an ellipsis in the middle."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


_PLAIN = frozenset(" .,-+/%=';")
_BETWEEN_LETTERS = re.compile(r"(?<=[^\W_])\\_(?=[^\W_])")


def markdown(text: str) -> str:
    """Escape text in a line of Markdown, legible in the source: `talker.model.self_attn` is unchanged."""
    escaped = "".join(
        f"\\{char}" if char in string.punctuation and char not in _PLAIN else char for char in one_line(text)
    )
    return _BETWEEN_LETTERS.sub("_", escaped)


def markdown_cell(text: str) -> str:
    """Escape text for a cell of a Markdown table, as `markdown`, but with brackets, which make no link there."""
    return re.sub(r"\\([()\[\]])", r"\1", markdown(text)).replace("](", "]\\(").strip()


def link_target(name: str) -> str:
    """Quote the name of a page as an address relative to the chart's."""
    return quote(one_line(name).lstrip("/"), safe="/#")
