"""Subpage of a chart as Markdown with a Mermaid chart, for GitHub."""

from __future__ import annotations

from collections.abc import Iterator

from talkerviz.flowchart.model import Box, Group
from talkerviz.flowchart.subpages import FIRST, Page
from talkerviz.render.charts.mermaid import render_mermaid
from talkerviz.render.escape import markdown


def render_page(page: Page) -> bytes:
    """Render the chart, and below it a link per subpage, since links in GitHub's charts do not work."""
    lines = [f"# {markdown(page.graph.title)}", "", "```mermaid", render_mermaid(page.graph).rstrip("\n"), "```", ""]
    linked = list(_linked(page.graph.members, ""))
    if linked:
        lines += ["Inside:", "", *(f"- [{markdown(name)}]({link})" for name, link in linked), ""]
    if page.name != FIRST:
        lines += [f"[All of it]({FIRST}.md)", ""]
    return "\n".join(lines).encode()


def _linked(members: tuple[Box | Group, ...], phase: str) -> Iterator[tuple[str, str]]:
    for member in members:
        if isinstance(member, Group):
            yield from _linked(member.members, member.box.name if member.box.kind == "phase" else phase)
        elif member.link:
            yield f"{phase}: {member.path}" if phase else member.path, member.link
