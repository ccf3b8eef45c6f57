"""Graphs made by hand: a small one with everything that a chart can hold, and a talker's run as it is drawn."""

from __future__ import annotations

import itertools
from typing import Any

from talkerviz.flowchart.model import Box, Edge, Graph, Group

_MS = 1_000_000


def sample_graph() -> Graph:
    """Every kind of thing, few of each."""
    setup = Group(
        Box("p0", "phase", "setup", total_ns=40 * _MS, share=0.04),
        (
            Box("in1", "input", "input_ids", shapes="int64 1x4"),
            Box(
                "embed",
                "module",
                "embed",
                "net.embed",
                "Embedding",
                "1x4 → 1x4x8",
                total_ns=40 * _MS,
                self_ns=40 * _MS,
                share=0.04,
                details=("512 parameters", "float32, cpu"),
                link="embed.html",
            ),
        ),
    )
    layers = Group(
        Box(
            "layers",
            "module",
            "layers.0-19",
            "net.layers.0-19",
            "Block",
            "1x4x8 → 1x4x8",
            repeats="20×",
            modules=20,
            calls=140,
            total_ns=263 * _MS,
            self_ns=20 * _MS,
            share=0.263,
        ),
        (
            Box(
                "attn", "module", "self_attn", "net.layers.0-19.self_attn", "Attention", "1x1–7x8", calls=140, share=0.2
            ),
            Box("add1", "operation", "add", calls=140),
            Box("mlp", "module", "mlp", "net.layers.0-19.mlp", "MLP", calls=140, total_ns=63 * _MS, share=0.063),
            Box("add2", "operation", "sigmoid · mul · add", calls=420),
        ),
    )
    head = Box("head", "module", "head", "net.head", "Linear", "1x4x8 → 1x4x9", calls=7, total_ns=0, share=0.0)
    net = Group(
        Box("net", "module", "net", "net", "Net", total_ns=300 * _MS, share=0.3, link="net.html"), (layers, head)
    )
    again = Group(
        Box("again", "repeat", "repeat", repeats="14×", calls=98, total_ns=600 * _MS, share=0.6),
        (
            Box("lm", "module", "lm_head.0-13", "net.lm_head.0-13", "Linear", repeats="14×", modules=14, calls=98,
                total_ns=600 * _MS, self_ns=600 * _MS, share=0.6, error="ValueError"),
            Box("argmax", "operation", "argmax", calls=98),
            Box("more", "more", "12 more"),
        ),
    )  # fmt: skip
    decode = Group(
        Box("p1", "phase", "decode", repeats="7 frames", calls=7, total_ns=900 * _MS, share=0.9), (net, again)
    )
    edges = (
        Edge("in1", "embed"),
        Edge("embed", "attn"),
        Edge("embed", "add1"),
        Edge("attn", "add1", count=140),
        Edge("add1", "mlp", count=140),
        Edge("mlp", "add2", count=140),
        Edge("add1", "add2", count=140),
        Edge("add2", "attn", carried="next", count=133),
        Edge("add2", "head", count=7),
        Edge("head", "lm", count=7),
        Edge("lm", "argmax", count=98),
        Edge("argmax", "lm", carried="next", count=91),
        Edge("argmax", "more"),
        Edge("argmax", "attn", carried="next frame", count=6),
        Edge("attn", "attn", carried="next frame", state=True, count=120),
        Edge("embed", "lm", state=True),
    )
    notes = ("Recording a call costs 400 ns or more on this machine.",)
    return Graph("net, one run of 7 frames", (setup, decode), edges, flow=True, timed=True, notes=notes)


def sample_diff() -> Graph:
    """Two runs in one: every change, of boxes, groups and edges; no times."""
    block = Group(
        Box("block", "module", "block", "net.block", "Block", change="changed"),
        (
            Box("up", "module", "up_proj", "net.block.up_proj", "Linear", "4x8 → 4x16", change="changed"),
            Box("act", "operation", "gelu", change="removed"),
            Box("gate", "module", "gate", "net.block.gate", "Gate", "4x16 → 4x16", change="added"),
            Box("down", "module", "down_proj", "net.block.down_proj", "Linear", "4x16 → 4x8"),
        ),
    )
    edges = (
        Edge("up", "act", change="removed"),
        Edge("act", "down", change="removed"),
        Edge("up", "gate", change="added"),
        Edge("gate", "down", change="added"),
        Edge("down", "up", carried="next frame", change="changed"),
    )
    return Graph("net: base.parquet and new.parquet", (block,), edges, flow=True, timed=False)


