"""Models of others, from their configs and a few lines of torch: what is told of each, against its paper and code."""

from __future__ import annotations

import csv
import html
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graph_words import RESIDUALS, arrows, arrows_into, group, outline
from huggingface_models import CONFIGS, OWN, TOKENS, trace_of
from transformers_versions import OLDER_TRANSFORMERS, not_with_older_transformers

from talkerviz.flowchart.builder import build_graph
from talkerviz.flowchart.model import Graph, Group, View
from talkerviz.render.registry import render
from talkerviz.report.writer import write_report

GENERATED = {"prefill": 1, "decode": TOKENS - 1}
PHASES: dict[str, dict[str, int]] = {
    "llama": GENERATED,
    "qwen3_moe": GENERATED,
    "whisper": {"encode": 0, **GENERATED},
    "vit": {"forward": 1},
    "t5": {"encode": 0, **GENERATED},
    "mamba": GENERATED,
    "clip": {"forward": 1},
    "qwen2_5_omni_talker": GENERATED,
    "resnet": {"forward": 1},
    "unet": {"forward": 1},
    "dit": {"forward": 3},
    "lstm": {"forward": 3},
    "gnn": {"forward": 1},
}
# Three layers, or two, in each of four passes; an encoder's once.
CALLS: dict[str, dict[str, int]] = {
    "llama": {
        "LlamaForCausalLM": 4,
        "LlamaDecoderLayer": 12,
        "LlamaRMSNorm": 4 * (2 * 3 + 1),
        "Linear": 4 * (7 * 3 + 1),
    },
    "qwen3_moe": {"Qwen3MoeTopKRouter": 12, "Qwen3MoeExperts": 12, "Qwen3MoeRMSNorm": 4 * (4 * 3 + 1)},
    "whisper": {
        "WhisperEncoder": 1,
        "WhisperEncoderLayer": 2,
        "Conv1d": 2,
        "WhisperDecoderLayer": 8,
        "WhisperAttention": 2 + 2 * 8,
    },
    "vit": {"ViTLayer": 3, "Conv2d": 1, "Linear": 6 * 3 + 1},
    "t5": {"T5Block": 3 + 12, "T5LayerSelfAttention": 3 + 12, "T5LayerCrossAttention": 12},
    "mamba": {"MambaMixer": 12, "MambaRMSNorm": 4 * (3 + 1), "Linear": 4 * (3 * 3 + 1)},
    "clip": {"CLIPTextModel": 1, "CLIPVisionModel": 1, "CLIPEncoderLayer": 2 + 3, "Linear": 6 * 5 + 2},
    "qwen2_5_omni_talker": {"Qwen2_5OmniDecoderLayer": 12, "Embedding": 3, "Linear": 4 * (7 * 3 + 2)},
    "resnet": {"Bottleneck": 5, "Conv2d": 1 + 3 * 5 + 2, "BatchNorm2d": 1 + 3 * 5 + 2, "ReLU": 3 * 5, "Linear": 1},
    "unet": {"ResBlock": 5, "Conv2d": 3 * 5 + 2, "GroupNorm": 2 * 5, "AvgPool2d": 2, "Upsample": 2},
    "dit": {"DiT": 3, "DiTBlock": 12, "MultiheadAttention": 12, "LayerNorm": 24, "Conv2d": 3},
    "lstm": {"LSTM": 3},
    "gnn": {"Messages": 3, "Linear": 2 + 4 * 3 + 1},
}
FOLDS: dict[str, dict[str, int]] = {
    "llama": {"layers.0-2 3×": 2, "decode 3 frames · cache 13–15": 1},
    "qwen3_moe": {"layers.0-2 3×": 2, "decode 3 frames · cache 13–15": 1},
    # What was heard is looked at as well, but does not grow.
    "whisper": {"layers.0-1 2×": 3, "decode 3 frames · cache 2–4": 1},
    "vit": {"layers.0-2 3×": 1},
    # The first block has the bias of positions that the others are handed.
    "t5": {"block.0": 3, "block.1-2 2×": 3, "decode 3 frames · cache 2–4": 1},
    # No keys are kept, so nothing grows; the first pass goes through the prompt's twelve positions one by one.
    "mamba": {"layers.0-2 3×": 2, "decode 3 frames": 1, "12×": 1},
    "clip": {"layers.0-1 2×": 1, "layers.0-2 3×": 1},
    # Of the thinker's reply there is less left at each step.
    "qwen2_5_omni_talker": {"layers.0-2 3×": 2, "decode 3 frames · cache 13–15": 1},
    # A stage's first bottleneck widens what it is given.
    "resnet": {"0": 4, "1-2 2×": 1, "1": 3},
    "unet": {"down1": 1, "down2": 1, "middle": 1, "up1": 1, "up2": 1},
    "dit": {"blocks.0-3 4×": 1, "forward 3 frames": 1},
    "lstm": {"model frame 0": 1, "model frames 1–2": 1},
    "gnn": {"rounds.0-2 3×": 1},
}
EVERY = pytest.mark.parametrize("name", [*CONFIGS, *OWN])


