"""The Qwen3-Omni talker in PyTorch, natively and as transformers has it."""

from .config import PRESETS, TalkerConfig, default_dtype, preset
from .generate import generate
from .prompt import Prompt, ThinkerOutputs, assemble_prompt
from .run import run
from .sampling import GREEDY, Sampling
from .scenario import Scenario, scenario_inputs
from .talker import TalkerForConditionalGeneration
from .weights import build_talker, init_weights

__all__ = [
    "GREEDY",
    "PRESETS",
    "Prompt",
    "Sampling",
    "Scenario",
    "TalkerConfig",
    "TalkerForConditionalGeneration",
    "ThinkerOutputs",
    "assemble_prompt",
    "build_talker",
    "default_dtype",
    "generate",
    "init_weights",
    "preset",
    "run",
    "scenario_inputs",
]