def plain_graph() -> Graph:
    """Return a chart of calls in order, without times and groups."""
    boxes = tuple(Box(f"b{n}", "module", f"layer{n}", f"net.layer{n}", "Linear") for n in range(3))
    return Graph("net", boxes, (Edge("b0", "b1"), Edge("b1", "b2")), flow=False, timed=False)


def graph_of(texts: list[str]) -> Graph:
    """Return a chart whose every text is one of these."""
    text = itertools.cycle(texts).__next__
    change = itertools.cycle((None, "added", "removed", "changed")).__next__

    def box(name: str, kind: Any) -> Box:
        return Box(name, kind, text(), text(), text(), text(), text(), details=(text(),), error=text(), change=change(),
                   link=text(), total_ns=1, share=0.5)  # fmt: skip

    inner = Group(box("g1", "repeat"), (box("b0", "operation"), box("b1", "module"), box("b2", "more")))
    outer = Group(box("g0", "phase"), (box("b3", "input"), inner))
    pairs = (("b3", "b0"), ("b0", "b1"), ("b1", "b2"))
    edges = [Edge(a, b, carried=text(), state=n == 2, change=change()) for n, (a, b) in enumerate(pairs)]
    return Graph(text(), (outer,), tuple(edges), flow=True, timed=True, notes=(text(),))


_RUN_NS = 2_460 * _MS


def _phase(id: str, name: str, calls: int, ms: float, repeats: str = "") -> Box:
    return Box(id, "phase", name, repeats=repeats, calls=calls, total_ns=round(ms * _MS), share=ms * _MS / _RUN_NS)


def _module(id: str, path: str, kind: str, shapes: str, calls: int, ms: float, name: str = "", **more: Any) -> Box:
    total = round(ms * _MS)
    name = name or path.rpartition(".")[2]
    return Box(id, "module", name, path, kind, shapes, calls=calls, total_ns=total, share=total / _RUN_NS, **more)


def _operation(id: str, name: str, shapes: str, calls: int) -> Box:
    return Box(id, "operation", name, shapes=shapes, calls=calls)


def _edges(p: str, pairs: str, count: int) -> list[Edge]:
    """Edges between boxes whose ids start with p."""
    return [Edge(*(p + end for end in pair.split()), count=count) for pair in pairs.split("|")]


def _decoder(
    p: str,
    base: str,
    calls: int,
    shapes: str,
    kinds: dict[str, str],
    ms: dict[str, float],
    layers: int,
    mlp: Group | Box,
) -> tuple[Group, list[Edge]]:
    """Return a stack of decoder layers, the ids in it starting with p, and the edges in it but those of its mlp."""
    path = f"{base}.layers.0-{layers - 1}"
    n = layers * calls
    norm, hidden = kinds["norm"], shapes.partition(" ")[0]

    def part(id: str, name: str, kind: str) -> Box:
        return _module(p + id, f"{path}.{name}", kind, shapes, n, ms[id])

    stack = _module(
        f"{p}layers", path, kinds["layer"], shapes, n, ms["layers"], f"layers.0-{layers - 1}",
        repeats=f"{layers}×", modules=layers,
    )  # fmt: skip
    members = (
        part("ln1", "input_layernorm", norm),
        part("attn", "self_attn", kinds["attn"]),
        _operation(f"{p}add1", "add", shapes, n),
        part("ln2", "post_attention_layernorm", norm),
        mlp,
        _operation(f"{p}add2", "add", shapes, n),
    )
    rope = _module(f"{p}rope", f"{base}.rotary_emb", kinds["rope"], f"{hidden} → 1x1x128", calls, ms["rope"])
    last = _module(f"{p}norm", f"{base}.norm", norm, shapes, calls, ms["norm"])
    edges = _edges(p, "rope attn|ln1 attn|attn add1|add1 ln2|add1 add2|add2 norm", n)
    edges.append(Edge(f"{p}add2", f"{p}ln1", carried="next", count=n - calls))
    model = _module(f"{p}model", base, kinds["model"], shapes, calls, ms["model"])
    return Group(model, (rope, Group(stack, members), last)), edges