def graph_of(name: str, **view: Any) -> Graph:
    """With room for all: what is open must not hang on how long it took."""
    return build_graph(trace_of(name), View(max_nodes=1000, **view))


def words(members: list[object]) -> Iterator[str]:
    for member in members:
        if isinstance(member, list):
            yield from words(member)
        else:
            yield str(member)


@EVERY
def test_phases_and_frames(name: str) -> None:
    found = trace_of(name).calls.groupby("phase", observed=True)["frame"].nunique()
    assert found.to_dict() == PHASES[name]


@EVERY
def test_calls(name: str) -> None:
    if OLDER_TRANSFORMERS and name == "qwen2_5_omni_talker":
        pytest.skip("it looks its first two codes up otherwise")
    found = Counter(trace_of(name).calls["class"].astype(str))
    assert {kind: found[kind] for kind in CALLS[name]} == CALLS[name]


@EVERY
def test_folds(name: str) -> None:
    found = Counter(words(outline(graph_of(name).members)))
    assert {fold: found[fold] for fold in FOLDS[name]} == FOLDS[name]


@pytest.mark.parametrize("name", [name for name, folds in FOLDS.items() if "cache" in str(folds)])
def test_the_cache_is_as_long_however_it_is_told(name: str) -> None:
    trace = trace_of(name)
    without_flow = replace(trace, flow=None)
    (told,) = (fold for fold in FOLDS[name] if "cache" in fold)
    for graph in (build_graph(trace), build_graph(trace, View(edges="calls")), build_graph(without_flow)):
        phases = [member.box for member in graph.members if isinstance(member, Group)]
        assert [f"{box.name} {box.repeats}" for box in phases if "cache" in box.repeats] == [told]


@EVERY
def test_drawn_and_reported(name: str, tmp_path: Path) -> None:
    trace = trace_of(name)
    modules = [box for box in build_graph(trace).boxes if box.kind == "module"]
    assert modules
    assert write_report(trace, tmp_path) == []
    drawn = {kind: render(trace, kind).decode() for kind in ("mermaid", "dot")}
    drawn["svg"] = (tmp_path / "flowchart.svg").read_text(encoding="utf-8")
    for kind, text in drawn.items():
        plain = html.unescape(html.unescape(text))
        assert not [box.name for box in modules if box.class_name not in plain or box.name not in plain], kind
    with (tmp_path / "calls.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == trace.calls["path"].astype(str).tolist()
    root = trace.calls["class"].iloc[0]
    assert root in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert root in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["llama", "qwen2_5_omni_talker"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_both_residuals_and_the_cache_of_a_dense_decoder(name: str, phase: str) -> None:
    graph = graph_of(name, close=("*.self_attn", "*.mlp"))
    layers = group(graph, "layers.0-2", phase)
    # From prefill, and from one decode step to the next.
    kept = {"self_attn -> self_attn (next frame)"} if phase == "decode" else set()
    assert arrows(graph, layers) == RESIDUALS | kept
    assert {arrow for arrow in arrows_into(graph, layers) if "(next frame)" in arrow} == kept


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "whisper", "t5"])
def test_inputs_have_the_names_that_the_run_has_for_them(name: str) -> None:
    flow = trace_of(name).flow
    assert flow is not None
    # `generate` reads them before any module does.
    given = {"input_features"} if name == "whisper" else {"input_ids", "attention_mask"}
    assert set(flow.ops["name"][flow.ops["kind"] == "input"]) == given
    drawn = {box.name for box in graph_of(name).boxes if box.kind == "input"}
    assert drawn == (given - {"attention_mask"} if name == "t5" else given)  # all that is read of it are truth values


