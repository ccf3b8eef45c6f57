"""The flow of tensors in the talker; kept in a file, cut out of a trace, joined to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flow_words import X, paths_of
from torch import nn

import talkerviz as tv
from talkerviz.api import Trace
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.targets import Target, talker_of, talker_target
from talkerviz.trace.flow import Flow
from talkerviz.trace.join import join


@pytest.fixture(scope="module")
def native() -> Trace:
    return recorded("native")


def target_of(impl: str, device: str = "cpu") -> Target:
    return talker_target(talker_of("tiny", impl, device, None, Scenario(frames=3)))


def recorded(impl: str, device: str = "cpu", **kwargs: Any) -> Trace:
    target = target_of(impl, device)
    arguments = {"measure": "flow", "clock": "none", **kwargs}
    return tv.record(target.model, lambda: target.run(lambda frame: None), target.name, target.phases, **arguments)


def between(trace: Trace, inside: str, name: Callable[[str, Any], str], **where: Any) -> set[str]:
    """`source -> target` for edges into calls in a path, with operations named by their call's path; `*` for state."""
    flow = trace.flow
    assert flow is not None
    paths = paths_of(trace)
    ops = list(flow.ops.itertuples())
    named = [name(paths[op.call], op) for op in ops]
    found = set()
    for source, target, state in flow.edges.itertuples(index=False):
        op = ops[target]
        if paths[op.call].startswith(inside) and all(
            str(getattr(op, key)) == str(value) for key, value in where.items()
        ):
            earlier = "" if ops[source].frame is pd.NA or ops[source].frame == op.frame else "earlier "
            if named[source] != named[target] or earlier:
                found.add(f"{earlier}{named[source]} {'=' if state else '-'}> {named[target]}")
    return found


def full_name(path: str, op: Any) -> str:
    return ".".join([*path.split(".")[1:], op.name])


LAYER = """
    add.1 -> input_layernorm, add.1 -> add
    input_layernorm -> self_attn.q_proj, input_layernorm -> self_attn.k_proj, input_layernorm -> self_attn.v_proj
    self_attn.q_proj -> self_attn.q_norm, self_attn.k_proj -> self_attn.k_norm
    self_attn.q_norm -> self_attn, self_attn.k_norm -> self_attn, self_attn.v_proj -> self_attn
    rotary_emb -> self_attn, self_attn -> self_attn.o_proj
    self_attn.o_proj -> add
    add -> post_attention_layernorm, add -> add.1
    post_attention_layernorm -> mlp.gate, post_attention_layernorm -> mlp.experts
    post_attention_layernorm -> mlp.shared_expert.gate_proj, post_attention_layernorm -> mlp.shared_expert.up_proj
    post_attention_layernorm -> mlp.shared_expert_gate
    mlp.shared_expert.gate_proj -> mlp.shared_expert.act_fn, mlp.shared_expert.act_fn -> mlp.shared_expert
    mlp.shared_expert.up_proj -> mlp.shared_expert, mlp.shared_expert -> mlp.shared_expert.down_proj
    mlp.gate -> mlp.experts, mlp.experts -> mlp.experts.act_fn, mlp.experts.act_fn -> mlp.experts
    mlp.shared_expert.down_proj -> mlp, mlp.shared_expert_gate -> mlp, mlp.experts -> mlp
    mlp -> add.1
"""