def _talker(p: str, calls: int, length: int, ms: dict[str, float]) -> tuple[Group, list[Edge]]:
    """Return the talker's own pass."""
    hidden, rows, n = f"1x{length}x1024", f"{length}x1024", 20 * calls
    path = "talker.model.layers.0-19.mlp"

    def part(id: str, name: str, kind: str, out: str) -> Box:
        return _module(p + id, f"{path}.{name}", kind, f"{rows} → {out}", n, ms[id])

    mlp = Group(
        _module(f"{p}mlp", path, "TalkerTextSparseMoeBlock", f"{hidden} → {hidden}", n, ms["mlp"]),
        (
            part("gate", "gate", "TalkerTextTopKRouter", f"{length}x4"),
            part("experts", "experts", "TalkerTextExperts", rows),
            part("shared", "shared_expert", "TalkerTextMLP", rows),
            part("sgate", "shared_expert_gate", "Linear", f"{length}x1"),
            _operation(f"{p}mix", "sigmoid · mul · add", f"{rows} → {hidden}", 3 * n),
        ),
    )
    kinds = {
        "model": "TalkerModel",
        "layer": "TalkerDecoderLayer",
        "attn": "ThinkerTextAttention",
        "norm": "ThinkerTextRMSNorm",
        "rope": "TalkerRotaryEmbedding",
    }
    model, edges = _decoder(p, "talker.model", calls, f"{hidden} → {hidden}", kinds, ms, 20, mlp)
    edges += _edges(p, "ln2 gate|gate experts|ln2 experts|ln2 shared|ln2 sgate", n)
    edges += _edges(p, "experts mix|shared mix|sgate mix|mix add2|norm head", n)
    out = f"{hidden} → 1x{length}x3072"
    head = _module(f"{p}head", "talker.codec_head", "Linear", out, calls, ms["head"])
    talker = _module(f"{p}talker", "talker", "TalkerForConditionalGeneration", out, calls, ms["talker"])
    return Group(talker, (model, head)), edges


def _predictor(p: str, calls: int, length: int, ms: dict[str, float]) -> tuple[Group, list[Edge]]:
    """Return the code predictor's model."""
    base, shapes = "talker.code_predictor.model", f"1x{length}x1024 → 1x{length}x1024"
    kinds = {
        "model": "TalkerCodePredictorModel",
        "layer": "TalkerCodePredictorDecoderLayer",
        "attn": "TalkerCodePredictorAttention",
        "norm": "RMSNorm",
        "rope": "RotaryEmbedding",
    }
    mlp = _module(f"{p}mlp", f"{base}.layers.0-4.mlp", "MLP", shapes, 5 * calls, ms["mlp"])
    model, edges = _decoder(p, base, calls, shapes, kinds, ms, 5, mlp)
    return model, edges + _edges(p, "ln2 mlp|mlp add2", 5 * calls)


_PREFILL = {
    "talker": 82.4, "model": 79.9, "rope": 0.196, "layers": 79.4, "ln1": 0.904, "attn": 44.6, "ln2": 0.727, "mlp": 32.5,
    "gate": 1.36, "experts": 11.0, "shared": 19.0, "sgate": 0.212, "norm": 0.036, "head": 2.21,
}  # fmt: skip
_DECODE = {
    "talker": 269, "model": 265, "rope": 0.538, "layers": 263, "ln1": 2.97, "attn": 148, "ln2": 2.81, "mlp": 107,
    "gate": 3.58, "experts": 25.3, "shared": 73.4, "sgate": 0.937, "norm": 0.141, "head": 4.35,
}  # fmt: skip
_PREDICTOR_PREFILL = {
    "model": 239, "rope": 0.368, "layers": 238, "ln1": 2.48, "attn": 94.2, "ln2": 1.24, "mlp": 138, "norm": 0.543,
}  # fmt: skip
_PREDICTOR_DECODE = {
    "model": 1_800, "rope": 4.35, "layers": 1_790, "ln1": 12, "attn": 750, "ln2": 11.6, "mlp": 1_000, "norm": 2.34,
}  # fmt: skip


