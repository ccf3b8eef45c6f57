"""Pictures of small models, against what was worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_words import arrows, group, outline
from sample_trace import call, make_trace, sample_trace, tensor
from torch import Tensor, nn

import talkerviz as tv
from talkerviz.api import Trace
from talkerviz.flowchart.builder import build_graph
from talkerviz.flowchart.collapse import collapse_groups
from talkerviz.flowchart.diff import diff_graph
from talkerviz.flowchart.model import Graph, View
from talkerviz.trace.join import join


class Does(nn.Module):
    """Runs a function on itself and what it is called with."""

    def __init__(self, does: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.does = does
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Any = None) -> Any:
        return self.does(self, x)


def recorded(model: nn.Module, run: Callable[[], object]) -> Trace:
    with torch.no_grad():
        return join(tv.record(model, run), tv.record(model, run, measure="flow"))


def drawn(model: nn.Module, x: Any = None, times: int = 1, **view: Any) -> Graph:
    x = torch.ones(1, 4) if x is None else x

    def run() -> None:
        for _ in range(times):
            model(x)

    return build_graph(recorded(model, run), View(**view))


def layer(width: int = 4, inner: int = 8) -> nn.Module:
    return Does(
        lambda m, x: x + m.down(m.up(m.norm(x)).relu()),
        norm=nn.LayerNorm(width),
        up=nn.Linear(width, inner),
        down=nn.Linear(inner, width),
    )


def stack(*layers: nn.Module) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        for one in m.layers:
            x = one(x)
        return m.head(x)  # type: ignore[no-any-return]

    return Does(run, layers=nn.ModuleList(layers), head=nn.Linear(4, 2))


def test_layers_that_are_alike_are_one_with_its_flow() -> None:
    graph = drawn(stack(*(layer() for _ in range(5))))
    assert outline(graph.members) == [
        "x",
        ["model", ["layers.0-4 5×", "norm", "up", "relu", "down", "add"], "head"],
    ]
    assert arrows(graph) == {
        "x -> norm",
        "x -> add",
        "norm -> up",
        "up -> relu",
        "relu -> down",
        "down -> add",
        "add -> add (next)",
        "add -> norm (next)",
        "add -> add",
        "add -> head",
    } - {"add -> add"}


def test_a_box_says_what_it_stands_for() -> None:
    graph = drawn(stack(*(layer() for _ in range(5))), depth=1)
    box = next(box for box in graph.boxes if box.name == "layers.0-4")
    assert (box.path, box.class_name, box.shapes) == ("model.layers.0-4", "Does", "1x4 → 1x4")
    assert (box.calls, box.modules, box.repeats) == (5, 5, "5×")
    assert box.total_ns is not None
    assert box.mean_ns == round(box.total_ns / 5)
    assert box.share is not None
    assert 0 < box.share < 1
    whole = group(graph, "model").box
    assert whole.share == 1
    assert whole.total_ns is not None
    assert whole.total_ns > box.total_ns


def test_a_fold_splits_where_shapes_inside_differ() -> None:
    graph = drawn(stack(layer(), layer(), layer(inner=16), layer()), max_nodes=100)
    assert outline(graph.members)[1] == [
        "model",
        ["layers.0-1 2×", "norm", "up", "relu", "down", "add"],
        ["layers.2", "norm", "up", "relu", "down", "add"],
        ["layers.3", "norm", "up", "relu", "down", "add"],
        "head",
    ]


def test_a_fold_splits_where_structure_differs() -> None:
    other = Does(lambda m, x: x + m.up(m.norm(x)), norm=nn.LayerNorm(4), up=nn.Linear(4, 4))
    graph = drawn(stack(layer(), other, layer()), depth=1, max_nodes=100)
    assert outline(graph.members)[1] == ["model", "layers.0", "layers.1", "layers.2", "head"]


def test_where_there_is_no_room_what_differs_inside_is_one() -> None:
    graph = drawn(stack(*(layer(inner=8 + n) for n in range(20))), max_nodes=12)
    assert outline(graph.members) == [
        "x",
        ["model", ["layers.0-19 20×", "norm", "up", "relu", "down", "add"], "head"],
    ]
    found = group(graph, "layers.0-19")
    assert found.box.details[0] == "the calls differ inside"
    up = next(member for member in found.members if member.id and getattr(member, "name", "") == "up")
    assert getattr(up, "shapes", "") == "1x4 → 1x8–27"


def test_layers_that_take_turns_are_a_repeat() -> None:
    wide = [layer(inner=16 if n % 3 == 2 else 8) for n in range(9)]
    graph = drawn(stack(*wide), depth=1, max_nodes=100)
    assert outline(graph.members)[1] == ["model", ["3×", "layers.0-1,3-4,6-7 2×", "layers.2,5,8"], "head"]
    assert arrows(graph) == {
        "x -> layers.0-1,3-4,6-7",
        "layers.0-1,3-4,6-7 -> layers.2,5,8",
        "layers.0-1,3-4,6-7 -> layers.0-1,3-4,6-7 (next)",
        "layers.2,5,8 -> layers.0-1,3-4,6-7 (next)",
        "layers.2,5,8 -> head",
    }


def test_a_module_called_in_two_places_is_two_boxes() -> None:
    block = Does(
        lambda m, x: m.relu(x + m.conv2(m.relu(m.conv1(x)))),
        conv1=nn.Conv2d(3, 3, 1),
        relu=nn.ReLU(),
        conv2=nn.Conv2d(3, 3, 1),
    )
    graph = drawn(block, torch.ones(1, 3, 4, 4))
    assert outline(graph.members) == ["x", ["model", "conv1", "relu", "conv2", "add", "relu"]]
    assert arrows(graph) == {
        "x -> conv1",
        "conv1 -> relu",
        "relu -> conv2",
        "conv2 -> add",
        "x -> add",
        "add -> relu#2",
    }


def test_a_module_called_over_and_over_is_one() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        for _ in range(12):
            x = m.shared(x)
        return x

    graph = drawn(Does(run, shared=nn.Linear(4, 4)))
    assert outline(graph.members) == ["x", ["model", "shared 12×"]]
    assert arrows(graph) == {"x -> shared", "shared -> shared (next)"}
    assert next(box for box in graph.boxes if box.name == "shared").calls == 12


def test_what_stands_side_by_side_hands_itself_nothing() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.out(torch.cat([one(x) for one in m.experts] + [m.twice(x), m.twice(x)]))  # type: ignore[no-any-return]

    experts = nn.ModuleList(layer() for _ in range(3))
    graph = drawn(Does(run, experts=experts, twice=nn.Linear(4, 4), out=nn.Linear(4, 4)), depth=1)
    assert outline(graph.members) == ["x", ["model", "experts.0-2 3×", "twice 2×", "cat", "out"]]
    assert arrows(graph) == {"x -> experts.0-2", "x -> twice", "experts.0-2 -> cat", "twice -> cat", "cat -> out"}
    chain = drawn(stack(layer(), layer(), layer()), depth=1)
    assert arrows(chain) == {"x -> layers.0-2", "layers.0-2 -> layers.0-2 (next)", "layers.0-2 -> head"}


def test_what_is_closed_afterwards_hands_itself_what_it_did() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        for one in m.layers:
            x = one(x)
        return m.again(m.again(x))  # type: ignore[no-any-return]

    model, x = Does(run, layers=nn.ModuleList(layer() for _ in range(3)), again=nn.Linear(4, 4)), torch.ones(1, 4)
    trace = recorded(model, lambda: [model(x) for _ in range(2)])
    graph = diff_graph(trace, trace)
    closed = collapse_groups(graph, {group(graph, "layers.0-2").id})
    as_drawn = {
        "x -> layers.0-2",
        "layers.0-2 -> layers.0-2 (next)",
        "layers.0-2 -> again",
        "again -> again (next)",
    }
    assert arrows(closed) == arrows(build_graph(trace, View(depth=1))) == as_drawn
    # Turns of what is in a box are not the box's.
    assert arrows(collapse_groups(graph, {group(graph, "model").id})) == {"x -> model"}

    cell = Does(lambda m, x: m.out(m.cell(x[0], x[1])), cell=nn.GRUCell(4, 4), out=nn.Linear(4, 4))

    def steps() -> None:
        state = torch.zeros(1, 4)
        for _ in range(3):
            state = cell((x, state))

    trace = recorded(cell, steps)
    graph = diff_graph(trace, trace)
    assert "out -> cell (next frame)" in arrows(graph)
    assert "model -> model (next frame)" in arrows(collapse_groups(graph, {group(graph, "model").id}))


def test_a_shortcut_through_nothing_is_not_the_main_way() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        short = m.downsample(x)  # before the convolution reads x
        return m.conv(x) + short  # type: ignore[no-any-return]

    graph = drawn(Does(run, downsample=nn.Identity(), conv=nn.Linear(4, 4)))
    assert arrows(graph) == {"x -> downsample", "x -> conv", "conv -> add", "downsample -> add"}


class Cached(nn.Module):
    """Attention over all it was ever called with, kept in a cache written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor, cache: Tensor, end: int) -> Tensor:
        cache[end - x.shape[0] : end] = self.key(x)
        mixed = nn.functional.scaled_dot_product_attention(x[None], cache[None, :end], cache[None, :end])
        return self.out(mixed[0])  # type: ignore[no-any-return]