@pytest.mark.parametrize(("impl", "cache"), [("native", "="), ("transformers", "-")])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_of_the_talker(impl: str, cache: str, layer: int, request: pytest.FixtureRequest) -> None:
    trace = request.getfixturevalue("native") if impl == "native" else recorded(impl)
    path = f"talker.model.layers.{layer}"
    assert trace.flow is not None
    adds: dict[int, str] = {}
    paths = paths_of(trace)
    for number, op in enumerate(trace.flow.ops.itertuples()):
        if paths[op.call].startswith("talker.model.layers.") and paths[op.call].count(".") == 3:
            adds[number] = "add.1" if len(adds) % 2 else "add"

    def name(where: str, op: Any) -> str:
        if op.Index in adds:
            return adds[op.Index]
        if where == "":
            return "add.1"  # before the first layer stands the loop's own sum
        return where.removeprefix("talker.model.").removeprefix(f"layers.{layer}.")

    expected = {edge.strip() for line in LAYER.strip().splitlines() for edge in line.split(",")}
    for frame in (1, 2):
        found = between(trace, path, name, phase="decode", frame=frame)
        # What the first layer gets was made at the end of the frame before.
        given = {"add.1 -> input_layernorm", "add.1 -> add"} if layer == 0 else set()
        earlier = {f"earlier {edge}" for edge in given}
        if impl == "transformers" and frame == 1:
            # The prompt's values are the cache as they are: what they were put behind was empty.
            earlier.add("earlier self_attn.v_proj -> self_attn")
        assert found == expected - given | earlier | {f"earlier self_attn {cache}> self_attn"}


def test_the_talker_s_loops(native: Trace) -> None:
    flow = native.flow
    assert flow is not None
    ops, paths = flow.ops, paths_of(native)
    where = [full_name(paths[op.call], op) for op in ops.itertuples()]
    sources: dict[int, list[int]] = {}
    for source, target, _ in flow.edges.itertuples(index=False):
        sources.setdefault(target, []).append(source)

    def above(number: int, *chain: str) -> int:
        """Return the operation that a chain of sources, each one the only one of its name, leads to."""
        for name in chain:
            (number,) = (source for source in sources[number] if where[source] == name)
        return number

    frames = [
        next(i for i, op in enumerate(ops.itertuples()) if where[i] == "codec_head.linear" and op.frame == frame)
        for frame in range(3)
    ]
    # What a frame begins with: the sum of the embeddings of the 16 codes of the frame before, and a text token's.
    first = next(
        i
        for i in range(frames[0], frames[1])
        if where[i] == "model.layers.0.input_layernorm.rms_norm" and ops["frame"][i] == 1
    )
    codes = above(first, "add", "sum", "cat")
    assert [where[i] for i in sources[above(first, "add")]] == ["cat", "sum"]  # of the prompt's parts
    assert [where[i] for i in sources[codes]] == ["cat", "code_predictor.model.codec_embedding.14.embedding"]
    start, *residual = sources[above(codes, "cat")]
    assert where[start] == "model.codec_embedding.embedding"
    assert [where[i] for i in residual] == [f"code_predictor.model.codec_embedding.{i}.embedding" for i in range(14)]
    # A code is chosen from the logits of a pass, and its embedding is what the next pass begins with.
    for group, embedding in enumerate(residual):
        logits = above(embedding, "argmax", f"code_predictor.lm_head.{group}.linear")
        assert (ops["frame"][logits], ops["step"][logits]) == (0, group)
        norms = [i for i in range(len(ops)) if where[i] == "code_predictor.model.layers.0.input_layernorm.rms_norm"]
        assert any(sources[i] == [embedding] and ops["step"][i] == group + 1 for i in norms)
    # The talker's hidden state and the first code's embedding are what the code predictor begins with.
    pair = next(i for i, from_ in sources.items() if start in from_ and where[i] == "cat")
    assert [where[i] for i in sources[pair]] == ["model.norm.mul", "model.codec_embedding.embedding"]
    assert above(start, "argmax", "index_fill", "codec_head.linear") == frames[0]


def test_transformers_loops_in_the_same_way() -> None:
    trace = recorded("transformers")
    codes = between(trace, "talker.code_predictor.model.codec_embedding", full_name, frame=1)
    # Each code but the first is put behind the ones before, and cut off again.
    assert codes == {
        f"{'cat' if i else 'argmax'} -> code_predictor.model.codec_embedding.{i}.embedding" for i in range(15)
    }
    loop = between(trace, "", full_name, frame=1)
    assert {f"code_predictor.model.codec_embedding.{i}.embedding -> cat" for i in range(15)} <= loop
    assert {f"code_predictor.lm_head.{i}.linear -> argmax" for i in range(15)} <= loop
    assert {"argmax -> cat", "cat -> sum", "sum -> add", "earlier add -> model.layers.0.input_layernorm.pow"} <= loop