def talker_graph() -> Graph:
    """Return a run of Qwen3-Omni's talker, 8 frames, with times as they were on two CPU cores."""
    prefill, prefill_edges = _talker("a", 1, 20, _PREFILL)
    first, first_edges = _predictor("b", 8, 2, _PREDICTOR_PREFILL)
    steps, steps_edges = _predictor("c", 112, 1, _PREDICTOR_DECODE)
    decode, decode_edges = _talker("d", 7, 1, _DECODE)
    predictor, one = "talker.code_predictor", "1x1 → 1x1x1024"

    def projection(number: int, length: int, ms: float) -> Box:
        shapes = f"1x{length}x2048 → 1x{length}x1024"
        return _module(f"proj{number}", "talker.text_projection", "TalkerResizeMLP", shapes, 1, ms)

    def embedding(id: str, path: str, calls: int, ms: float, **more: Any) -> Box:
        return _module(id, path, "Embedding", one, calls, ms, path.removeprefix(f"{predictor}.model."), **more)

    def head(id: str, name: str, length: int, calls: int, ms: float, **more: Any) -> Box:
        shapes = f"1x{length}x1024 → 1x{length}x2048"
        return _module(id, f"{predictor}.{name}", "Linear", shapes, calls, ms, name, **more)

    kind = "TalkerCodePredictorModelForConditionalGeneration"
    members = (
        Group(
            _phase("setup", "setup", 4, 9.13),
            (
                Box("ids", "input", "text embeddings", shapes="1x12x2048"),
                projection(1, 3, 3.1),
                projection(2, 1, 2.6),
                projection(3, 9, 3.34),
                _module("embed", "talker.model.codec_embedding", "Embedding", "1x6 → 1x6x1024", 1, 0.085),
                _operation("cat", "cat", "1x3x1024 → 1x20x1024", 4),
                _operation("plus", "add", "1x20x1024 → 1x20x1024", 1),
            ),
        ),
        Group(_phase("prefill", "prefill", 1, 82.4), (prefill,)),
        Group(
            _phase("pp", "predictor.prefill", 16, 246, "8 frames"),
            (
                _module("bembed", "talker.model.codec_embedding", "Embedding", one, 8, 0.233),
                _operation("bcat", "cat", "1x1x1024 → 1x2x1024", 8),
                Group(
                    _module("bcp", predictor, kind, "1x2x1024 → 1x2x2048", 8, 246),
                    (first, head("bhead", "lm_head.0", 2, 8, 5.94)),
                ),
                _operation("bmax", "argmax", "1x2048 → 1", 8),
            ),
        ),
        Group(
            _phase("pd", "predictor.decode", 119, 1_850, "8 frames"),
            (
                Group(
                    Box("loop", "repeat", "code_predictor", predictor, kind, repeats="14×", calls=112,
                        total_ns=1_850 * _MS, share=0.752),
                    (
                        embedding("cembed", f"{predictor}.model.codec_embedding.0-13", 112, 3.46, repeats="14×",
                                  modules=14),
                        steps,
                        head("chead", "lm_head.1-14", 1, 112, 45.5, repeats="14×", modules=14),
                        _operation("cmax", "argmax", "1x2048 → 1", 112),
                    ),
                ),
                embedding("clast", f"{predictor}.model.codec_embedding.14", 7, 0.235),
                _operation("csum", "stack · sum · add", "1x1x1024 → 1x1x1024", 21),
            ),
        ),
        Group(_phase("decode", "decode", 7, 269, "7 frames"), (decode,)),
    )  # fmt: skip
    edges = [
        *_edges("", "ids proj1|ids proj2|ids proj3|proj1 cat|proj2 cat|proj3 cat|embed cat|cat plus", 1),
        *_edges("", "plus aln1|plus arope|plus aadd1", 1),
        *prefill_edges,
        *_edges("", "ahead bembed|anorm bcat", 1),
        *_edges("b", "embed cat|cat rope|cat ln1|cat add1", 8),
        *first_edges,
        *_edges("b", "norm head|head max", 8),
        Edge("bmax", "cembed", count=8),
        *_edges("c", "embed rope|embed ln1|embed add1", 112),
        *steps_edges,
        *_edges("c", "norm head|head max", 112),
        Edge("cmax", "cembed", carried="next", count=104),
        *_edges("", "cmax clast|clast csum|bembed csum|cembed csum|csum dln1|csum drope|csum dadd1", 7),
        *decode_edges,
        Edge("dhead", "bembed", carried="next frame", count=7),
        Edge("dnorm", "bcat", carried="next frame", count=7),
        Edge("aattn", "dattn", state=True, count=20),
        Edge("dattn", "dattn", carried="next frame", state=True, count=120),
        Edge("battn", "cattn", state=True, count=40),
        Edge("cattn", "cattn", carried="next", state=True, count=520),
    ]
    notes = ("Recording a call costs 433 ns or more on this machine, outside its time and in its caller's self time.",)
    title = "Qwen3-Omni talker, lite, cpu, float32: 8 frames"
    return Graph(title, members, tuple(edges), flow=True, timed=True, notes=notes)
