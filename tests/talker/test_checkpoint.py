"""Checkpoints: written here in several shapes, saved by transformers, damaged in many ways."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import talkerviz
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from safetensors.torch import save_file
from tiny_omni import save_tiny_omni, tiny_omni_config
from torch import Tensor
from transformers import Qwen3OmniMoeForConditionalGeneration
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from talkerviz.api import Trace
from talkerviz.progress import byte_progress
from talkerviz.talker import (
    Scenario,
    TalkerConfig,
    build_talker,
    find_module,
    generate_scenario,
    load_talker,
    preset,
    read_talker_config,
)
from talkerviz.talker.files import weight_loader as fill_module
from talkerviz.talker.files.weight_loader import read_into
from talkerviz.targets import talker_of, talker_target

Capture = pytest.CaptureFixture[str]
IMPLS = ("native", "transformers")
EXPERTS = "talker.model.layers.1.mlp.experts"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Qwen3-Omni as transformers saves it, in bfloat16 and in several shards."""
    directory = tmp_path_factory.mktemp("omni") / "Tiny-Omni"
    save_tiny_omni(directory, dtype=torch.bfloat16)
    return directory


@cache
def tiny() -> Any:
    return build_talker(preset("tiny"))


def published() -> dict[str, Tensor]:
    """Return the tiny talker's tensors under the published names, and one of the thinker's."""
    state = {f"talker.{name}": weight for name, weight in tiny().state_dict().items()}
    return {**state, "thinker.model.embed_tokens.weight": torch.zeros(4, 4)}


