"""The native talker against transformers': same modules, calls, numbers and codes."""

from __future__ import annotations

import pytest
import torch
from talker_parity import recorded_run

from talkerviz.talker import Scenario, build_talker, generate_scenario, preset


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_module_trees_are_equal(name: str) -> None:
    def tree(impl: str) -> list[tuple[str, str]]:
        model = build_talker(preset(name), impl, device="meta")
        return [(path, type(m).__name__.removeprefix("Qwen3OmniMoe")) for path, m in model.named_modules()]

    assert tree("native") == tree("transformers")


def test_full_has_the_published_number_of_parameters() -> None:
    model = build_talker(preset("full"), device="meta")
    assert sum(p.numel() for p in model.parameters()) == 3_324_596_480


def test_lite_is_small() -> None:
    model = build_talker(preset("lite"), device="meta")
    assert sum(p.numel() for p in model.parameters()) == 317_886_720


def check_that_codes_vary(codes: torch.Tensor) -> None:
    assert len(codes.unique(dim=0)) >= len(codes) // 2
    assert all(len(codes[:, group].unique()) > 1 for group in range(16))


# lite runs once: it has the real widths and depths, and costs seconds.
@pytest.mark.parametrize(("name", "seed", "frames"), [("tiny", 0, 12), ("tiny", 1, 12), ("lite", 0, 5)])
def test_calls_and_numbers_equal_transformers(name: str, seed: int, frames: int) -> None:
    scenario = Scenario(frames=frames, seed=seed)
    keep = ("codec_head", "model.norm", "code_predictor.model.norm", "code_predictor.lm_head.14")
    codes, native = recorded_run(name, "native", scenario, keep)
    expected_codes, transformers = recorded_run(name, "transformers", scenario, keep)
    assert torch.equal(codes, expected_codes)
    check_that_codes_vary(codes)
    # transformers goes on to embed the last frame and to read it: native stops once its codes are known.
    assert native.calls == transformers.calls[: len(native.calls)]
    frame_after = {path for path, *_ in transformers.calls[len(native.calls) :]}
    assert not any(path.startswith("code_predictor.lm_head") for path in frame_after)
    for module in keep:
        pairs = zip(native.kept[module], transformers.kept[module], strict=False)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


# In float32 the first two seeds are compared call by call above.
@pytest.mark.parametrize(
    ("dtype", "seed"), [(torch.float32, 2), (torch.bfloat16, 0), (torch.bfloat16, 1), (torch.bfloat16, 2)]
)
def test_greedy_codes_are_equal_and_vary(dtype: torch.dtype, seed: int) -> None:
    scenario, config = Scenario(frames=12, seed=seed), preset("tiny")
    native, transformers = (
        generate_scenario(build_talker(config, impl, dtype=dtype, seed=seed), impl, scenario, config)
        for impl in ("native", "transformers")
    )
    assert native.shape == (12, 16)
    assert native.dtype == torch.int64
    assert torch.equal(native, transformers)
    check_that_codes_vary(native)