def test_a_cache_is_a_kept_state_from_frame_to_frame() -> None:
    model = Cached()

    def run() -> None:
        cache = torch.zeros(8, 4)
        x = model(torch.ones(3, 4), cache, 3)[-1:]
        for end in range(4, 8):
            x = model(x, cache, end)

    graph = build_graph(recorded(model, run), View())
    parts = ["key", "setitem", "scaled_dot_product_attention", "out"]
    assert outline(graph.members) == [
        ["forward", "ones"],
        ["prefill frame 0", ["model", *parts]],
        ["decode 4 frames · cache 4–7", ["model", *parts]],
    ]
    # From the first step to the others, and from one of these to the next.
    later = [edge for edge in graph.edges if edge.state]
    assert [(edge.carried, edge.source == edge.target, edge.count) for edge in later] == [
        ("next frame", False, 1),
        ("next frame", True, 3),
    ]
    assert {arrow for arrow in arrows(graph) if "=>" in arrow} == {"setitem => setitem (next frame)"}
    assert "out -> key (next frame)" in arrows(graph)


def test_a_cell_has_the_state_that_it_left_a_frame_ago() -> None:
    model, given = nn.GRUCell(4, 4), [torch.ones(1, 4) for _ in range(3)]

    def run() -> None:
        state = torch.zeros(1, 4)
        for x in given:
            state = model(x, state)

    graph = build_graph(recorded(model, run))
    assert arrows(graph) == {"zeros -> model", "input -> model", "model -> model (next frame)"}