def test_a_write_of_a_cache_is_made_from_the_one_before(native: Trace) -> None:
    state = {edge for edge in between(native, "talker", full_name) if "=" in edge and "earlier" in edge}
    layers = [*(f"model.layers.{i}" for i in range(2)), *(f"code_predictor.model.layers.{i}" for i in range(2))]
    # Other layers' writes, though they go into the same tensor, are not among them.
    assert state == {f"earlier {at}.self_attn.setitem => {at}.self_attn.setitem" for at in layers}


def test_the_meta_device_gives_the_same(native: Trace) -> None:
    def outside_experts(trace: Trace) -> list[Any]:
        """There other operations do the same."""
        flow = trace.flow
        assert flow is not None
        paths = paths_of(trace)
        kept = [n for n, op in enumerate(flow.ops.itertuples()) if ".experts" not in paths[op.call]]
        place = {number: at for at, number in enumerate(kept)}
        sources: dict[int, set[Any]] = {number: set() for number in kept}
        for source, target, state in flow.edges.itertuples(index=False):
            if target in sources:
                sources[target].add((place.get(source, "experts"), state))
        ops = [flow.ops.iloc[number] for number in kept]
        columns = ["call", "after", "kind", "heavy", "phase", "frame", "step", "name"]
        return [
            ([op[c] if op[c] is not pd.NA else None for c in columns], [t.shape for t in op["outputs"]], sources[n])
            for n, op in zip(kept, ops, strict=True)
        ]

    assert outside_experts(native) == outside_experts(recorded("native", "meta"))


def test_it_is_kept_in_the_file(native: Trace, tmp_path: Path) -> None:
    native.save(tmp_path / "run.parquet")
    loaded = Trace.load(tmp_path / "run.parquet")
    assert loaded == native
    assert loaded != replace(native, flow=None)
    assert isinstance(loaded.flow, Flow)
    with_file = recorded("native", file=tmp_path / "direct.parquet")
    assert with_file.flow == native.flow
    assert Trace.load(tmp_path / "direct.parquet").flow == native.flow
    replace(native, flow=None).save(tmp_path / "without.parquet")
    assert Trace.load(tmp_path / "without.parquet").flow is None


def test_select_of_the_talker(native: Trace, tmp_path: Path) -> None:
    part = native.select(phase="decode", frame=2, depth=2)
    assert part.flow is not None
    assert set(part.flow.ops["call"]) <= {-1, *part.calls["call"]}
    assert not part.flow.edges.duplicated().any()
    assert part.flow.edges["state"].sum() > 0
    part.save(tmp_path / "part.parquet")
    assert Trace.load(tmp_path / "part.parquet").flow == part.flow


def test_join(native: Trace) -> None:
    plain = recorded("native", measure=None)
    joined = join(plain, native)
    assert joined.flow == native.flow
    assert joined.calls.equals(plain.calls)
    renumbered = replace(plain, calls=plain.calls.assign(call=plain.calls["call"] + 7))
    flow = join(renumbered, native).flow
    assert flow is not None
    assert native.flow is not None
    for column in ("call", "after"):
        before = native.flow.ops[column].to_numpy()
        assert (flow.ops[column].to_numpy() == np.where(before < 0, -1, before + 7)).all()
    assert join(joined, recorded("native", measure="cost")).flow == native.flow

    model = nn.Sequential(nn.Linear(4, 4))
    small, large = (tv.record(model, lambda n=n: model(torch.ones(n, 4)), measure="flow") for n in (1, 2))
    assert join(small, large).flow == large.flow
    with pytest.raises(ValueError, match="inputs"):
        join(small, tv.record(model, lambda: model(torch.ones(2, 4)), measure="cost"))
    other = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(ValueError, match="made 3 calls"):
        join(small, tv.record(other, lambda: other(X), measure="flow"))
    named = tv.record(model, lambda: model(X), name="other", measure="flow")
    with pytest.raises(ValueError, match="in its path"):
        join(small, named)
