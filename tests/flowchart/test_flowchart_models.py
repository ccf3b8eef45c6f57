"""Pictures of real models, against expectations written from their papers and code, not from what was drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_words import RESIDUALS, arrows, arrows_into, group, outline
from torch import nn
from transformers_versions import OLDER_TRANSFORMERS, not_with_older_transformers

import talkerviz as tv
from talkerviz.api import Trace
from talkerviz.flowchart.builder import build_graph
from talkerviz.flowchart.diff import changes, collapse_unchanged, diff_graph
from talkerviz.flowchart.model import Graph, Group, View
from talkerviz.flowchart.subpages import subpages
from talkerviz.recorder.recording import recording
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.targets import talker_of, talker_target
from talkerviz.trace.join import join

ATTENTION = {
    "q_proj -> mul · neg · cat · add",
    "k_proj -> mul · neg · cat · add#2",
    "mul · neg · cat · add -> scaled_dot_product_attention",
    "mul · neg · cat · add#2 -> scaled_dot_product_attention",
    "v_proj -> cat",
    "cat -> scaled_dot_product_attention",
    "scaled_dot_product_attention -> o_proj",
}


@functools.cache
def talker(impl: str) -> Trace:
    target = talker_target(talker_of("tiny", impl, "cpu", None, Scenario(frames=4)))
    traces = []
    for measure in (None, "flow"):
        with recording(target.model, target.name, target.phases, facts=target.facts, measure=measure) as rec:
            target.run(lambda done: None)
        traces.append(rec.trace)
    return join(*traces)


IMPLS = pytest.mark.parametrize("impl", ["native", "transformers"])
LAYERS_OPEN = View(open=("talker.model.layers.*", "*.code_predictor.model.layers.*"), close=("*.self_attn", "*.mlp"))


@IMPLS
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_both_residuals_of_a_decoder_layer(impl: str, phase: str) -> None:
    graph = build_graph(talker(impl), LAYERS_OPEN)
    layers = group(graph, "layers.0-1", phase)
    assert layers.box.repeats == "2×"
    # A decode step's keys and values are there for the next: ours written in place, transformers' new tensors.
    kept = {f"self_attn {'=>' if impl == 'native' else '->'} self_attn (next frame)"}
    assert arrows(graph, layers) == RESIDUALS | (kept if phase == "decode" else set())
    assert "rotary_emb -> self_attn" in arrows_into(graph, layers)


@IMPLS
def test_the_cache_leads_from_prefill_to_decode(impl: str) -> None:
    graph = build_graph(talker(impl), LAYERS_OPEN)
    into = arrows_into(graph, group(graph, "layers.0-1", "decode"))
    # Ours is written in place; transformers' is a new tensor each time.
    keeps = f"self_attn {'=>' if impl == 'native' else '->'} self_attn"
    assert f"{keeps} (next frame)" in into
    # Within a frame, from pass to pass of the code predictor.
    assert f"{keeps} (next)" in arrows(graph, group(graph, "", "predictor.decode"))
    decode = group(graph, "decode").box
    assert decode.repeats == {"native": "3 frames · cache 21–23", "transformers": "4 frames · cache 21–24"}[impl]


@IMPLS
def test_the_shared_expert_stands_beside_the_routed_ones(impl: str) -> None:
    graph = build_graph(talker(impl), View(open=("*.model.layers.*.mlp",), close=("*.experts", "*.shared_expert")))
    mlp = group(graph, "mlp", "decode")
    assert arrows(graph, mlp) == {
        "gate -> experts",
        "experts -> sigmoid · mul · add",
        "shared_expert -> sigmoid · mul · add",
        "shared_expert_gate -> sigmoid · mul · add",
    }
    assert arrows_into(graph, mlp) == {
        "post_attention_layernorm -> gate",
        "post_attention_layernorm -> experts",
        "post_attention_layernorm -> shared_expert",
        "post_attention_layernorm -> shared_expert_gate",
    }


@IMPLS
def test_sixteen_embeddings_are_summed_into_the_next_frame(impl: str) -> None:
    graph = build_graph(talker(impl), View(depth=1))
    found = arrows(graph)
    last = "talker.code_predictor.model.codec_embedding.14"
    sums = next(arrow.partition(" -> ")[2] for arrow in found if arrow.startswith(f"{last} ->"))
    assert sums.startswith("cat · sum")
    # 1 of the first code, 14 of the passes, 1 of the last code.
    of_frame = {arrow.partition(" -> ")[0] for arrow in found if arrow.endswith(f"-> {sums}")}
    assert of_frame == {"talker.model.codec_embedding", "model.codec_embedding.0-13", last}
    into_decode = {arrow for arrow in arrows_into(graph, group(graph, "decode")) if "(next frame)" in arrow}
    assert "add -> model (next frame)" in into_decode
    assert f"{sums} -> add" in found


@IMPLS
def test_the_code_predictors_loop(impl: str) -> None:
    if OLDER_TRANSFORMERS and impl == "transformers":
        pytest.skip("its loop keeps codes otherwise")
    graph = build_graph(talker(impl), View(depth=1))
    loop = group(graph, "", "predictor.decode")
    assert (loop.box.kind, loop.box.repeats) == ("repeat", "14×")
    # A pass's code is the next one's input, and the first pass's comes from the pass over two positions.
    inside = arrows(graph, loop)
    # transformers puts the code behind the ones before, and cuts it off again.
    code = {"native": "argmax", "transformers": "cat"}[impl]
    assert {f"{code} -> model.codec_embedding.0-13 (next)", "lm_head.1-14 -> argmax"} <= inside
    assert impl == "native" or "argmax -> cat" in inside
    assert "argmax -> model.codec_embedding.0-13" in arrows_into(graph, loop)
    assert "model.codec_embedding.0-13 -> model" in inside


@IMPLS
def test_the_whole_talker_is_legible(impl: str) -> None:
    graph = build_graph(talker(impl))
    assert len(graph.boxes) < 60
    assert [member.box.name for member in graph.members if hasattr(member, "box")] == [
        "setup", "prefill", "predictor.prefill", "predictor.decode", "decode",
    ]  # fmt: skip
    # The prompt's three projections have different shapes, so they are three boxes.
    setup = build_graph(talker(impl), View(depth=0))
    projections = [box.shapes for box in setup.boxes if box.name == "talker.text_projection"]
    assert projections == ["1x3x96 → 1x3x64", "11x96 → 11x64", "1x20x96 → 1x20x64"]


@IMPLS
def test_every_call_is_in_just_one_box_or_open(impl: str) -> None:
    trace = talker(impl)
    for view in (View(), View(max_nodes=10), View(max_nodes=500), View(fold=False, max_nodes=10_000)):
        graph = build_graph(trace, view)
        assert sum(box.calls for box in graph.boxes if box.kind == "module") <= len(trace.calls)
    # All open, the boxes are the calls that made no others.
    leaves = set(trace.calls["call"]) - set(trace.calls["parent"].dropna())
    whole = build_graph(trace, View(max_nodes=10_000))
    assert sum(box.calls for box in whole.boxes if box.kind == "module") == len(leaves)


@not_with_older_transformers
def test_native_against_transformers() -> None:
    graph = diff_graph(talker("native"), talker("transformers"))
    found = {(box.change, box.name) for box in changes(graph)}
    assert ("removed", "setitem") in found
    assert ("added", "cat") in found
    # The modules are the same ones, under longer class names.
    assert not {box.name for box in changes(graph) if box.kind == "module" and box.change in ("added", "removed")}
    assert "native ⇒ transformers" in graph.title
    drawn = collapse_unchanged(graph, 35)
    assert len(drawn.boxes) <= 35
    # What is closed for want of room is not said to be the same.
    closed = [box for box in drawn.boxes if box.details[:1] == ("differs inside",)]
    assert closed
    assert {box.change for box in closed} == {"changed"}
    same = diff_graph(talker("native"), talker("native"))
    assert changes(same) == []
    assert same.notes == ("No difference.",)


def test_one_preset_against_another() -> None:
    def stack(layers: int, width: int) -> Trace:
        model = nn.Sequential(nn.Linear(4, width), nn.ModuleDict(), nn.Linear(width, 4))
        model[1] = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        return tv.record(model, lambda: model(torch.ones(1, 4)))

    graph = diff_graph(stack(2, 8), stack(5, 8))
    assert [(box.change, box.name) for box in changes(graph)] == [("added", "2-4")]
    graph = diff_graph(stack(2, 8), stack(2, 16))
    assert [box.shapes for box in changes(graph)] == [
        "1x4 → 1x8 ⇒ 1x4 → 1x16", "1x8 → 1x8 ⇒ 1x16 → 1x16", "1x8 → 1x8 ⇒ 1x16 → 1x16", "1x8 → 1x4 ⇒ 1x16 → 1x4",
    ]  # fmt: skip


def test_pages_show_all_that_is_closed() -> None:
    trace = talker("native")
    pages = {page.name: page.graph for page in subpages(trace, View(max_nodes=8), ".svg")}
    linked = {box.link.removesuffix(".svg") for graph in pages.values() for box in graph.boxes if box.link}
    assert linked | {"index"} == set(pages)
    layers = next(graph for name, graph in pages.items() if name.startswith("decode") and "layers.0-1" in name)
    assert "layers.0-1" in str(outline(layers.members))
    # Whatever is called is seen on some page.
    seen = {box.class_name for graph in pages.values() for box in graph.boxes}
    assert {"Linear", "SiLUActivation", "TalkerTextTopKRouter", "RMSNorm"} <= seen


def picture(model: nn.Module, run: Callable[[], object], **view: Any) -> Graph:
    model.eval()
    with torch.no_grad():
        trace = join(tv.record(model, run), tv.record(model, run, measure="flow"))
    return build_graph(trace, View(**view))


def test_what_a_run_makes_before_its_first_call_stands_first() -> None:
    model = nn.Linear(4, 4)
    graph = picture(model, lambda: model(torch.ones(1, 4)) + 1)
    assert outline(graph.members) == ["ones", "model", "add"]
    assert arrows(graph) == {"ones -> model", "model -> add"}


def test_a_dense_decoder() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, num_hidden_layers=4, **sizes))
    tokens = torch.arange(10)[None]
    stop: Any = {"eos_token_id": None, "pad_token_id": 0}
    run = lambda: model.generate(tokens, max_new_tokens=5, do_sample=False, **stop)  # noqa: E731

    graph = picture(model, run, close=("*.self_attn", "*.mlp"))
    setup, prefill, decode = [member for member in graph.members if isinstance(member, Group)]
    assert [phase.box.name for phase in (setup, prefill, decode)] == ["setup", "prefill", "decode"]
    assert prefill.box.repeats == "frame 0"
    assert decode.box.repeats == "4 frames · cache 11–14"  # drawn once
    kept = {"self_attn -> self_attn (next frame)"}
    for phase in ("prefill", "decode"):
        assert arrows(graph, group(graph, "layers.0-3", phase)) == RESIDUALS | (kept if phase == "decode" else set())
    found = arrows(graph)
    assert {"embed_tokens -> input_layernorm", "embed_tokens -> add", "norm -> lm_head"} <= found
    # The token that was chosen is the next frame's input, and the cache goes along.
    assert any(arrow.endswith("-> embed_tokens (next frame)") for arrow in found)
    assert "self_attn -> self_attn (next frame)" in found

    inside = picture(model, run, open=("*.layers.*.self_attn",))
    assert arrows(inside, group(inside, "self_attn")) >= ATTENTION - {
        "v_proj -> cat",
        "cat -> scaled_dot_product_attention",
    }


def test_an_encoder_and_decoder_with_cross_attention() -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_mel_bins": 8, "vocab_size": 100}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    ends = {"max_source_positions": 20, "max_target_positions": 30, "suppress_tokens": [], "begin_suppress_tokens": []}
    model = WhisperForConditionalGeneration(WhisperConfig(**layers, **heads, **ids, **ends))
    heard, tokens = torch.randn(1, 8, 40), torch.arange(4)[None]
    run = lambda: model(input_features=heard, decoder_input_ids=tokens)  # noqa: E731

    graph = picture(model, run, close=("*_attn",), open=("*.layers.*",))
    encoder, decoder = group(graph, "encoder"), group(graph, "decoder")
    assert arrows(graph, encoder) >= {
        "conv1 -> gelu",
        "gelu -> conv2",
        "conv2 -> gelu · add",
        "embed_positions -> gelu · add",
        "gelu · add -> self_attn_layer_norm",
        "self_attn -> add",
        "add -> final_layer_norm",
        "final_layer_norm -> fc1",
        "fc1 -> activation_fn",
        "activation_fn -> fc2",
        "fc2 -> add#2",
        "add -> add#2",
        "add#2 -> layer_norm",
    }
    # What the encoder made goes into the cross attention of every layer, and nowhere else.
    assert arrows_into(graph, decoder) == {"layer_norm -> encoder_attn", "decoder_input_ids -> embed_tokens"}
    stack = group(graph, "layers.0-1")
    of_decoder = next(member for member in decoder.members if hasattr(member, "box"))
    assert stack is not of_decoder
    assert arrows(graph, of_decoder) >= {  # type: ignore[arg-type]
        "self_attn_layer_norm -> self_attn",
        "self_attn -> add",
        "add -> encoder_attn_layer_norm",
        "encoder_attn_layer_norm -> encoder_attn",
        "encoder_attn -> add#2",
        "add -> add#2",
        "add#2 -> final_layer_norm",
        "fc2 -> add#3",
        "add#2 -> add#3",
        "add#3 -> add (next)",
        "add#3 -> self_attn_layer_norm (next)",
    }
    assert "layer_norm -> proj_out" in arrows(graph)


def test_a_vision_transformer() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes))
    pixels = torch.randn(1, 3, 32, 32)
    graph = picture(model, lambda: model(pixel_values=pixels))
    layers = group(graph, "layers.0-2")
    assert arrows(graph, layers) == {
        "layernorm_before -> q_proj",
        "layernorm_before -> k_proj",
        "layernorm_before -> v_proj",
        "q_proj -> scaled_dot_product_attention",
        "k_proj -> scaled_dot_product_attention",
        "v_proj -> scaled_dot_product_attention",
        "scaled_dot_product_attention -> o_proj",
        "o_proj -> dropout",
        "dropout -> add",
        "add -> layernorm_after",
        "layernorm_after -> fc1",
        "fc1 -> activation_fn",
        "activation_fn -> fc2",
        "fc2 -> dropout#2",
        "dropout#2 -> add#2",
        "add -> add#2",
        "add#2 -> layernorm_before (next)",
        "add#2 -> add (next)",
    }
    found = arrows(graph)
    # The class token is put before the patches, positions are added, and its last state is classified.
    assert {
        "pixel_values -> projection",
        "projection -> cat · add",
        "add#2 -> layernorm",
        "layernorm -> classifier",
    } <= found


def test_a_relative_bias_is_handed_down_the_layers() -> None:
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4))
    tokens = torch.arange(10)[None]
    graph = picture(model, lambda: model(input_ids=tokens), open=("*.block.*",), close=("*.DenseReluDense",))
    # The first block has the bias that the others are given, so it is not one of them.
    first, others = group(graph, "block.0"), group(graph, "block.1-2")
    assert others.box.repeats == "2×"
    assert "relative_attention_bias" in str(outline(first.members))
    assert "relative_attention_bias" not in str(outline(others.members))
    assert "relative_attention_bias -> scaled_dot_product_attention" in arrows(graph, first)
    assert "relative_attention_bias -> scaled_dot_product_attention" in arrows_into(graph, others)