def test_an_input_that_every_frame_reads_is_handed_on_by_none() -> None:
    graph = drawn(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), times=3)
    assert outline(graph.members) == [["forward 3 frames", "input", ["model", "0", "1"]]]
    assert arrows(graph) == {"input -> 0", "0 -> 1"}

    model, first, rest = nn.Linear(4, 4), torch.ones(4), torch.ones(1, 4)
    graph = build_graph(recorded(model, lambda: [model(x) for x in (first, rest, rest)]))
    assert outline(graph.members) == [
        ["forward 3 frames", "input frame 0", "model frame 0", "input frames 1–2", "model frames 1–2"]
    ]
    assert arrows(graph) == {"input -> model", "input#2 -> model#2"}


def test_operations_that_only_feed_each_other_are_one() -> None:
    graph = drawn(Does(lambda m, x: m.out((x * 2 + 1).tanh() - 3), out=nn.Linear(4, 4)))
    assert outline(graph.members) == ["x", ["model", "mul · add · tanh · sub", "out"]]


def test_branches_into_attention_stay_apart() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        query, key = m.q(x) * 2, m.k(x) + 1
        return m.o(nn.functional.scaled_dot_product_attention(query[None], key[None], m.v(x)[None])[0])  # type: ignore[no-any-return]

    graph = drawn(Does(run, q=nn.Linear(4, 4), k=nn.Linear(4, 4), v=nn.Linear(4, 4), o=nn.Linear(4, 4)))
    assert arrows(graph) >= {
        "q -> mul",
        "mul -> scaled_dot_product_attention",
        "k -> add",
        "add -> scaled_dot_product_attention",
        "v -> scaled_dot_product_attention",
        "scaled_dot_product_attention -> o",
    }


def test_a_chain_into_a_reduction_is_one() -> None:
    graph = drawn(Does(lambda m, x: m.out((x * 2).softmax(-1) + 1), out=nn.Linear(4, 4)))
    assert outline(graph.members) == ["x", ["model", "mul · softmax · add", "out"]]


def test_what_comes_from_no_input_is_not_drawn() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])[None] + 1
        if (x > 100).any():
            raise AssertionError
        return m.out(x * positions)  # type: ignore[no-any-return]

    graph = drawn(Does(run, out=nn.Linear(4, 4)))
    assert outline(graph.members) == ["x", ["model", "mul", "out"]]