def test_a_router_says_which_experts() -> None:
    graph = graph_of("qwen3_moe", close=("*.experts",))
    for phase in ("prefill", "decode"):
        mlp = group(graph, "mlp", phase)
        assert arrows(graph, mlp) == {"gate -> experts"}
        assert arrows_into(graph, mlp) == {"post_attention_layernorm -> gate", "post_attention_layernorm -> experts"}


def test_whispers_cross_attention() -> None:
    graph = graph_of("whisper", close=("*.encoder", "*_attn"))
    encoder = "model.model.encoder"
    # What was heard is read where it goes through the encoder, once; its keys are kept for the passes that follow.
    assert {f"{encoder} -> encoder_attn", "encoder_attn -> encoder_attn (next frame)"} <= arrows(graph)
    assert not {arrow for arrow in arrows(graph) if arrow.startswith(encoder)} - {f"{encoder} -> encoder_attn"}
    assert arrows_into(graph, group(graph, "encode")) == {"input_features -> model.model.encoder"}
    # The keys of what was heard stay as they are; those of what was said are kept from step to step.
    kept = {"self_attn -> self_attn (next frame)"}
    for phase in ("prefill", "decode"):
        assert arrows(graph, group(graph, "layers.0-1", phase)) - (kept if phase == "decode" else set()) == {
            "self_attn_layer_norm -> self_attn",
            "self_attn -> add",
            "add -> encoder_attn_layer_norm",
            "encoder_attn_layer_norm -> encoder_attn",
            "encoder_attn -> add#2",
            "add -> add#2",
            "add#2 -> final_layer_norm",
            "final_layer_norm -> fc1",
            "fc1 -> activation_fn",
            "activation_fn -> fc2",
            "fc2 -> add#3",
            "add#2 -> add#3",
            "add#3 -> add (next)",
            "add#3 -> self_attn_layer_norm (next)",
        }


def test_t5s_cross_attention() -> None:
    graph = graph_of("t5", close=("*.encoder", "*Attention"))
    of_encoder = {arrow for arrow in arrows(graph) if arrow.startswith("model.encoder ->")}
    assert of_encoder == {"model.encoder -> EncDecAttention"}
    # Before it encodes it makes but constants, so there is no setup to be drawn.
    assert [phase.box.name for phase in graph.members if isinstance(phase, Group)] == ["encode", "prefill", "decode"]
    for block in ("block.0", "block.1-2"):
        prefill, decode = (group(graph, block, phase) for phase in ("prefill", "decode"))
        assert "model.encoder -> EncDecAttention" in arrows_into(graph, prefill)
        assert {f"{kind} -> {kind} (next frame)" for kind in ("SelfAttention", "EncDecAttention")} <= arrows_into(
            graph, decode
        )


def test_a_picture_becomes_patches_behind_a_class_token() -> None:
    assert arrows(graph_of("vit")) >= {
        "pixel_values -> projection",
        "projection -> cat · add",
        "dropout -> layernorm_before",
        "add#2 -> layernorm_before (next)",
        "add#2 -> layernorm",
        "layernorm -> classifier",
    }


