"""The Qwen3-Omni talker in PyTorch, natively and as transformers has it."""

from .checkpoint import find_module, read_talker_config
from .code2wav import build_code2wav, code2wav_config, load_code2wav, read_code2wav_config, stream_audio
from .compiled import compile_talker
from .config import PRESETS, TalkerConfig, default_dtype, preset
from .fused import fuse_talker
from .generate import Frame, generate, generate_batch, stream
from .graphs import replay_frames
from .prompt import Prompt, ThinkerOutputs, assemble_prompt, batch_prompts
from .run import run
from .sampling import GREEDY, Sampling
from .scenario import Scenario, scenario_inputs
from .talker import TalkerForConditionalGeneration
from .weights import build_talker, init_weights, load_talker

__all__ = [
    "GREEDY",
    "PRESETS",
    "Frame",
    "Prompt",
    "Sampling",
    "Scenario",
    "TalkerConfig",
    "TalkerForConditionalGeneration",
    "ThinkerOutputs",
    "assemble_prompt",
    "batch_prompts",
    "build_code2wav",
    "build_talker",
    "code2wav_config",
    "compile_talker",
    "default_dtype",
    "find_module",
    "fuse_talker",
    "generate",
    "generate_batch",
    "init_weights",
    "load_code2wav",
    "load_talker",
    "preset",
    "read_code2wav_config",
    "read_talker_config",
    "replay_frames",
    "run",
    "scenario_inputs",
    "stream",
    "stream_audio",
]