def test_the_result_of_a_model_is_drawn_though_nothing_reads_it() -> None:
    graph = drawn(Does(lambda m, x: {"y": x + m.out(x)}, out=nn.Linear(4, 4)))
    assert arrows(graph) == {"x -> out", "x -> add", "out -> add"}


def test_arrows_of_call_order() -> None:
    graph = drawn(stack(layer(), layer()), edges="calls")
    assert not graph.flow
    assert arrows(graph) == {
        "norm -> up",
        "up -> down",
        "down -> norm (next)",
        "down -> head",
    }
    assert graph.notes == ()


def test_without_flow_a_note_says_so() -> None:
    graph = build_graph(sample_trace())
    assert not graph.flow
    assert graph.notes == ("Arrows are the order of calls: the flow of tensors was not recorded.",)
    with pytest.raises(ValueError, match="recorded without the flow of tensors"):
        build_graph(sample_trace(), View(edges="flow"))
    with pytest.raises(ValueError, match="unknown edges 'arrows': choose from flow, calls"):
        build_graph(sample_trace(), View(edges="arrows"))


def test_depth_open_and_close() -> None:
    model = stack(*(layer() for _ in range(3)))
    assert outline(drawn(model, depth=0).members) == ["x", "model"]
    assert outline(drawn(model, depth=1).members) == ["x", ["model", "layers.0-2 3×", "head"]]
    opened = drawn(model, depth=0, open=("*.layers.*",))
    assert outline(opened.members) == ["x", ["model", ["layers.0-2 3×", "norm", "up", "relu", "down", "add"], "head"]]
    assert outline(drawn(model, close=("*.layers.?",)).members) == ["x", ["model", "layers.0-2 3×", "head"]]
    # Closing wins, and a module without modules opens when it is asked to.
    assert outline(drawn(model, open=("*.up",), close=("*.layers.*",)).members)[1][1] == "layers.0-2 3×"  # type: ignore[index]
    assert ["up", "linear"] in outline(drawn(model, open=("*.up",)).members)[1][1]  # type: ignore[index]
    with pytest.raises(ValueError, match="no module that was called fits 'nosuch': paths are such as 'model"):
        drawn(model, open=("nosuch",))


def test_without_folding_each_call_is_a_box() -> None:
    graph = drawn(stack(layer(), layer()), fold=False, max_nodes=100)
    assert outline(graph.members) == [
        "x",
        [
            "model",
            ["layers.0", "norm", "up", "relu", "down", "add"],
            ["layers.1", "norm", "up", "relu", "down", "add"],
            "head",
        ],
    ]


def test_what_is_left_out_says_how_much() -> None:
    rows = [call(n, None, 0, f"net.part{n}", "Part", 10 * n, 10 * n, phase="forward") for n in range(1, 101)]
    graph = build_graph(make_trace(rows), View(max_nodes=10))
    assert len(graph.boxes) == 10
    more = next(box for box in graph.boxes if box.kind == "more")
    assert (more.name, more.calls, more.total_ns) == ("91 more", 91, sum(10 * n for n in range(1, 92)))
    kept = {box.name for box in graph.boxes} - {more.name}
    assert kept == {f"net.part{n}" for n in range(92, 101)}  # those that took longest


def test_a_part_of_what_would_never_fit() -> None:
    rows = [call(0, None, 0, "net", "Net", 6_000, 10, phase="forward")]
    rows += [call(n, 0, 1, f"net.part{n}", "Part", 10 * n, 10 * n, phase="forward") for n in range(1, 101)]
    graph = build_graph(make_trace(rows), View(max_nodes=10))
    assert len(graph.boxes) == 10
    assert [box.name for box in group(graph, "net").members][:2] == ["91 more", "part92"]


def test_one_of_two_that_would_never_fit_together() -> None:
    rows = []
    for phase, parts in (("prefill", 6), ("decode", 7)):
        top = len(rows)
        rows.append(call(top, None, 0, "net", "Net", 1_000 * parts, 10, phase=phase))
        rows += [
            call(top + n, top, 1, f"net.part{n}", "Part", 10 * n, 10 * n, phase=phase) for n in range(1, parts + 1)
        ]
    graph = build_graph(make_trace(rows), View(max_nodes=10))
    # A module is open in both phases or in neither, or for want of room in one, and there with all that is in it.
    assert sorted(box.name for box in graph.boxes) == ["net", *(f"part{n}" for n in range(1, 8))]


