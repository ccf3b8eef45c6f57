"""Small models of others: of transformers from their configs alone, and of a few lines of torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import talkerviz as tv
from talkerviz.api import Trace
from talkerviz.targets import config_target

TOKENS = 4
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
_PLAIN_TEXT = {**_TEXT, "num_hidden_layers": 3, "vocab_size": 100, "eos_token_id": 1, "bos_token_id": 0}
_SEEN = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_PLAIN_TEXT},
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **_PLAIN_TEXT,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "whisper": {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": 32,
        **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
        "num_mel_bins": 8,
        "vocab_size": 100,
        "max_source_positions": 20,
        "max_target_positions": 30,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
    },
    "vit": {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        **_SEEN,
        "num_hidden_layers": 3,
        "id2label": {"0": "cat", "1": "dog"},
    },
    "t5": {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 3,
        "num_heads": 4,
        "vocab_size": 100,
        "decoder_start_token_id": 0,
    },
    "mamba": {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "hidden_size": 32,
        "state_size": 4,
        "num_hidden_layers": 3,
        "vocab_size": 100,
    },
    "clip": {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 16,
        "text_config": {**_TEXT, "num_hidden_layers": 2, "vocab_size": 100, "max_position_embeddings": 16},
        "vision_config": {**_SEEN, "num_hidden_layers": 3},
    },
    "qwen2_5_omni_talker": {
        "architectures": ["Qwen2_5OmniTalkerForConditionalGeneration"],
        "model_type": "qwen2_5_omni_talker",
        **_TEXT,
        "head_dim": 8,
        "embedding_size": 48,
        "num_hidden_layers": 3,
        "vocab_size": 100,
        "tts_codec_start_token_id": 96,
        "tts_codec_end_token_id": 97,
        "tts_codec_pad_token_id": 98,
        "tts_codec_mask_token_id": 99,
        "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    },
}


@functools.cache
def traced(name: str) -> Trace:
    """Build a config's model, and record it twice: for its calls and for its flow."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIGS[name]))
        target = config_target(Path(folder), "cpu", None, TOKENS)
    times, flow = (
        tv.record(target.model, lambda: target.run(lambda done: None), phases=target.phases, measure=measure)
        for measure in (None, "flow")
    )
    return tv.join(times, flow)


@functools.cache
def run_twice(make: Callable[[], tuple[nn.Module, Callable[[], object]]]) -> Trace:
    """Record a function's model, for its calls and for its flow."""
    torch.manual_seed(0)
    model, run = make()
    with torch.no_grad():
        return tv.join(tv.record(model, run), tv.record(model, run, measure="flow"))


