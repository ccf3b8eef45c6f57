"""What GitHub draws of a Mermaid chart, and what not."""

from __future__ import annotations

import re

# Beyond these Mermaid draws nothing unless the page that shows it says otherwise, and GitHub does not.
MAX_CHARACTERS = 50_000
MAX_EDGES = 500

# An arrow of any kind between two ids, or a link that is not seen; Mermaid counts both.
_EDGE = re.compile(r"^ *\w+ (?:-->|-\.->|==>|~~~)", re.M)


def over_github_limits(text: str) -> str | None:
    """What to know of a chart that GitHub will not draw, or None."""
    edges = len(_EDGE.findall(text))
    if len(text) <= MAX_CHARACTERS and edges <= MAX_EDGES:
        return None
    return (
        f"{edges:,} edges in {len(text):,} characters: GitHub draws at most {MAX_EDGES} and {MAX_CHARACTERS:,}; "
        "choose less with --phase, --frame or --depth"
    )
