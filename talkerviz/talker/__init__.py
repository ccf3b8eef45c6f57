"""The Qwen3-Omni talker in PyTorch: a native implementation, and transformers' behind the same interface."""

from talkerviz.talker.files.build import build_code2wav, build_talker, init_weights, load_code2wav, load_talker
from talkerviz.talker.files.checkpoint import find_module, read_code2wav_config, read_talker_config
from talkerviz.talker.generation.compile import compile_talker
from talkerviz.talker.generation.cuda_graphs import replay_frames
from talkerviz.talker.generation.generate import Frame, generate, stream
from talkerviz.talker.generation.prompt import Prompt, ThinkerOutputs, assemble_prompt
from talkerviz.talker.generation.runner import generate_scenario
from talkerviz.talker.generation.sampling import GREEDY, Sampling
from talkerviz.talker.generation.scenario import Scenario, scenario_inputs
from talkerviz.talker.generation.streaming_audio import stream_audio
from talkerviz.talker.kernels import fuse_talker
from talkerviz.talker.model.code2wav import Code2Wav, StreamingCode2Wav
from talkerviz.talker.model.code2wav_config import Code2WavConfig, code2wav_config
from talkerviz.talker.model.config import PRESETS, TalkerConfig, default_dtype, preset
from talkerviz.talker.model.talker import Acceleration, TalkerForConditionalGeneration

__all__ = [
    "GREEDY",
    "PRESETS",
    "Acceleration",
    "Code2Wav",
    "Code2WavConfig",
    "Frame",
    "Prompt",
    "Sampling",
    "Scenario",
    "StreamingCode2Wav",
    "TalkerConfig",
    "TalkerForConditionalGeneration",
    "ThinkerOutputs",
    "assemble_prompt",
    "build_code2wav",
    "build_talker",
    "code2wav_config",
    "compile_talker",
    "default_dtype",
    "find_module",
    "fuse_talker",
    "generate",
    "generate_scenario",
    "init_weights",
    "load_code2wav",
    "load_talker",
    "preset",
    "read_code2wav_config",
    "read_talker_config",
    "replay_frames",
    "scenario_inputs",
    "stream",
    "stream_audio",
]
