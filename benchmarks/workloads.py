"""Workloads of the overhead table: small models with random weights, most of them of other libraries, and their runs.

Width 64 throughout, so that calls are about as short as they get and a tool's own cost shows: these are worst cases.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 64
VOCABULARY = 1_000
PROMPT_TOKENS = 16
LM_LAYERS = 28
LAYER_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

Run = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """A model and one run of it.

    Args:
        model: the module that is recorded.
        run: one run.
        warm_up: a shorter run that takes the same code paths, for runs of many seconds.
        options: further arguments of `talkerviz.recording`.
        anew: record each run anew, since a recording that has seen a run's growing shapes finds them again in the next.
    """

    model: nn.Module
    run: Run
    warm_up: Run | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    anew: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        title: the work, in words.
        model: the library and class of the model.
        build: builds the workload.
        profiled: whether torch.profiler watches it as well; not where it would hold millions of events.
    """

    title: str
    model: str
    build: Callable[[], Workload]
    profiled: bool = True


# The talker


def talker(impl: str, frames: int = 12) -> Workload:
    from talkerviz.talker import Scenario
    from talkerviz.targets import talker_of, talker_target

    target = talker_target(talker_of("tiny", impl, "cpu", None, Scenario(frames=frames)))
    options = {"name": target.name, "phases": target.phases}
    return Workload(target.model, lambda: target.run(lambda frame: None), options=options, anew=True)


# Generation with transformers


def generator(model: Any, tokens: int, inputs: Mapping[str, Tensor] | None = None, **options: Any) -> Run:
    """Return a run that generates exactly this number of tokens greedily."""
    inputs = {"input_ids": torch.arange(PROMPT_TOKENS)[None]} if inputs is None else inputs
    ending = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return partial(model.generate, **inputs, **ending, **options)


def causal_lm(
    class_name: str, config_name: str, tokens: int, generation: Mapping[str, Any] | None = None, **sizes: Any
) -> Workload:
    """Build a causal LM of transformers from its config, and generate with it."""
    import transformers

    config = getattr(transformers, config_name)(**sizes)
    model = getattr(transformers, class_name)(config).eval()
    run, warm_up = (generator(model, count, **(generation or {})) for count in (tokens, 4))
    return Workload(model, run, warm_up, anew=True)


def qwen3(tokens: int, **generation: Any) -> Workload:
    return causal_lm(
        "Qwen3ForCausalLM",
        "Qwen3Config",
        tokens,
        generation,
        num_hidden_layers=LM_LAYERS,
        head_dim=16,
        max_position_embeddings=4_096,
        **LAYER_SIZES,
    )


def sliding_window(tokens: int = 96) -> Workload:
    """Gemma 3: five layers with a window of 32 positions, which slides from the 17th token on, to one without."""
    return causal_lm(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        tokens,
        num_hidden_layers=18,
        head_dim=16,
        sliding_window=32,
        **LAYER_SIZES,
    )


def bamba(tokens: int = 64) -> Workload:
    """Bamba: Mamba-2 layers with states of convolution and recurrence, and attention in every fourth."""
    return causal_lm(
        "BambaForCausalLM",
        "BambaConfig",
        tokens,
        num_hidden_layers=12,
        attn_layer_indices=[3, 7, 11],
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_d_state=16,
        mamba_chunk_size=16,
        **LAYER_SIZES,
    )


def qwen3_next(tokens: int = 64) -> Workload:
    """Qwen3-Next: three layers of gated delta nets to one of attention."""
    return causal_lm(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        tokens,
        num_hidden_layers=12,
        head_dim=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        **LAYER_SIZES,
    )


def mamba(tokens: int = 64) -> Workload:
    return causal_lm(
        "MambaForCausalLM",
        "MambaConfig",
        tokens,
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        state_size=16,
        num_hidden_layers=12,
    )


def mixture_of_experts(tokens: int = 64) -> Workload:
    return causal_lm(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        tokens,
        num_hidden_layers=12,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        **LAYER_SIZES,
    )


