"""Names that break out of what does not escape them, alone and as a trace's."""

from __future__ import annotations

from hypothesis import strategies as st
from sample_trace import call, make_trace

import talkerviz as tv

NASTY = [
    'a"b', "a[b]{c}(d)", "`md`", "end", "<script>alert(1)</script>", "two\nlines", "Слой-层", "x" * 500, "#quot;",
    "&amp;&lt;", "a\\", "\\n\\l", "--> n1", "%% note", "1. one", "- item", "**b** _i_ __c__", "\x00\x1b\u202e",
    ":::heat4", "subgraph", "|pipe|", "</TD></TABLE>", "graph TD;", "click n0 href", "", " ", "$$x$$", "@{ shape: x }",
    "    direction TB",
]  # fmt: skip
names = st.text(max_size=30) | st.sampled_from(NASTY)


def nasty_trace(texts: list[str], facts: str = "cpu") -> tv.Trace:
    rows = [call(0, None, 0, "net", "Net", 10_000_000, 1_000_000)]
    rows += [call(n, 0, 1, f"net.{text}", text or "Empty", 1000 * n, 1000 * n) for n, text in enumerate(texts, 1)]
    return make_trace(rows, device=facts, model=facts)