@not_with_older_transformers
def test_a_state_goes_from_step_to_step_where_nothing_attends() -> None:
    graph = graph_of("mamba")
    assert not any("attention" in box.name for box in graph.boxes)
    into = arrows_into(graph, group(graph, "mixer", "decode"))
    # Of both states the next step reads what the one before wrote: of the convolution's and of the scan's.
    assert {"copy_ -> cat (next frame)", "copy_#2 -> mul · exp · add (next frame)"} <= into
    assert arrows(graph, group(graph, "layers.0-2", "decode")) >= {
        "norm -> in_proj",
        "in_proj -> cat",
        "x_proj -> matmul · add · softplus",
        "mul · add · silu -> out_proj",
        "out_proj -> add",
        "add -> norm (next)",
    }


def test_both_towers_meet() -> None:
    graph = graph_of("clip", close=("*.vision_model", "*.text_model"))
    assert arrows(graph) == {
        "pixel_values -> vision_model",
        "input_ids -> text_model",
        "attention_mask -> text_model",
        "vision_model -> visual_projection",
        "text_model -> text_projection",
        "visual_projection -> pow · sum",
        "visual_projection -> div",
        "pow · sum -> div",
        "text_projection -> pow · sum#2",
        "text_projection -> div#2",
        "pow · sum#2 -> div#2",
        "div -> matmul",
        "div#2 -> matmul",
        "matmul -> mul",
    }


@not_with_older_transformers
def test_a_talker_hears_its_own_code_and_what_the_thinker_said() -> None:
    graph = graph_of("qwen2_5_omni_talker", close=("model.model",))
    decode = group(graph, "decode")
    assert arrows(graph, decode) >= {
        "model.embed_tokens -> add",
        "add -> thinker_to_talker_proj",
        "thinker_to_talker_proj -> model",
        "model -> codec_head",
        "codec_head -> argmax",
        "cat -> model.embed_tokens (next frame)",
    }
    assert "thinker_reply_part -> add" in arrows_into(graph, decode)


def test_shortcuts_of_bottlenecks() -> None:
    graph = graph_of("resnet", close=("*.downsample",))
    body = {"conv1 -> bn1", "bn1 -> relu", "relu -> conv2", "conv2 -> bn2", "bn2 -> relu#2", "relu#2 -> conv3"}
    body |= {"conv3 -> bn3", "bn3 -> add", "add -> relu#3"}
    same = group(graph, "1-2")
    assert arrows(graph, same) == body | {"relu#3 -> conv1 (next)", "relu#3 -> add (next)"}
    assert arrows_into(graph, same) == {"relu#3 -> conv1", "relu#3 -> add"}
    widens = group(graph, "0")
    assert arrows(graph, widens) == body | {"downsample -> add"}
    assert arrows_into(graph, widens) == {"maxpool -> conv1", "maxpool -> downsample"}
    assert [box.shapes for box in graph.boxes if box.name in ("avgpool", "fc")] == [
        "1x32x4x4 → 1x32x1x1",
        "1x32 → 1x10",
    ]


def test_what_was_seen_on_the_way_down_comes_back_on_the_way_up() -> None:
    graph = graph_of("unet", depth=1)
    step = {f"step -> {block}" for block in ("down1", "down2", "middle", "up1", "up2")}
    assert arrows(graph) == step | {
        "latent -> enter",
        "step -> step",  # the number, and the module that reads it
        "enter -> down1",
        "down1 -> pool",
        "pool -> down2",
        "down2 -> pool#2",
        "pool#2 -> middle",
        "middle -> grow",
        "grow -> cat",
        "down2 -> cat",
        "cat -> up2",
        "up2 -> grow#2",
        "grow#2 -> cat#2",
        "down1 -> cat#2",
        "cat#2 -> up1",
        "up1 -> leave",
    }
    assert [box.shapes for box in graph.boxes if box.name == "cat"] == [
        "1x16x8x8 → 1x32x8x8",
        "1x16x16x16 → 1x24x16x16",
    ]