def gpt2(tokens: int = 64) -> Workload:
    return causal_lm(
        "GPT2LMHeadModel",
        "GPT2Config",
        tokens,
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=12,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )


def whisper(tokens: int = 64) -> Workload:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config.suppress_tokens = model.generation_config.begin_suppress_tokens = None
    inputs = {"input_features": torch.randn(1, 80, 200)}
    return Workload(model, generator(model, tokens, inputs), generator(model, 4, inputs), anew=True)


def t5(tokens: int = 64) -> Workload:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": WIDTH, "d_kv": 16, "d_ff": 2 * WIDTH, "num_layers": 6, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes)).eval()
    return Workload(model, generator(model, tokens), generator(model, 4), anew=True)


# Pictures


def import_torchvision() -> None:
    """Import torchvision if it is installed, before timm or transformers do.

    Its CUDA build cannot load its operators beside a torch for CPUs, and then fails to import because it describes two
    of them. No model here calls these: declare them.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou) -> Tensor")
        importlib.import_module("torchvision")


def forward(model: nn.Module, *inputs: Tensor) -> Workload:
    """Run the model once without gradients."""
    model.eval()
    return Workload(model, torch.no_grad()(lambda: model(*inputs)))


def vit() -> Workload:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=64, patch_size=16, embed_dim=WIDTH, depth=12, num_heads=4, num_classes=10)
    return forward(model, torch.randn(1, 3, 64, 64))


def densenet() -> Workload:
    """DenseNet-121 with narrow layers; each layer of a block takes the list of all earlier outputs."""
    from timm.models.densenet import DenseNet

    return forward(DenseNet(growth_rate=8, num_classes=10), torch.randn(1, 3, 32, 32))


def resnet() -> Workload:
    from timm.models.resnet import Bottleneck, ResNet

    model = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=10, stem_width=16, channels=(16, 16, 32, 64))
    return forward(model, torch.randn(1, 3, 32, 32))


def unet(steps: int = 10) -> Workload:
    """Denoise in steps, with a scheduler of diffusers."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, WIDTH),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=16,
        norm_num_groups=16,
    ).eval()
    scheduler = DDIMScheduler()
    noise, text = torch.randn(1, 4, 8, 8), torch.randn(1, 8, WIDTH)

    @torch.no_grad()
    def run() -> Tensor:
        scheduler.set_timesteps(steps)
        latent = noise
        for step in scheduler.timesteps:
            latent = scheduler.step(model(latent, step, encoder_hidden_states=text).sample, step, latent).prev_sample
        return latent

    return Workload(model, run)


# Loops of a few lines


class PastStates(nn.Module):
    """A cell that attends to the list of all its past states."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, past: Sequence[Tensor]) -> Tensor:
        states = torch.stack(list(past), dim=1)  # [B, T, W]
        weights = (states @ self.query(x)[:, :, None]).softmax(dim=1)  # [B, T, 1]
        read = (weights * states).sum(dim=1)
        return torch.tanh(self.out(torch.cat([x, read], dim=-1)))


class Unrolled(nn.Module):
    """A loop over a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = PastStates()

    def forward(self, xs: Tensor) -> Tensor:
        states = [xs[0]]
        for x in xs:
            states.append(self.cell(x, states))
        return states[-1]


def list_of_states(steps: int = 150, sequences: int = 20) -> Workload:
    """Unroll sequences of different batch sizes."""
    model = Unrolled().eval()
    batches = [torch.randn(steps, 1 + number, WIDTH) for number in range(sequences)]
    run, warm_up = (torch.no_grad()(partial(unroll, model, some)) for some in (batches, batches[:1]))
    return Workload(model, run, warm_up, anew=True)


def unroll(model: nn.Module, batches: Sequence[Tensor]) -> None:
    for xs in batches:
        model(xs)