def test_no_more_boxes_than_asked_for() -> None:
    model = stack(*(layer(inner=8 + n) for n in range(10)))
    for most in (3, 5, 8, 20, 40):
        assert len(drawn(model, max_nodes=most).boxes) <= most


def test_growing_masks_are_one_and_other_sizes_are_not() -> None:
    def step(number: int, frame: int, mask: int, width: int = 1) -> Any:
        inputs = (tensor("x", 1, width), tensor("mask", 1, mask), tensor("past_key_values.layers.0.keys", 1, mask - 1))
        more = {"phase": "decode", "frame": frame, "inputs": inputs, "outputs": (tensor("y", 1, width),)}
        return call(number, None, 0, "net", "Net", 1, 1, **more)

    graph = build_graph(make_trace([step(n, n, 10 + n) for n in range(4)]))
    assert outline(graph.members) == [["decode 4 frames · cache 10–13", "net"]]
    graph = build_graph(make_trace([step(n, n, 10 + n, width=1 + n) for n in range(3)]))
    assert outline(graph.members)[0][1:] == ["net frame 0", "net frame 1", "net frame 2"]  # type: ignore[index]
    graph = build_graph(make_trace([step(0, 0, 10), step(1, 0, 11)]))
    assert outline(graph.members)[0][1:] == ["net", "net"]  # type: ignore[index]


def test_what_is_read_off_shrinks_as_the_cache_grows() -> None:
    def step(number: int, left: int) -> Any:
        inputs = (tensor("x", 1, 8), tensor("mask", 1, 10 + number), tensor("left", 1, left))
        more = {"phase": "decode", "frame": number, "inputs": inputs, "outputs": (tensor("y", 1, 8),)}
        return call(number, None, 0, "net", "Net", 1, 1, **more)

    one = build_graph(make_trace([step(n, 5 - n) for n in range(4)]))
    assert outline(one.members)[0][1:] == ["net"]  # type: ignore[index]
    jumps = build_graph(make_trace([step(n, 50 - 7 * n) for n in range(3)]))
    assert outline(jumps.members)[0][1:] == ["net frame 0", "net frame 1", "net frame 2"]  # type: ignore[index]


def test_errors_are_told() -> None:
    graph = build_graph(sample_trace())
    assert [box.error for box in graph.boxes if box.error] == ["ValueError"]


def test_an_empty_trace() -> None:
    graph = build_graph(make_trace([]))
    assert (graph.members, graph.edges) == ((), ())


def test_parts_of_a_run() -> None:
    model = stack(*(layer() for _ in range(3)))
    trace = recorded(model, lambda: model(torch.ones(1, 4)))
    graph = build_graph(trace.select(module="model.layers.1"))
    assert outline(graph.members) == [
        "what ran before",
        ["model.layers.1", "norm", "up", "relu", "down", "add"],
        "what ran after",
    ]
    assert arrows(graph) >= {"what ran before -> norm", "what ran before -> add", "add -> what ran after"}
    with pytest.raises(ValueError, match="no module that was called fits 'layers'"):
        trace.select(module="layers")


def test_a_training_step_is_its_modules_and_a_box_for_the_rest() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    x, wanted = torch.ones(3, 4), torch.zeros(3, dtype=torch.long)

    def run() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), wanted).backward()
            optimizer.step()

    run()
    trace = join(tv.record(model, run), tv.record(model, run, measure="flow"))
    graph = build_graph(trace)
    (rest,) = [box for box in graph.boxes if box.kind == "operation"]
    assert rest.name.startswith("cross_entropy · ")
    assert "more" in rest.name
    assert len([box for box in graph.boxes if box.kind == "module"]) == 3
    ovals = [box.name for box in graph.boxes if box.kind == "input"]
    assert ovals[0] == "input"  # which the model reads as well
    assert [name.partition(" ")[2] for name in ovals[1:]] == ["inputs"]
    named = {box.id: box.name for box in graph.boxes}
    found = {(named.get(edge.source, ""), named.get(edge.target, ""), edge.carried) for edge in graph.edges}
    assert (rest.name, "0", "next frame") in found
    assert ("2", rest.name, "") in found
    assert len(build_graph(trace, View(fold=False, max_nodes=1000)).boxes) > 60
