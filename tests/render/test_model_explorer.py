"""Model Explorer's graphs: a golden file, its own schema, and that every arrow and group is where it belongs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from golden_files import check_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from nasty_text import NASTY
from sample_graph import graph_of, plain_graph, sample_diff, sample_graph, talker_graph
from sample_trace import sample_trace
from torch import nn

import talkerviz as tv
from talkerviz.cli import main
from talkerviz.flowchart.model import Box, Edge, Graph, Group
from talkerviz.render.charts.graphviz import RenderError
from talkerviz.render.charts.model_explorer import render_model_explorer
from talkerviz.render.options import RenderOptions
from talkerviz.render.registry import render

FOUND = importlib.util.find_spec("model_explorer")
needs_schema = pytest.mark.skipif(
    FOUND is None or importlib.util.find_spec("dacite") is None,
    reason="needs `pip install --no-deps ai-edge-model-explorer dacite`",
)
GRAPHS = {
    "everything": sample_graph(),
    "diff": sample_diff(),
    "plain": plain_graph(),
    "talker": talker_graph(),
    "empty": Graph("nothing", (), (), flow=True, timed=True),
    "nasty": graph_of(NASTY),
}


def drawn(graph: Graph) -> dict[str, Any]:
    """Return the only graph of the collection, checked."""
    collection = json.loads(render_model_explorer(graph))
    (found,) = collection["graphs"]
    check(found)
    return dict(found)


def check(graph: dict[str, Any]) -> None:
    """Check the page's needs: unique names, edges between existing nodes, existing groups."""
    ids = [node["id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids)
    for node in graph["nodes"]:
        assert node["label"]
        assert "/" not in node["label"]
        for place, edge in enumerate(node["incomingEdges"]):
            assert edge["sourceNodeId"] in set(ids) - {node["id"]}
            assert edge["targetNodeInputId"] == str(place)
    for overlays in graph["tasksData"]["edgeOverlaysDataListLeftPane"]:
        for overlay in overlays["overlays"]:
            assert overlay["name"]
            assert {edge[end] for edge in overlay["edges"] for end in ("sourceNodeId", "targetNodeId")} <= set(ids)
    groups = set(graph["groupNodeAttributes"]) - {""}
    for namespace in {node["namespace"] for node in graph["nodes"]} - {""}:
        parts = namespace.split("/")
        assert {"/".join(parts[:count]) for count in range(1, len(parts) + 1)} <= groups
    for config in graph["groupNodeConfigs"]:
        assert len([group for group in groups if re.search(config["namespaceRegex"], group)]) == 1


def test_golden() -> None:
    check_golden("graph_everything.model-explorer.json", render_model_explorer(GRAPHS["everything"]))


@pytest.mark.parametrize("name", GRAPHS)
def test_arrows_and_groups(name: str) -> None:
    found = drawn(GRAPHS[name])
    assert [node["id"] for node in found["nodes"]] == [box.id for box in GRAPHS[name].boxes]


@settings(max_examples=examples(25), deadline=None)
@given(st.lists(st.text(max_size=9), min_size=1, max_size=12))
def test_any_names(texts: list[str]) -> None:
    drawn(graph_of(texts))


def test_groups_of_one_name() -> None:
    inner = [Group(Box(f"g{n}", "module", "mlp", class_name="MLP"), (Box(f"b{n}", "module", "fc"),)) for n in range(3)]
    found = drawn(Graph("net", (*inner, Group(Box("g", "phase", "a/b"), (Box("b", "module", "fc"),))), (), True, False))
    assert [node["namespace"] for node in found["nodes"]] == ["mlp MLP", "mlp MLP (2)", "mlp MLP (3)", "a|b"]


def test_arrows_to_a_later_repeat_bend_nothing() -> None:
    edges = (Edge("a", "b"), Edge("b", "a", carried="next frame", state=True), Edge("b", "b", carried="next"))
    found = drawn(
        Graph("net", (Box("a", "module", "a"), Box("b", "module", "b", shapes="1x2 → 1x3")), edges, True, False)
    )
    one, two = found["nodes"]
    assert one["incomingEdges"] == []
    assert [edge["sourceNodeId"] for edge in two["incomingEdges"]] == ["a"]
    assert two["outputsMetadata"] == [{"id": "0", "attrs": [{"key": "tensor_shape", "value": "1x3"}]}]
    (overlays,) = found["tasksData"]["edgeOverlaysDataListLeftPane"]
    (overlay,) = overlays["overlays"]
    assert overlay["name"] == "kept state (next frame)"
    assert overlay["edges"] == [{"sourceNodeId": "b", "targetNodeId": "a"}]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(70))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_folded_or_with_all_that_there_is() -> None:
    model = Twice()
    trace = tv.record(model, lambda: model(torch.zeros(1, 4)), measure="flow")
    folded, whole = (
        json.loads(render(trace, "model-explorer", RenderOptions(fold=fold)))["graphs"][0] for fold in (True, False)
    )
    places = {node["label"]: node["namespace"] for node in folded["nodes"]}
    assert places == {
        "zeros": "", "add": "model Twice/70x",
        "0 Linear": "model Twice/70x/layers.0-69 Sequential", "1 Tanh": "model Twice/70x/layers.0-69 Sequential",
    }  # fmt: skip
    assert len(folded["nodes"]) == 4
    # Not only as much as is legible in a picture.
    assert len(whole["nodes"]) == 3 * 70 + 1
    check(whole)
    first = next(node for node in whole["nodes"] if node["namespace"].endswith("layers.69 Sequential"))
    assert first["label"] == "0 Linear"
    assert {"key": "in 0", "value": "1x4 float32"} in first["attrs"]
    assert len(json.loads(render(trace, "model-explorer", RenderOptions(max_nodes=5)))["graphs"][0]["nodes"]) <= 5


def test_what_it_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RenderError, match="style flat is for mermaid, dot, svg, png, pdf, not model-explorer"):
        render(sample_trace(), "model-explorer", RenderOptions(style="flat"))
    with pytest.raises(RenderError, match="style source is Mermaid only, not model-explorer"):
        render(sample_trace(), "model-explorer", RenderOptions(style="source"))
    path = tmp_path / "run.parquet"
    sample_trace().save(path)
    monkeypatch.setattr(sys, "argv", ["talkerviz", "render", str(path), "-f", "model-explorer", "--pages", "-o", "x"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "--pages: only pictures have it (mermaid, dot, svg, png, pdf), not model-explorer" in capsys.readouterr().err


def schema() -> ModuleType:
    """Return the page's own classes; without the rest of its package, which needs half a gigabyte."""
    assert FOUND is not None
    assert FOUND.origin is not None
    spec = importlib.util.spec_from_file_location("graph_builder", Path(FOUND.origin).parent / "graph_builder.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["graph_builder"] = found
    spec.loader.exec_module(found)
    return found


@needs_schema
@pytest.mark.parametrize("name", GRAPHS)
def test_their_schema(name: str) -> None:
    import dacite

    builder = schema()
    written = json.loads(render_model_explorer(GRAPHS[name]))
    found = dacite.from_dict(builder.GraphCollection, written, dacite.Config(strict=True))
    assert len(found.graphs[0].nodes) == len(GRAPHS[name].boxes)
    for node in written["graphs"][0]["nodes"]:
        node["colour"] = "red"
    if GRAPHS[name].boxes:
        with pytest.raises(dacite.UnexpectedDataError):
            dacite.from_dict(builder.GraphCollection, written, dacite.Config(strict=True))
