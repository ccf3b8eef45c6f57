"""A graph as words, to be compared with expectations that were written by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from talkerviz.flowchart.model import Box, Edge, Graph, Group

# A pre-norm transformer layer: x + attention(norm(x)), then x + feed-forward(norm(x)), and on to the next layer.
RESIDUALS = {
    "input_layernorm -> self_attn",
    "self_attn -> add",
    "add -> post_attention_layernorm",
    "post_attention_layernorm -> mlp",
    "mlp -> add#2",
    "add -> add#2",
    "add#2 -> input_layernorm (next)",
    "add#2 -> add (next)",
}


def named(graph: Graph) -> dict[str, str]:
    """Ids of boxes and groups -> names; the second of a name in a group is `add#2`."""
    return dict(_named(graph.members))


def _named(members: tuple[Box | Group, ...]) -> Iterator[tuple[str, str]]:
    times: Counter[str] = Counter()
    for member in members:
        box = member.box if isinstance(member, Group) else member
        times[box.name] += 1
        yield member.id, box.name if times[box.name] == 1 else f"{box.name}#{times[box.name]}"
        if isinstance(member, Group):
            yield from _named(member.members)


def group(graph: Graph, name: str, phase: str | None = None) -> Group:
    """Return the first group of a name, in a phase if there is one given."""
    for found in _groups(graph.members, ""):
        if found[1].box.name == name and phase in (None, found[0]):
            return found[1]
    raise AssertionError(f"no group {name!r}")


def _groups(members: tuple[Box | Group, ...], phase: str) -> Iterator[tuple[str, Group]]:
    for member in members:
        if isinstance(member, Group):
            here = member.box.name if member.box.kind == "phase" else phase
            yield here, member
            yield from _groups(member.members, here)


def arrows(graph: Graph, within: Group | None = None) -> set[str]:
    """List edges as `a -> b`, `a -> b (next)`, or `a => b` for a kept state; with a group, only those inside it."""
    names = named(graph)
    inside = set(dict(_named(within.members))) if within else set(names)
    return {_word(edge, names) for edge in graph.edges if {edge.source, edge.target} <= inside}


def arrows_into(graph: Graph, within: Group) -> set[str]:
    """Return the arrows that come from outside of a group."""
    names, inside = named(graph), set(dict(_named(within.members)))
    return {_word(edge, names) for edge in graph.edges if edge.target in inside and edge.source not in inside}


def _word(edge: Edge, names: dict[str, str]) -> str:
    carried = f" ({edge.carried})" if edge.carried else ""
    return f"{names[edge.source]} {'=>' if edge.state else '->'} {names[edge.target]}{carried}"


def outline(members: tuple[Box | Group, ...]) -> list[object]:
    """Names, nested: a group is a list that begins with its own."""
    found: list[object] = []
    for member in members:
        box = member.box if isinstance(member, Group) else member
        name = f"{box.name} {box.repeats}".strip()
        found.append([name, *outline(member.members)] if isinstance(member, Group) else name)
    return found
