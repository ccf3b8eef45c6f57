"""Make text from a model safe inside Mermaid and Graphviz labels."""

from __future__ import annotations

import html

_SAFE_ASCII = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,-_/")


def one_line(text: str) -> str:
    """Text without line breaks, control characters and lone surrogates, none of which a label can hold."""
    return "".join(char if char.isprintable() else " " for char in text)


def mermaid_label(text: str) -> str:
    """Text for a quoted Mermaid label: whatever could mean something to Mermaid, Markdown or HTML as `#35;` codes."""
    return "".join(char if char in _SAFE_ASCII or ord(char) > 127 else f"#{ord(char)};" for char in one_line(text))


def dot_html(text: str) -> str:
    """Text for an HTML-like Graphviz label."""
    return html.escape(one_line(text), quote=True)


def dot_string(text: str) -> str:
    """Text for a Graphviz string, whose quotes the graphviz package adds."""
    # An HTML entity in a string is decoded, so a name that looks like one is kept from being one.
    return one_line(text).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
