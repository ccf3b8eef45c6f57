"""The nested chart's renderers: golden files, escaping, and the real parsers and engines."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from golden_files import check_golden
from graphviz_engines import ENGINES, drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mermaid_parser import mermaid_errors, needs_parser
from nasty_text import NASTY, names
from sample_graph import graph_of, plain_graph, sample_diff, sample_graph, talker_graph

from talkerviz.flowchart.model import Box, Edge, Graph, Group, headings_in
from talkerviz.render.charts.dot import render_dot
from talkerviz.render.charts.dot_columns import columns
from talkerviz.render.charts.label_text import facts_line
from talkerviz.render.charts.mermaid import over_github_limits, render_mermaid
from talkerviz.render.charts.palette import GROUP_LOOKS, LOOKS, share_heat, share_legend
from talkerviz.render.escape import link_target, shortened
from talkerviz.render.registry import render_graph

SVG = "{http://www.w3.org/2000/svg}"
EMPTY = Graph("nothing", (), (), flow=True, timed=True)
HOLLOW = Graph("hollow", (Group(Box("g", "module", "net"), ()), Box("b", "module", "net")), (), flow=True, timed=False)
GRAPHS = {
    "everything": sample_graph(),
    "diff": sample_diff(),
    "plain": plain_graph(),
    "talker": talker_graph(),
    "empty": EMPTY,
    "hollow": HOLLOW,
}
_ARROW = re.compile(r'^  (\w+) (-->|-\.->|==>)(?:\|"[^"]*"\|)? (\w+)$', re.M)


@pytest.mark.parametrize("name", ["everything", "diff", "talker"])
def test_goldens(name: str) -> None:
    check_golden(f"graph_{name}.mmd", render_mermaid(GRAPHS[name]))
    check_golden(f"graph_{name}.dot", render_dot(GRAPHS[name]))


@needs_parser
def test_mermaid_parses() -> None:
    charts = [render_mermaid(graph) for graph in GRAPHS.values()]
    assert mermaid_errors(charts) == [""] * len(charts)


@needs_parser
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(names, min_size=1, max_size=6), min_size=10, max_size=25))
def test_mermaid_parses_whatever_the_names(lists: list[list[str]]) -> None:
    # Each text alone too, so that it stands in every place.
    charts = [render_mermaid(graph_of(texts)) for texts in [NASTY, *([text] for text in NASTY), *lists]]
    assert mermaid_errors(charts) == [""] * len(charts)


@pytest.mark.parametrize("engine", ["dot", "graphviz-pure"])
@pytest.mark.parametrize("name", GRAPHS)
def test_engines_draw_every_box_and_edge(engine: str, name: str) -> None:
    if engine not in ENGINES:
        pytest.skip(f"{engine} is not installed")
    graph = GRAPHS[name]
    nodes, edges = drawn(engine, render_dot(graph))
    assert set(nodes) == {box.id for box in graph.boxes}
    # One that points upwards is told upside down.
    assert {frozenset(title.split("->")) for title in edges} == {frozenset((e.source, e.target)) for e in graph.edges}
    for box in graph.boxes:
        assert box.name in nodes[box.id]


@pytest.mark.parametrize("engine", ["dot", "graphviz-pure"])
@settings(max_examples=10, deadline=None)
@given(texts=st.lists(names, min_size=1, max_size=6))
def test_dot_draws_whatever_the_names(engine: str, texts: list[str]) -> None:
    if engine not in ENGINES:
        pytest.skip(f"{engine} is not installed")
    for chosen in (texts, NASTY):
        nodes, edges = drawn(engine, render_dot(graph_of(chosen)))
        assert (set(nodes), len(edges)) == ({"b0", "b1", "b2", "b3"}, 3)


@pytest.mark.parametrize("text", NASTY)
def test_dot_draws_each_nasty_name_in_every_place(text: str) -> None:
    if "dot" not in ENGINES:
        pytest.skip("dot is not installed")
    nodes, edges = drawn("dot", render_dot(graph_of([text])))
    assert (len(nodes), len(edges)) == (4, 3)


def test_mermaid_has_every_box_and_arrow() -> None:
    graph = talker_graph()
    chart = render_mermaid(graph)
    arrows = {"-->": "flow", "-.->": "carried", "==>": "state"}
    found = sorted((source, target, arrows[arrow]) for source, arrow, target in _ARROW.findall(chart))
    style = {False: {True: "carried", False: "flow"}, True: {True: "state", False: "state"}}
    assert found == sorted((e.source, e.target, style[e.state][bool(e.carried)]) for e in graph.edges)
    for box in graph.boxes:
        assert re.search(rf"^ +{box.id}[\[(]", chart, re.M)
    # The numbers of linkStyle are those of arrows; the unseen one comes after them.
    styled = [int(n) for numbers in re.findall(r"linkStyle ([\d,]+)", chart) for n in numbers.split(",")]
    assert sorted(styled) == list(range(len(graph.edges)))
    assert chart.index("~~~") > max(found.start() for found in _ARROW.finditer(chart))


def test_mermaid_stands_upright() -> None:
    """What its layout does first: it follows arrows and turns around those that lead back to where it came from."""
    graph = talker_graph()
    place = {box.id: place for place, box in enumerate(graph.boxes)}
    onwards: dict[str, list[str]] = {box.id: [] for box in graph.boxes}
    for source, _, target in _ARROW.findall(render_mermaid(graph)):
        onwards[source].append(target)
    turned, seen, open_boxes = set(), set(), set()

    def follow(box: str) -> None:
        seen.add(box)
        open_boxes.add(box)
        for target in onwards[box]:
            if target in open_boxes:
                turned.add((box, target))
            elif target not in seen:
                follow(target)
        open_boxes.remove(box)

    for box in onwards:
        if box not in seen:
            follow(box)
    assert turned == {(edge.source, edge.target) for edge in graph.edges if place[edge.target] <= place[edge.source]}


def test_a_large_chart_fits() -> None:
    graph = talker_graph()
    assert over_github_limits(render_mermaid(graph)) is None
    assert len(render_mermaid(graph)) < 15_000
    assert [len(column) for column in columns(graph)] == [1, 1, 1, 1, 1]
    if not shutil.which("dot"):
        pytest.skip("dot is not installed")
    svg = subprocess.run(["dot", "-Tsvg"], input=render_dot(graph), capture_output=True, text=True, check=True).stdout
    size = re.search(r'<svg width="(\d+)pt" height="(\d+)pt"', svg)
    assert size
    assert 1.2 < int(size[1]) / int(size[2]) < 2.2


def _places(graph: Graph) -> dict[str, tuple[float, float, float]]:
    """Of each box that dot draws, its middle across, its middle down and its height. It must not say a word."""
    done = subprocess.run(["dot", "-Tplain"], input=render_dot(graph), capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(" ") for line in done.stdout.splitlines() if line.startswith("node ")]
    return {line[1]: (float(line[2]), -float(line[3]), float(line[5])) for line in lines}


def _random_graph(seed: int) -> Graph:
    """Phases with groups in groups, and arrows of all kinds in all directions."""
    random = Random(seed)
    number = itertools.count()

    def group(depth: int) -> Group:
        few = range(random.randint(1, random.choice([2, 4, 7])))
        inner = [depth > 0 and random.random() < 0.4 for _ in few]
        members = tuple(group(depth - 1) if deep else box() for deep in inner)
        return Group(Box(f"n{next(number)}", "module", "group"), members)

    def box() -> Box:
        return Box(f"n{next(number)}", random.choice(["module", "operation"]), "m" * random.randint(2, 20))

    phases = tuple(group(random.randint(0, 3)) for _ in range(random.randint(1, 6)))
    ends = (Box("before", "input", "what ran before"),), (Box("after", "input", "what ran after"),)
    members = (*random.choice([(), ends[0]]), *phases, *random.choice([(), ends[1]]))
    ids = [box.id for box in Graph("", members, (), flow=True, timed=False).boxes]
    edges = {}
    for _ in range(int(len(ids) * random.choice([0.5, 1, 1.6, 2.5]))):
        source, target = random.choice(ids), random.choice(ids)
        if target != "before" and source != "after":
            carried = random.choice(["", "", "next", "next frame"])
            edges[source, target] = Edge(source, target, carried, state=random.random() < 0.15)
    return Graph("random", members, tuple(edges.values()), flow=True, timed=False)


@pytest.mark.parametrize("seed", range(16))
def test_dot_draws_arrows_in_all_directions(seed: int) -> None:
    """Graphviz 2.43 fails with "trouble in init_rank" or "lost edge" where constraints contradict each other."""
    if not shutil.which("dot"):
        pytest.skip("dot is not installed")
    graph = _random_graph(seed)
    assert {box.id for box in graph.boxes} <= _places(graph).keys()


@pytest.mark.parametrize("graph", [talker_graph(), *map(_random_graph, range(4))])
def test_columns_stand_in_the_order_of_the_run_at_one_height(graph: Graph) -> None:
    if not shutil.which("dot"):
        pytest.skip("dot is not installed")
    places = _places(graph)
    parts = [[places[id] for ids in column for id in ids] for column in columns(graph)]
    assert len(parts) > 1 or graph.title == "random"
    for left, right in itertools.pairwise(parts):
        assert max(across for across, _, _ in left) < min(across for across, _, _ in right)
    tops = [min(down - height / 2 for _, down, height in part) for part in parts]
    assert max(tops) - min(tops) < 0.5  # inches: boxes of one row have their middles at one height


def test_a_long_chain_is_cut_into_columns_in_its_order() -> None:
    boxes = tuple(Box(f"b{n}", "module", f"layer{n}") for n in range(50))
    edges = tuple(Edge(f"b{n}", f"b{n + 1}") for n in range(49))
    net = Group(Box("net", "module", "net"), boxes)
    found = columns(Graph("net", (net,), edges, flow=False, timed=False))
    assert [ids for column in found for ids in column] == [[box.id] for box in boxes]
    assert 4 <= len(found) <= 7
    assert max(map(len, found)) <= 13


@pytest.mark.parametrize("arrow", ["-->", "-.->", "==>", '-.->|"next"|', "~~~"])
def test_github_counts_every_arrow(arrow: str) -> None:
    chart = "flowchart TB\n" + f"  a {arrow} b\n" * 500
    assert over_github_limits(chart) is None
    note = over_github_limits(f"{chart}  b --> c\n")
    assert note is not None
    assert note.startswith("501 edges")
    assert over_github_limits("flowchart TB\n" + "x" * 50_000)


@pytest.mark.parametrize("render", [render_mermaid, render_dot])
def test_colour_is_never_the_only_sign_of_a_change(render: Callable[[Graph], str]) -> None:
    text = render(sample_diff())
    for words in ("~ up_proj", "− gelu", "+ gate", "+ added", "− removed", "~ changed"):
        assert words.replace("~", "#126;").replace("+", "#43;") in text or words in text


@pytest.mark.parametrize("render", [render_mermaid, render_dot])
def test_the_legend_tells_of_what_is_there_alone(render: Callable[[Graph], str]) -> None:
    text = render(plain_graph())
    assert "order of calls" in text
    for absent in ("flow of tensors", "kept state", "earlier repeat", "≥ 30", "added"):
        assert absent not in text


@pytest.mark.parametrize("name", [*LOOKS, *GROUP_LOOKS])
def test_text_is_legible(name: str) -> None:
    look = (LOOKS | GROUP_LOOKS)[name]

    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, bright = sorted((light(look.fill), light(look.ink)))
    assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_shares_have_colours() -> None:
    assert [share_heat(share) for share in (None, 0, 0.01, 0.05, 0.1, 0.3, 1)] == [None, 0, 1, 2, 3, 4, 4]
    assert share_legend() == ["< 1 %", "1–3 %", "3–10 %", "10–30 %", "≥ 30 %"]


def test_facts_say_nothing_that_is_plain() -> None:
    box = Box("b", "module", "b", calls=140, repeats="20×", total_ns=263_000_000, share=0.108)
    assert facts_line(box) == "20× · 140 calls of 1.88 ms = 263 ms · 10.8 %"
    assert facts_line(replace(box, calls=1, repeats="", share=0.0001)) == "263 ms"
    assert facts_line(replace(box, calls=1, repeats="", share=None, total_ns=None)) == ""


@pytest.mark.parametrize("render", [render_mermaid, render_dot])
def test_a_repeat_without_a_name_is_called_by_how_often(render: Callable[[Graph], str]) -> None:
    members = (Group(Box("g", "repeat", "", repeats="14×"), (Box("b", "module", "head"),)),)
    assert render(Graph("net", members, (), flow=True, timed=False)).count("14×") == (
        1 if render is render_mermaid else 2
    )


def test_long_names_lose_their_middle() -> None:
    assert shortened("a" * 60) == "a" * 60
    assert shortened("a" * 40 + "b" * 40) == "a" * 30 + "…" + "b" * 29
    graph = graph_of(["y" * 500])
    assert "y" * 61 not in render_mermaid(graph).replace(f'href "{"y" * 500}"', "").split("subgraph")[1]
    assert "y" * 500 in render_dot(graph)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("layers.0-19.html", "layers.0-19.html"),
        ("pages/net.html#n1", "pages/net.html#n1"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("//elsewhere.example", "elsewhere.example"),
        ('a" onclick="x', "a%22%20onclick%3D%22x"),
    ],
)
def test_links_stay_on_the_spot(name: str, target: str) -> None:
    assert link_target(name) == target


@pytest.mark.skipif(not ENGINES, reason="no layout engine")
def test_headings_are_drawn_over_arrows() -> None:
    graph = GRAPHS["everything"]
    chart = ET.fromstring(render_graph(graph, "svg")).find(f"{SVG}g")
    assert chart is not None
    parts = [part for part in chart if part.tag == f"{SVG}g"]
    assert parts[-1].get("class") == "headings"
    assert not any(list(part.iter(f"{SVG}text")) for part in parts if part.get("class") == "cluster")
    texts = list(parts[-1].iter(f"{SVG}text"))
    behind = [text.text for text in texts if text.get("stroke")]
    on_top = [text.text for text in texts if not text.get("stroke")]
    assert behind == on_top
    headings = [box.name for box in headings_in(graph.members) if box not in graph.boxes and box.name]
    assert headings
    assert set(headings) <= set(on_top)