def test_a_step_scales_shifts_and_gates_each_block() -> None:
    graph = graph_of("dit", close=("*.step", "*.mlp", "*.modulation"))
    blocks = group(graph, "blocks.0-3")
    assert arrows(graph, blocks) == {
        "norm1 -> add · mul",
        "modulation -> add · mul",
        "add · mul -> attn",
        "attn -> mul · add",
        "modulation -> mul · add",
        "mul · add -> norm2",
        "norm2 -> add · mul#2",
        "modulation -> add · mul#2",
        "add · mul#2 -> mlp",
        "mlp -> mul · add#2",
        "modulation -> mul · add#2",
        "mul · add -> mul · add#2",
        "mul · add#2 -> norm1 (next)",
        "mul · add#2 -> mul · add (next)",
    }
    assert arrows_into(graph, blocks) == {"step -> modulation", "patch -> norm1", "patch -> mul · add"}
    # What is left of the noise is the next step's latent.
    assert {"fold -> mul · sub", "mul · sub -> patch (next frame)"} <= arrows(graph)


def test_a_bare_lstm() -> None:
    trace, graph = trace_of("lstm"), graph_of("lstm")
    gates = 4 * 16
    (module,) = trace.modules
    assert module.parameters == gates * (8 + 16 + 2) + gates * (16 + 16 + 2)
    assert arrows(graph) == {"input -> model", "model -> model#2 (next frame)", "model#2 -> model#2 (next frame)"}
    # Its two layers' states go along with the sequence.
    given = [[tensor.name for tensor in tensors] for tensors in trace.calls["inputs"]]
    assert given == [["0"], ["0", "1.0", "1.1"], ["0", "1.0", "1.1"]]
    assert [box.shapes for box in graph.boxes] == ["2x5x8", "2x5x8 → 2x5x16", "2x1x8 → 2x1x16"]


def test_what_is_in_dicts_and_dataclasses_is_followed() -> None:
    trace, graph = trace_of("gnn"), graph_of("gnn")
    assert [tensor.name for tensor in trace.calls["inputs"].iloc[0]] == [
        "0.graph.nodes.atom",
        "0.graph.nodes.bond",
        "0.graph.edges.('atom', 'bond')",
        "0.graph.edges.('bond', 'atom')",
        "0.scale",
    ]
    atoms, bonds = "index_add · relu", "index_add · relu#2"
    assert arrows(graph) == {
        "batch.graph.nodes.atom -> embed.atom",
        "batch.graph.nodes.bond -> embed.bond",
        "embed.atom -> own.atom",
        "embed.bond -> own.bond",
        "own.atom -> index_add · relu",
        "own.bond -> index_add · relu#2",
        # An edge's tensor says which atoms or bonds speak, and who is told.
        "embed.atom -> getitem",
        "batch.graph.edges.('atom', 'bond') -> getitem",
        "getitem -> heard.atom-bond",
        f"heard.atom-bond -> {bonds}",
        f"batch.graph.edges.('atom', 'bond') -> {bonds}",
        "embed.bond -> getitem#2",
        "batch.graph.edges.('bond', 'atom') -> getitem#2",
        "getitem#2 -> heard.bond-atom",
        f"heard.bond-atom -> {atoms}",
        f"batch.graph.edges.('bond', 'atom') -> {atoms}",
        f"{atoms} -> own.atom (next)",
        f"{atoms} -> getitem (next)",
        f"{bonds} -> own.bond (next)",
        f"{bonds} -> getitem#2 (next)",
        f"{atoms} -> mean",
        "mean -> mul",
        "batch.scale -> mul",
        "mul -> readout",
    }