class LstmLM(nn.Module):
    """Tokens to logits by way of torch's LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(
        self, tokens: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, state = self.lstm(self.embed(tokens), state)
        return self.head(hidden[:, -1:]), state


def lstm_lm(tokens: int = 64) -> Workload:
    model = LstmLM().eval()

    @torch.no_grad()
    def run() -> Tensor:
        token, state = torch.arange(PROMPT_TOKENS)[None], None
        for _ in range(tokens):
            logits, state = model(token, state)
            token = logits.argmax(-1)
        return token

    return Workload(model, run)


def many_small_calls(calls: int = 2_000) -> Workload:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
    model.eval()
    xs = torch.randn(16, 1, WIDTH)

    @torch.no_grad()
    def run() -> None:
        for number in range(calls):
            model(xs[number % 16])

    return Workload(model, run)


def training_step() -> Workload:
    """Forward, backward and an AdamW step of the causal LM with 12 layers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=12, head_dim=16, **LAYER_SIZES)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(VOCABULARY, (2, 32))

    def run() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()

    return Workload(model, run)


ROWS: dict[str, Row] = {
    "talker": Row("our talker, 12 frames", "talkerviz, preset `tiny`", partial(talker, "native")),
    "talker-transformers": Row(
        "transformers' talker, 12 frames, `output_hidden_states`",
        "transformers Qwen3-Omni talker, preset `tiny`",
        partial(talker, "transformers"),
    ),
    "lm-64": Row("causal LM, DynamicCache, 64 tokens", "transformers Qwen3, 28 layers", partial(qwen3, 64)),
    "lm-256": Row("causal LM, DynamicCache, 256 tokens", "transformers Qwen3, 28 layers", partial(qwen3, 256), False),
    "lm-1024": Row(
        "causal LM, DynamicCache, 1,024 tokens", "transformers Qwen3, 28 layers", partial(qwen3, 1_024), False
    ),
    "lm-static": Row(
        "causal LM, StaticCache, 64 tokens",
        "transformers Qwen3, 28 layers",
        partial(qwen3, 64, cache_implementation="static", disable_compile=True),
    ),
    "lm-sliding": Row("sliding-window cache, 96 tokens", "transformers Gemma 3, 18 layers", sliding_window),
    "lm-bamba": Row("hybrid cache, 64 tokens", "transformers Bamba (Mamba-2 and attention), 12 layers", bamba),
    "lm-qwen3-next": Row(
        "hybrid cache and experts, 64 tokens",
        "transformers Qwen3-Next (delta nets and attention), 12 layers",
        qwen3_next,
    ),
    "lm-mamba": Row("Mamba states, 64 tokens", "transformers Mamba, 12 layers", mamba),
    "gpt2": Row("GPT-2, 64 tokens", "transformers GPT-2, 12 layers", gpt2),
    "whisper": Row("Whisper `generate`, 64 tokens", "transformers Whisper, 4 + 4 layers", whisper),
    "t5": Row("T5 `generate`, 64 tokens", "transformers T5, 6 + 6 layers", t5),
    "moe": Row("mixture of experts, 64 tokens", "transformers Qwen3-MoE, 12 layers", mixture_of_experts),
    "vit": Row("ViT", "timm VisionTransformer, 12 layers", vit),
    "densenet": Row("DenseNet, a list that grows", "timm DenseNet-121, growth 8", densenet),
    "list-of-states": Row(
        "a cell handed the list of its past states, 20 times 150 steps", "torch, by hand", list_of_states
    ),
    "lstm": Row("LSTM LM, 64 tokens", "torch nn.LSTM, 2 layers", lstm_lm),
    "resnet": Row("ResNet", "timm ResNet-50, narrow", resnet),
    "unet": Row("diffusion UNet, 10 steps", "diffusers UNet2DConditionModel and DDIMScheduler", unet),
    "small-model": Row("a small model called 2,000 times", "torch nn.Sequential", many_small_calls),
    "training": Row("a training step", "transformers Qwen3, 12 layers; torch AdamW", training_step),
}