def fused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same with the experts of each layer in two tensors."""
    whole = {name: weight for name, weight in state.items() if ".experts." not in name}
    for name, weight in tiny().named_parameters():
        if ".experts." in name:
            whole[f"talker.{name}"] = weight
    return whole


@cache
def config_text() -> str:
    return json.dumps(tiny_omni_config().to_dict())


def write(directory: Path, tensors: Mapping[str, Tensor], shards: int = 3) -> Path:
    """Return a checkpoint of these tensors, dealt to so many shards; a single one has no index."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(config_text())
    # Copies, since safetensors refuses views of one storage.
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(copies, directory / "model.safetensors")
        return directory
    files = {name: f"model-{number % shards + 1:05}-of-{shards:05}.safetensors" for number, name in enumerate(copies)}
    for file in set(files.values()):
        save_file({name: copies[name] for name in copies if files[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return directory


def load(directory: Path, impl: str = "native", **options: Any) -> Any:
    return load_talker(read_talker_config(directory), find_module(directory, "talker."), impl, **options)


def same(one: Any, other: Any) -> bool:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_codes_are_those_of_transformers(saved: Path, dtype: torch.dtype) -> None:
    whole = Qwen3OmniMoeForConditionalGeneration.from_pretrained(saved, dtype=dtype)
    config = read_talker_config(saved)
    scenario = Scenario(prompt_tokens=7, text_tokens=9, frames=12, speaker="Chelsie")
    expected = generate_scenario(whole.talker.eval(), "transformers", scenario, config)
    assert len(expected.unique(dim=0)) >= 6
    for impl in IMPLS:
        loaded = load(saved, impl, dtype=dtype)
        assert same(loaded, whole.talker)
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert torch.equal(generate_scenario(loaded, impl, scenario, config), expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("layout", [published, lambda: fused(published())], ids=["separate", "fused"])
@pytest.mark.parametrize("shards", [1, 4])
def test_experts_one_by_one_and_as_one(
    shards: int, layout: Callable[[], dict[str, Tensor]], impl: str, tmp_path: Path
) -> None:
    directory = write(tmp_path, layout(), shards)
    assert (config := read_talker_config(directory)).text == preset("tiny").text
    assert config.code_predictor == preset("tiny").code_predictor
    assert same(load(directory, impl), tiny())


def test_dtypes(tmp_path: Path) -> None:
    tensors = published()
    single = {name: weight.bfloat16() for name, weight in tensors.items()}
    assert load(write(tmp_path / "all", single)).codec_head.weight.dtype == torch.bfloat16
    # float32 holds both.
    mixed = {name: weight.half() if "lm_head" in name else single[name] for name, weight in tensors.items()}
    loaded = load(write(tmp_path / "mixed", mixed))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.code_predictor.lm_head[3].weight, mixed["talker.code_predictor.lm_head.3.weight"].float())
    asked = load(write(tmp_path / "float32", tensors), dtype=torch.bfloat16)
    state = asked.state_dict()
    assert all(torch.equal(state[name.removeprefix("talker.")], single[name]) for name in single if "talker" in name)
    # Positions are turned by angles in float32 whatever the weights are.
    assert asked.model.rotary_emb.inv_freq.dtype == torch.float32


def test_into_the_parameters_own_memory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Chunks that end within tensors, and within what one read gives.
    monkeypatch.setattr(fill_module, "_CHUNK_BYTES", 1000)
    config = read_talker_config(saved)
    stored = find_module(saved, "talker.")
    model = load_talker(config, stored)
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.zero_()
    told: list[tuple[int, int]] = []
    read_into(model, stored, lambda *progress: told.append(progress))
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    total = sum(parameter.nbytes for parameter in model.parameters())
    done = [read for read, _ in told]
    assert done == sorted(done)
    assert told[-1] == (total, total)


def test_other_parts_of_the_model(saved: Path, tmp_path: Path) -> None:
    whole = Qwen3OmniMoeForConditionalGeneration.from_pretrained(saved, dtype=torch.bfloat16)
    code2wav = Qwen3OmniMoeCode2Wav(whole.config.code2wav_config)
    stored = find_module(saved, "code2wav.")
    read_into(code2wav.to(stored.dtype), stored)
    assert same(code2wav, whole.code2wav)
    # The files of the others need not be there.
    holders = {one.file for one in find_module(saved, "talker.").tensors.values()}
    for file in (*holders, saved / "config.json", saved / "model.safetensors.index.json"):
        (tmp_path / file.name).symlink_to(file)
    assert not all((tmp_path / one.file.name).exists() for one in stored.tensors.values())
    assert same(load(tmp_path), whole.talker)


def test_the_meta_device(saved: Path) -> None:
    target = talker_target(talker_of(saved, "native", "meta", None, Scenario(frames=2)))
    assert {(one.device.type, one.dtype) for one in target.model.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_straight_to_the_device(saved: Path, dtype: torch.dtype | None) -> None:
    loaded = load(saved, device="cuda", dtype=dtype)
    assert all(parameter.is_cuda for parameter in loaded.parameters())
    assert same(loaded.cpu(), load(saved, dtype=dtype))


def resident(field: str) -> int:
    """Bytes of this process in memory, `VmRSS`, or the most there were, `VmHWM`."""
    return int(re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_second_copy_in_memory(dtype: torch.dtype, tmp_path: Path) -> None:
    with torch.device("meta"):
        module = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048, bias=False) for _ in range(12)])
    weight = torch.ones(2048, 2048)
    save_file({f"{n}.weight": weight.clone() for n in range(12)}, tmp_path / "model.safetensors")
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
    read_into(module.to(dtype).to_empty(device="cpu"), find_module(tmp_path, ""))
    assert (resident("VmHWM") - before) / sum(parameter.nbytes for parameter in module.parameters()) < 1.2
    assert all((parameter == 1).all() for parameter in module.parameters())


class Small:
    """A checkpoint of four tensors in three files, to be damaged: `two` and `three` hold what `module` wants."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.module = torch.nn.ModuleDict({name: torch.nn.Linear(2, 3, bias=False) for name in "abc"})
        self.tensors = {f"talker.{name}": weight for name, weight in self.module.state_dict().items()}
        self.one, self.two, self.three = (directory / f"model-{n}-of-3.safetensors" for n in (1, 2, 3))
        self.index = directory / "model.safetensors.index.json"
        self.files = dict(zip(["thinker.x", *self.tensors], (self.one, self.two, self.two, self.three), strict=True))
        self.write({**self.tensors, "thinker.x": torch.zeros(3)})

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        for file in set(self.files.values()):
            save_file({name: tensors[name] for name in tensors if self.files[name] == file}, file)
        self.list({name: file.name for name, file in self.files.items()})

    def list(self, files: Mapping[str, Any]) -> None:
        self.index.write_text(json.dumps({"weight_map": files}))

    def change_header(self, file: Path, change: Callable[[dict[str, Any]], object]) -> None:
        held = file.read_bytes()
        length = struct.unpack("<Q", held[:8])[0]
        header = json.loads(held[8 : 8 + length])
        change(header)
        file.write_bytes(with_header(json.dumps(header).encode(), held[8 + length :]))

    def read(self) -> None:
        read_into(self.module, find_module(self.directory, "talker."))

    def replace(self, name: str, tensor: Tensor) -> None:
        self.write({**self.tensors, "thinker.x": torch.zeros(3), name: tensor})


def with_header(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)


def entry(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = header["talker.c.weight"]
    return found


DAMAGE: dict[str, tuple[Callable[[Small], object], str]] = {
    "no shard": (
        lambda small: small.two.unlink(),
        r"model-2-of-3\.safetensors: no such file, and by .*index\.json it has 'talker\.a\.weight', 'talker\.b",
    ),
    "cut off": (
        lambda small: small.three.write_bytes(small.three.read_bytes()[:-1]),
        r"model-3-of-3\.safetensors: ends at byte \d+, before 'talker\.c\.weight' does: download it again",
    ),
    "cut off in the header": (
        lambda small: small.three.write_bytes(small.three.read_bytes()[:20]),
        r"model-3-of-3\.safetensors: its header cannot be read",
    ),
    "empty": (lambda small: small.three.write_bytes(b""), r"model-3-of-3\.safetensors: its header cannot be read"),
    "Git LFS": (
        lambda small: small.three.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        r"model-3-of-3\.safetensors: is a Git LFS pointer: `git lfs pull`",
    ),
    "no object": (
        lambda small: small.three.write_bytes(with_header(b"[]", b"")),
        r"model-3-of-3\.safetensors: its header cannot be read",
    ),
    "no entry": (
        lambda small: small.change_header(small.three, lambda header: header.update({"talker.c.weight": 1})),
        r"model-3-of-3\.safetensors: its header is damaged at 'talker\.c\.weight'",
    ),
    "a negative size": (
        lambda small: small.change_header(small.three, lambda header: entry(header).update(shape=[-2, -3])),
        r"its header is damaged at 'talker\.c\.weight'",
    ),
    "too few bytes": (
        lambda small: small.change_header(small.three, lambda header: entry(header).update(data_offsets=[0, 8])),
        r"'talker\.c\.weight' has 8 bytes, too few or too many for \[3, 2\] of F32",
    ),
    "tensors that overlap": (
        lambda small: small.change_header(
            small.two, lambda header: header.update({"talker.a.weight": header["talker.b.weight"]})
        ),
        r"model-2-of-3\.safetensors: its header is damaged: 'talker\.[ab]\.weight' and 'talker\.[ab]\.weight' overlap",
    ),
    "not in its shard": (
        lambda small: small.change_header(small.two, lambda header: header.pop("talker.a.weight")),
        r"model-2-of-3\.safetensors: has no 'talker\.a\.weight', which by model\.safetensors\.index\.json it has",
    ),
    "missing": (
        lambda small: small.list({"talker.c.weight": small.three.name}),
        r"has no 'talker\.a\.weight', 'talker\.b\.weight', which config\.json asks for",
    ),
    "many missing": (
        lambda small: small.module.update({str(n): torch.nn.Linear(2, 3) for n in range(10)}),
        r"has no 'talker\.0\.weight', 'talker\.0\.bias', 'talker\.1\.weight' and 17 more, which",
    ),
    "unexpected": (
        lambda small: small.module.pop("b"),
        r"has 'talker\.b\.weight' \(model-2-of-3\.safetensors\), for which config\.json has no place",
    ),
    "misshapen": (
        lambda small: small.replace("talker.c.weight", torch.zeros(2, 3)),
        r"has 'talker\.c\.weight' \(model-3-of-3\.safetensors\) as \[2, 3\], not \[3, 2\], as config\.json asks for",
    ),
    "whole numbers": (
        lambda small: small.replace("talker.a.weight", torch.zeros(3, 2, dtype=torch.int8)),
        r"model-2-of-3\.safetensors: only F32, BF16, F16, F8_E4M3 can be loaded, and not 'talker\.a\.weight' \(I8\)",
    ),
    "float8": (
        lambda small: small.replace("talker.a.weight", torch.zeros(3, 2).to(torch.float8_e4m3fn)),
        r"'talker\.a\.weight' is in 8-bit floats and has no 'talker\.a\.weight_scale_inv'",
    ),
    "none of the part": (lambda small: small.list({"thinker.x": small.one.name}), r"has no tensors 'talker\.\*'"),
    "no index": (
        lambda small: small.index.unlink(),
        r"has neither model\.safetensors nor .*index\.json",
    ),
    "an index that is no JSON": (lambda small: small.index.write_text("{"), r"index\.json: is no JSON: Expecting"),
    "an index that is a list": (lambda small: small.index.write_text("[]"), r"index\.json: is no JSON object"),
    "an index without files": (lambda small: small.index.write_text("{}"), r"index\.json: 'weight_map' does not have"),
    "files elsewhere": (
        lambda small: small.list({"talker.a.weight": "../../etc/passwd"}),
        r"index\.json: 'weight_map' leads out of the folder for 'talker.a.weight': '../../etc/passwd'; nothing is read",
    ),
    "a pickle in the index": (
        lambda small: small.list({"talker.a.weight": "pytorch_model.bin"}),
        r"index\.json: 'weight_map' names 'pytorch_model.bin' .* pickles are never opened",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(damage: Callable[[Small], object], message: str, small: Small) -> None:
    small.read()
    damage(small)
    with pytest.raises(ValueError, match=message) as raised:
        small.read()
    assert str(small.directory) in str(raised.value)


def test_nothing_is_read_before_all_is_checked(small: Small) -> None:
    small.replace("talker.c.weight", torch.zeros(2, 3))
    with torch.no_grad():
        for parameter in small.module.parameters():
            parameter.fill_(7)
    with pytest.raises(ValueError, match=r"talker\.c\.weight"):
        small.read()
    assert all((parameter == 7).all() for parameter in small.module.parameters())


def test_a_file_that_shrinks(small: Small) -> None:
    stored = find_module(small.directory, "talker.")
    small.three.write_bytes(small.three.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model-3-of-3\.safetensors: ends within 'talker\.c\.weight'"):
        read_into(small.module, stored)


def test_damage_elsewhere_does_no_harm(small: Small) -> None:
    small.one.unlink()
    small.read()


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "opened",)

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="has no safetensors but pickled weights, which are never opened"):
        find_module(tmp_path, "talker.")
    assert not (tmp_path / "opened").exists()


def nested() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("F32")
    return st.recursive(leaves, lambda some: st.lists(some, max_size=4) | st.dictionaries(st.text(max_size=9), some))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(150), deadline=None)
@given(
    held=st.binary(max_size=60)
    | st.builds(lambda header: with_header(json.dumps({"talker.c.weight": header}).encode(), bytes(24)), nested())
    | st.builds(
        lambda dtype, shape, place: with_header(
            json.dumps({"talker.c.weight": {"dtype": dtype, "shape": shape, "data_offsets": place}}).encode(), bytes(24)
        ),
        st.sampled_from(["F32", "F16", "U8"]) | nested(),
        st.lists(st.integers(-1, 1 << 70), max_size=3) | nested(),
        st.lists(st.integers(-1, 1 << 70), max_size=3) | nested(),
    )
)
@example(held=with_header(b"[" * 100_000, b""))
@example(
    held=with_header(b'{"talker.c.weight":{"dtype":"F32","shape":[],"data_offsets":[' + b"1" * 5000 + b",0]}}", b"")
)
def test_whatever_a_file_holds(held: bytes, small: Small) -> None:
    small.three.write_bytes(held)
    with pytest.raises(ValueError, match=r"model-3-of-3\.safetensors"):
        small.read()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(50), deadline=None)
@given(data=st.data())
def test_cut_anywhere(data: st.DataObject, small: Small) -> None:
    whole = Small(small.directory).three.read_bytes()
    small.three.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match=r"model-3-of-3\.safetensors: (ends at byte|its header cannot be read)"):
        small.read()


def changed(path: str, value: object) -> str:
    config = json.loads(config_text())
    *sections, last = path.split(".")
    section = config
    for name in sections:
        section = section[name]
    section[last] = value
    return json.dumps(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: is no JSON"),
        ("[1]", "config.json: is no JSON object"),
        ("{}", "model_type is None: only 'qwen3_omni_moe' can be loaded"),
        (changed("model_type", "llama"), "model_type is 'llama': only 'qwen3_omni_moe' can be loaded"),
        (changed("talker_config", None), "config.json: config key 'talker_config' is None: it must have keys"),
        (changed("talker_config.text_config", []), "config key 'talker_config.text_config' is []"),
        (changed("talker_config.speaker_id", []), "config key 'talker_config.speaker_id' cannot be []"),
        (changed("talker_config.speaker_id", {}), "it has no speakers"),
        (changed("talker_config.speaker_id", {"ethan": 9999}), "beyond the decoder's vocab_size"),
        (changed("talker_config.num_code_groups", 8), "decoder and code predictor differ in num_code_groups"),
        (changed("talker_config.text_config.hidden_size", "64"), "text_config.hidden_size' cannot be '64'"),
        (changed("talker_config.text_config.head_dim", 0), "is 0"),
        (changed("talker_config.text_config.hidden_act", "nosuch"), "text_config.hidden_act' cannot be 'nosuch'"),
        (changed("talker_config.text_config.num_local_experts", 1), "more experts are used than there are"),
        (changed("talker_config.text_config.rope_parameters.mrope_section", 3), "mrope_section' cannot be 3"),
        (changed("talker_config.text_config.rope_parameters.mrope_section", [4, 4, 4]), "half of head_dim"),
        (changed("talker_config.text_config.rope_parameters.interleaved", False), "only True is implemented"),
        (changed("talker_config.code_predictor_config.rope_parameters", 3), "rope_parameters' is 3"),
    ],
)
def test_bad_configs(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        read_talker_config(tmp_path)
    file.write_text(text)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - compared as it is, not as a pattern
        read_talker_config(tmp_path)
    assert str(raised.value).startswith(str(file))
    assert message in str(raised.value)


@settings(max_examples=examples(150), deadline=None)
@given(st.data())
def test_whatever_a_config_holds(data: st.DataObject) -> None:
    config = json.loads(config_text())
    section = config
    while True:
        name = data.draw(st.sampled_from(sorted(section)))
        if not isinstance(section[name], dict) or data.draw(st.booleans()):
            break
        section = section[name] or {"": None}
    section[name] = data.draw(nested())
    # Fine, or a ValueError: no other.
    with contextlib.suppress(ValueError):
        TalkerConfig.from_dict(config)


def test_the_command(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    for impl in IMPLS:
        args = ("--checkpoint", saved, "--impl", impl, "--frames", 3, "-o", f"{impl}.parquet", "--no-flow")
        assert talkerviz(monkeypatch, "trace", *args, "--codes", f"{impl}.json") == 0
        assert capsys.readouterr().err == ""
    assert Path("native.json").read_text() == Path("transformers.json").read_text()
    facts = Trace.load(Path("native.parquet")).facts
    assert facts["checkpoint"] == "Tiny-Omni"
    assert facts["dtype"] == "bfloat16"
    assert "preset" not in facts
    for style in ("nested", "flat"):
        assert talkerviz(monkeypatch, "render", "native.parquet", "-f", "dot", "--style", style) == 0
        assert "Tiny-Omni" in capsys.readouterr().out


def bad_commands(saved: Path) -> Iterable[tuple[list[object], str]]:
    yield ["--checkpoint", saved, "--preset", "tiny"], "--preset: --checkpoint says which weights they are"
    yield ["--checkpoint", saved, "package:function"], "--checkpoint: only for `trace talker` and `trace code2wav`, not"
    yield ["--checkpoint", "nosuch"], "nosuch: no such folder; give a Qwen3-Omni's"
    yield ["--checkpoint", saved / "config.json"], "config.json: no such folder"
    yield ["--checkpoint", saved, "--speaker", "bob"], "unknown speaker 'bob': choose from aiden, chelsie, ethan"


def test_bad_commands(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    for args, message in bad_commands(saved):
        assert talkerviz(monkeypatch, "trace", *args) == 2
        assert message in (said := capsys.readouterr().err)
        assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_voices_are_the_checkpoints_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    directory = write(tmp_path / "voices", published())
    (directory / "config.json").write_text(changed("talker_config.speaker_id", {"nova": 2301}))
    args = ("trace", "--checkpoint", directory, "--frames", 2, "--no-flow", "-o", tmp_path / "run.parquet")
    assert talkerviz(monkeypatch, *args) == 2
    assert "unknown speaker 'ethan': choose from nova" in capsys.readouterr().err
    assert talkerviz(monkeypatch, *args, "--speaker", "Nova") == 0


def test_damage_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    tensors = published()
    del tensors[f"{EXPERTS}.3.up_proj.weight"]
    tensors["talker.odd"] = torch.zeros(2)
    directory = write(tmp_path / "damaged", tensors)
    assert talkerviz(monkeypatch, "trace", "--checkpoint", directory, "-o", tmp_path / "run.parquet") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"talkerviz: {directory}: has no '{EXPERTS}.3.up_proj.weight', which config.json asks for")
    assert said.count("\n") == 1


def test_a_bar_on_terminals_alone(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for terminal, shown in ((False, True), (True, False), (True, True)):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
        with byte_progress("weights", shown) as on_bytes:
            for done in range(0, 6_600_000_001, 1_100_000_000):
                on_bytes(done, 6_600_000_000)
        said = capsys.readouterr()
        assert said.out == ""
        assert ("weights" in said.err and "6.6/6.6 GB" in said.err) == (terminal and shown)
        assert (said.err == "") == (not (terminal and shown))