class Bottleneck(nn.Module):
    """Narrow, 3 by 3, wide again, and a shortcut, as in a ResNet-50."""

    def __init__(self, width: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        same = stride == 1 and width == out
        self.downsample = None if same else nn.Sequential(nn.Conv2d(width, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + kept)


class ResNet(nn.Module):
    """Two stages of bottlenecks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Bottleneck(8, 4, 16, 1), Bottleneck(16, 4, 16, 1), Bottleneck(16, 4, 16, 1))
        self.layer2 = nn.Sequential(Bottleneck(16, 8, 32, 2), Bottleneck(32, 8, 32, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.maxpool(self.bn1(self.conv1(x)).relu())))
        return self.fc(self.avgpool(x).flatten(1))


def resnet() -> tuple[nn.Module, Callable[[], object]]:
    """Classify a picture."""
    model, picture = ResNet().eval(), torch.randn(1, 3, 32, 32)
    return model, lambda: model(picture)


class DiTBlock(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by what step it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(step)[:, None].chunk(6, dim=-1)
        inner = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attn(inner, inner, inner, need_weights=False)[0]
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """A diffusion transformer over patches of a latent picture."""

    def __init__(self, width: int = 16, blocks: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(4, width, 2, 2)
        self.step = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(DiTBlock(width) for _ in range(blocks))
        self.out = nn.Linear(width, 16)

    def forward(self, latent: Tensor, step: Tensor) -> Tensor:
        angles = step[:, None] * torch.arange(1.0, 5)
        seen = self.step(torch.cat([angles.sin(), angles.cos()], dim=-1))
        x = self.patch(latent).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, seen)
        rows = self.out(x).transpose(1, 2)
        return nn.functional.fold(rows, latent.shape[-2:], 2, stride=2)


def dit() -> tuple[nn.Module, Callable[[], object]]:
    """Noise is taken away in three steps."""
    model, noise, steps = DiT().eval(), torch.randn(1, 4, 8, 8), torch.tensor([[3.0], [2.0], [1.0]])

    def denoise() -> Tensor:
        latent = noise
        for step in steps:
            latent = latent - 0.1 * model(latent, step=step)
        return latent

    return model, denoise


class ResBlock(nn.Module):
    """Two convolutions, told what step it is between them, and a shortcut."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(4, width)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.time = nn.Linear(16, out)
        self.norm2 = nn.GroupNorm(4, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        inner = self.conv1(self.norm1(x).relu()) + self.time(step)[:, :, None, None]
        return self.conv2(self.norm2(inner).relu()) + self.shortcut(x)


class UNet(nn.Module):
    """Down twice and up twice; what was seen on the way down is put beside what comes up."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(1, 16)
        self.enter = nn.Conv2d(4, 8, 3, padding=1)
        self.down1, self.down2 = ResBlock(8, 8), ResBlock(8, 16)
        self.pool = nn.AvgPool2d(2)
        self.middle = ResBlock(16, 16)
        self.grow = nn.Upsample(scale_factor=2)
        self.up2, self.up1 = ResBlock(32, 16), ResBlock(24, 8)
        self.leave = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, latent: Tensor, step: Tensor) -> Tensor:
        seen = self.step(step[:, None])
        fine = self.down1(self.enter(latent), seen)
        coarse = self.down2(self.pool(fine), seen)
        x = self.grow(self.middle(self.pool(coarse), seen))
        x = self.grow(self.up2(torch.cat([x, coarse], 1), seen))
        return self.leave(self.up1(torch.cat([x, fine], 1), seen))


def unet() -> tuple[nn.Module, Callable[[], object]]:
    """One step of taking noise away."""
    model, noise, step = UNet().eval(), torch.randn(1, 4, 16, 16), torch.ones(1)
    return model, lambda: model(noise, step)


def lstm() -> tuple[nn.Module, Callable[[], object]]:
    """Run a sequence at once, then two further steps with its state."""
    model, x = nn.LSTM(8, 16, num_layers=2, batch_first=True), torch.randn(2, 5, 8)

    def run() -> Tensor:
        y, state = model(x)
        for _ in range(2):
            y, state = model(y[:, -1:, :8], state)
        return y

    return model, run


@dataclass
class Graph:
    """Nodes of several kinds, and which are joined."""

    nodes: dict[str, Tensor]
    edges: dict[tuple[str, str], Tensor]


class Messages(nn.Module):
    """Every node hears the mean of its neighbours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = nn.ModuleDict({kind: nn.Linear(width, width) for kind in ("atom", "bond")})
        self.heard = nn.ModuleDict({"atom-bond": nn.Linear(width, width), "bond-atom": nn.Linear(width, width)})

    def forward(self, graph: Graph) -> Graph:
        new = {kind: self.own[kind](x) for kind, x in graph.nodes.items()}
        for (source, target), (ones, twos) in graph.edges.items():
            said = self.heard[f"{source}-{target}"](graph.nodes[source][ones])
            new[target] = new[target].index_add(0, twos, said)
        return Graph({kind: x.relu() for kind, x in new.items()}, graph.edges)


class GraphNet(nn.Module):
    """Three rounds of messages, and a number for the whole."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.ModuleDict({"atom": nn.Linear(3, width), "bond": nn.Linear(2, width)})
        self.rounds = nn.ModuleList(Messages(width) for _ in range(3))
        self.readout = nn.Linear(width, 1)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        graph = batch["graph"]
        graph = Graph({kind: self.embed[kind](x) for kind, x in graph.nodes.items()}, graph.edges)
        for one in self.rounds:
            graph = one(graph)
        return {"energy": self.readout(graph.nodes["atom"].mean(0) * batch["scale"])}


def gnn() -> tuple[nn.Module, Callable[[], object]]:
    """Return a molecule of four atoms and five bonds."""
    model = GraphNet().eval()
    nodes = {"atom": torch.randn(4, 3), "bond": torch.randn(5, 2)}
    ends = torch.tensor([[0, 1, 2, 3, 0], [0, 1, 2, 3, 4]])
    graph = Graph(nodes, {("atom", "bond"): ends, ("bond", "atom"): ends.flip(0)})
    batch = {"graph": graph, "scale": torch.ones(1)}
    return model, lambda: model(batch)


OWN = {"resnet": resnet, "unet": unet, "dit": dit, "lstm": lstm, "gnn": gnn}


def trace_of(name: str) -> Trace:
    """Return the trace of any of these models."""
    return traced(name) if name in CONFIGS else run_twice(OWN[name])
