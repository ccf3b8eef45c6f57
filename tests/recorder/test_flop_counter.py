"""Floating-point operations and bytes, against numbers worked out by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import talkerviz as tv
from talkerviz.analysis.roofline import roofline
from talkerviz.analysis.summary import summarise
from talkerviz.recorder.instruments.device_peaks import Peaks, load_peaks, published_peaks, run_peaks, save_peaks
from talkerviz.recorder.instruments.flop_formulas import flops_of
from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.talker.files.build import build_talker
from talkerviz.talker.generation.runner import generate_scenario
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.talker.model.config import preset
from talkerviz.trace.join import join

DEVICES = pytest.mark.parametrize("device", ["cpu", "meta"])


@torch.no_grad()
def cost(model: nn.Module, *inputs: torch.Tensor) -> list[tuple[int, int, int]]:
    """(FLOP, bytes read, bytes written) of every call."""
    calls = tv.record(model, lambda: model(*inputs), measure="cost").calls
    return list(calls[["flops", "bytes_read", "bytes_written"]].itertuples(index=False, name=None))


class Attention(nn.Module):
    """One new token against a cache of which some positions are filled."""

    def __init__(self, filled: int, device: str) -> None:
        super().__init__()
        self.filled = filled
        self.keys = torch.zeros(1, 2, 32, 16, device=device)
        self.values = torch.zeros(1, 2, 32, 16, device=device)

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        end = self.filled + 1
        self.keys[:, :, self.filled : end] = key
        self.values[:, :, self.filled : end] = key
        return F.scaled_dot_product_attention(query, self.keys[:, :, :end], self.values[:, :, :end], enable_gqa=True)


@DEVICES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear(device: str, dtype: torch.dtype) -> None:
    size = dtype.itemsize
    model = nn.Linear(32, 48, bias=False, device=device, dtype=dtype)
    x = torch.zeros(2, 5, 32, device=device, dtype=dtype)
    assert cost(model, x) == [(2 * 10 * 32 * 48, size * (10 * 32 + 32 * 48), size * 10 * 48)]


@DEVICES
def test_a_product_and_its_bias(device: str) -> None:
    model = nn.Linear(8, 4, device=device)
    # torch's own count of addmm leaves the bias's additions out.
    assert cost(model, torch.zeros(3, 8, device=device)) == [(2 * 3 * 8 * 4, 4 * (3 * 8 + 8 * 4 + 4), 4 * 3 * 4)]


@DEVICES
def test_an_embedding_reads_the_rows_it_gives(device: str) -> None:
    model = nn.Embedding(1000, 16, device=device)
    tokens = torch.zeros(1, 3, dtype=torch.long, device=device)
    rows = 3 if device == "meta" else 1  # nobody knows there that all are the same
    assert cost(model, tokens) == [(0, rows * 16 * 4 + 3 * 8, 3 * 16 * 4)]


@DEVICES
def test_norms(device: str) -> None:
    x = torch.zeros(2, 16, device=device)
    assert cost(nn.LayerNorm(16, device=device), x)[0] == (7 * 32, 4 * (32 + 32), 4 * 32)
    # As the formula of RMSNorm goes: square, mean; add, root of each row; scale, weigh.
    flops, read, written = cost(nn.RMSNorm(16, device=device), x)[0]
    assert flops in (4 * 32, 4 * 32 + 2 * 2)
    assert read == 4 * (32 + 16)
    assert written == 4 * 32


@DEVICES
@pytest.mark.parametrize("filled", [0, 7, 20])
def test_attention_counts_the_cache_that_is_filled(device: str, filled: int) -> None:
    model = Attention(filled, device)
    query, key = torch.zeros(1, 4, 1, 16, device=device), torch.zeros(1, 2, 1, 16, device=device)
    (flops, read, written) = cost(model, query, key)[0]
    products = 2 * 4 * (filled + 1) * (16 + 16)
    # Where no fused kernel runs, the softmax's own operators are counted too.
    assert products <= flops <= products + 4 * (filled + 1) * 12 + 4 * 16 * 2 + 2 * (filled + 1) * 16 * 2
    row = 4 * 2 * 16
    assert read == 4 * (4 * 16 + 2 * 16) + 2 * (filled + 1) * row
    assert written == 2 * row + 4 * 4 * 16


@DEVICES
def test_convolutions(device: str) -> None:
    model = nn.Conv1d(3, 8, 5, device=device)
    x = torch.zeros(2, 3, 20, device=device)
    flops, read, written = cost(model, x)[0]
    assert flops == 2 * (2 * 8 * 16) * (3 * 5)
    assert (read, written) == (4 * (2 * 3 * 20 + 8 * 3 * 5 + 8), 4 * 2 * 8 * 16)


ROWS = torch.arange(500)
WRITES = {
    "a number in rows": (lambda to: to.__setitem__(ROWS, 0.0), 4, 500 * 1000),
    "a row in rows": (lambda to: to.__setitem__(ROWS, torch.ones(1000)), 0, 500 * 1000),
    "columns": (lambda to: to.__setitem__((slice(None), ROWS), torch.ones(1000, 500)), 0, 500 * 1000),
    "places": (lambda to: to.__setitem__((ROWS, ROWS), torch.ones(500)), 0, 500),
    "what a mask says": (lambda to: to.__setitem__(torch.ones(1000, dtype=torch.bool), 1.0), 4, 1000 * 1000),
    "added to a row": (lambda to: to.index_put_((ROWS[:1],), torch.ones(1, 1000), True), 4 * 1000, 1000),
    "rows of another": (lambda to: to.index_copy_(0, ROWS, torch.ones(500, 1000)), 0, 500 * 1000),
    "a number scattered": (lambda to: to.scatter_(0, ROWS[None, :1].clone(), 1.0), 0, 1),
    "scattered and added": (lambda to: to.scatter_(0, ROWS[None], torch.ones(1, 500), reduce="add"), 4 * 500, 500),
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_write_of_some_places_moves_those(kind: str) -> None:
    write, values_read, written = WRITES[kind]

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("place", torch.zeros(1000, 1000))

        def forward(self) -> None:
            write(self.place)

    model = Written()
    calls = tv.record(model, model, measure="cost").calls
    assert calls["bytes_written"].tolist() == [4 * written]
    places_read = {"what a mask says": 0, "a number scattered": 8, "added to a row": 8}.get(kind, 500 * 8)
    assert calls["bytes_read"].tolist() == [places_read + values_read]


@pytest.mark.parametrize("measure", ["cost", "flow"])
def test_ctrl_c_as_it_begins_to_watch(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchDispatchMode, "__enter__", interrupted)
    with pytest.raises(KeyboardInterrupt), tv.recording(nn.Identity(), measure=measure):
        pass
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_what_is_made_inside_is_not_moved() -> None:
    first, second = nn.Linear(8, 1024, bias=False), nn.Linear(1024, 8, bias=False)
    whole, *parts = cost(nn.Sequential(first, second), torch.zeros(1, 8))
    weights = 4 * 2 * 8 * 1024
    assert whole == (sum(flops for flops, _, _ in parts), weights + 4 * 8, 4 * 8)
    assert parts[1][1] == weights // 2 + 4 * 1024


def test_what_is_read_twice_is_read_once() -> None:
    layer = nn.Linear(16, 16, bias=False)
    whole, once, again = cost(nn.Sequential(layer, layer), torch.zeros(1, 16))
    assert whole[1] == 4 * (16 * 16 + 16)
    assert once[1] == again[1] == 4 * (16 * 16 + 16)


class Calls(nn.Module):
    """Calls one function with what it is given."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: object) -> object:
        return self.function(*args)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has it from 2.10 on")
def test_products_in_groups() -> None:
    """Of 4 groups 2 have rows: those matrices are read, and no other."""
    model = Calls(lambda a, b, ends: F.grouped_mm(a, b, offs=ends))

    def sizes(a: tuple[int, ...], b: tuple[int, ...], ends: list[int] | None, device: str = "cpu") -> object:
        tensors = [torch.zeros(shape, dtype=torch.bfloat16, device=device) for shape in (a, b)]
        given = None if ends is None else torch.tensor(ends, dtype=torch.int32, device=device)
        return cost(model, *tensors, given)[0]  # type: ignore[arg-type]

    some = [8, 8, 24, 24]
    flop = 2 * 24 * 16 * 8
    assert sizes((24, 16), (4, 16, 8), some) == (flop, 2 * (24 * 16 + 2 * 16 * 8) + 16, 2 * 24 * 8)
    assert sizes((4, 8, 16), (16, 24), some) == (flop, 2 * (2 * 8 * 16 + 16 * 24) + 16, 2 * 8 * 24)
    assert sizes((8, 24), (24, 16), some) == (flop, 2 * (8 * 24 + 24 * 16) + 16, 2 * 4 * 8 * 16)
    assert sizes((4, 24, 16), (4, 16, 8), None) == (4 * flop, 2 * 4 * (24 * 16 + 16 * 8), 2 * 4 * 24 * 8)
    # Nobody knows there which they are: as many as the rows allow.
    assert sizes((3, 16), (4, 16, 8), some, "meta") == (flop // 8, 2 * (3 * 16 + 3 * 16 * 8) + 16, 2 * 3 * 8)
    assert sizes((24, 16), (4, 16, 8), some, "meta") == (flop, 2 * (24 * 16 + 4 * 16 * 8) + 16, 2 * 24 * 8)


def test_experts_cost_the_same_in_transformers() -> None:
    pytest.importorskip("transformers")
    both = [talker_trace("tiny", "cpu", impl=impl) for impl in ("native", "transformers")]
    kept = [trace.calls[trace.calls["path"].str.endswith("mlp.experts")] for trace in both]
    count = len(kept[0])  # transformers speaks a frame more
    for column in ("flops", "bytes_written"):
        assert kept[1][column].tolist()[:count] == kept[0][column].tolist()
    # The host reads one token's routing by itself: `tolist` is no operation.
    routing = [inputs[1].shape[1] * 8 if inputs[1].shape[0] == 1 else 0 for inputs in kept[0]["inputs"]]
    assert kept[1]["bytes_read"].tolist()[:count] == [
        read + n for read, n in zip(kept[0]["bytes_read"], routing, strict=True)
    ]
    assert all(not trace.facts["unknown_operators"] for trace in both)
    assert both[1].calls["flops"].notna().all()


def test_recurrent_layers() -> None:
    """A row of a step: products of 4 gates of 16; 4 sums and 4 functions of them, and 5 more to the new state."""
    x = torch.zeros(5, 3, 8)
    flop = 5 * 3 * (2 * 4 * 16 * (8 + 16) + 13 * 16)
    for whole in (True, False):  # as one operator, and in its steps
        with torch.backends.mkldnn.flags(enabled=whole):
            assert cost(nn.LSTM(8, 16), x)[0][0] == flop
            assert cost(nn.LSTM(8, 16, bidirectional=True), x)[0][0] == 2 * flop
    assert cost(nn.LSTM(8, 16, batch_first=True), x)[0][0] == flop
    assert cost(nn.GRU(8, 16), x)[0][0] == 5 * 3 * (2 * 3 * 16 * (8 + 16) + 10 * 16)
    assert cost(nn.RNN(8, 16), x)[0][0] == 5 * 3 * (2 * 16 * (8 + 16) + 2 * 16)


def test_recurrent_operators_of_gpus() -> None:
    aten, empty = torch.ops.aten, functools.partial(torch.empty, device="meta")
    cells = [(aten._thnn_fused_lstm_cell.default, 4, 13), (aten._thnn_fused_gru_cell.default, 3, 10)]
    for func, gates, each in cells:
        given = [empty(3, gates * 16), empty(3, gates * 16), empty(3, 16)]
        assert flops_of(func, given, {}, given[0]) == 3 * 16 * each
        biases = [empty(gates * 16)] * 2
        assert flops_of(func, [*given, *biases], {}, given[0]) == 3 * 16 * (each + 2 * gates)
    x, state = empty(5, 3, 8), empty(1, 3, 16)
    for mode, gates, each in ((0, 1, 2), (1, 1, 2), (2, 4, 13), (3, 3, 10)):
        weights = [empty(gates * 16, 8), empty(gates * 16, 16), empty(gates * 16), empty(gates * 16)]
        args = [x, weights, 4, None, state, state, mode, 16, 0, 1, False, 0.0, True, False, [], None]
        assert flops_of(aten._cudnn_rnn.default, args, {}, x) == 15 * (2 * gates * 16 * (8 + 16) + each * 16)


def test_views_that_are_not_said_to_be() -> None:
    """A tensor turned in place, and halves that may be written to, are what they were."""
    halves = Calls(lambda x: x.clone().transpose_(0, 1).unsafe_chunk(2, 1)[0] + 1)
    assert cost(halves, torch.zeros(4, 8)) == [(8 * 2, 4 * 32, 4 * 16)]


def test_a_bilinear_layer() -> None:
    """The first input with each of 5 matrices, then with the second, then the bias."""
    x, y = torch.zeros(3, 8), torch.zeros(3, 6)
    assert cost(nn.Bilinear(8, 6, 5), x, y)[0][0] == 2 * 3 * 5 * 8 * 6 + 2 * 3 * 5 * 6 + 3 * 5


@pytest.mark.parametrize(
    ("mode", "sizes", "each"),
    [
        ("nearest", (4, 4), 0),
        ("nearest-exact", (4, 4), 0),
        ("linear", (4,), 3),
        ("bilinear", (4, 4), 3 * 3),
        ("trilinear", (4, 4, 4), 7 * 3),
        ("bicubic", (4, 4), 5 * 7),
    ],
)
def test_upsampling(mode: str, sizes: tuple[int, ...], each: int) -> None:
    """Between two numbers: two products and a sum; in more dimensions, between what was found in the others."""
    model, x = nn.Upsample(scale_factor=2, mode=mode), torch.zeros(1, 2, *sizes)
    elements = 2 * 8 ** len(sizes)
    assert cost(model, x) == [(each * elements, 4 * x.numel(), 4 * elements)]


def test_bags_of_embeddings() -> None:
    tokens, offsets = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 2])
    for mode in ("sum", "mean", "max"):
        flop, read, _ = cost(nn.EmbeddingBag(1000, 16, mode=mode), tokens, offsets)[0]
        assert (flop, read) == (5 * 16, 5 * 16 * 4 + 7 * 8)
    weighed = nn.EmbeddingBag(1000, 16, mode="sum")
    flop, read, _ = cost(weighed, tokens, offsets, torch.ones(5))[0]
    assert (flop, read) == (2 * 5 * 16, 5 * 16 * 4 + 7 * 8 + 5 * 4)


def test_an_unknown_operator_makes_a_lower_bound() -> None:
    library = torch.library.Library("talkerviz_test", "FRAGMENT")
    library.define("mystery(Tensor x) -> Tensor")
    library.impl("mystery", lambda x: x.clone(), "CPU")
    model = nn.Sequential(nn.Linear(4, 4), Calls(torch.ops.talkerviz_test.mystery))
    with torch.no_grad():
        trace = tv.record(model, lambda: model(torch.eye(4)), measure="cost")
    assert trace.calls["flops"].tolist() == [128, 128, 0]
    assert trace.calls["uncounted_operators"].tolist() == [1, 0, 1]
    assert trace.calls["bytes_read"].notna().all()
    assert trace.facts["unknown_operators"] == {"mystery": 1}
    assert trace.facts["unknown_operators_in"] == {"mystery": ["model.1"]}
    table = trace.table("module").set_index("module")
    assert table["uncounted"].to_dict() == {"model": 1, "model.0": 0, "model.1": 1}
    text = trace.render("markdown", by="module")
    assert "| not counted |" in text
    assert "FLOP are at least those in the table" in text
    assert "1 call of mystery in model.1" in text


def test_other_threads_are_not_counted_rather_than_wrong() -> None:
    import threading

    model = nn.Linear(4, 4)

    def both() -> None:
        model(torch.zeros(1, 4))
        thread = threading.Thread(target=lambda: model(torch.zeros(1, 4)))
        thread.start()
        thread.join()

    calls = tv.record(model, both, measure="cost").calls
    assert calls["flops"].isna().tolist() == [False, True]


def talker_trace(
    name: str,
    device: str,
    frames: int = 2,
    clock: str = "none",
    measure: str | None = "cost",
    impl: str = "native",
) -> tv.Trace:
    config = preset(name)
    dtype = torch.bfloat16 if name == "full" else torch.float32
    talker = build_talker(config, impl, device, dtype, 0)
    go = lambda: generate_scenario(talker, impl, Scenario(frames=frames), config)  # noqa: E731
    return tv.record(talker, go, "talker", TalkerPhases, clock=clock, measure=measure)


def test_the_whole_talker_on_the_meta_device() -> None:
    """Sizes by hand from the configuration: 1,024 wide, 16 query and 2 key-value heads of 64, 6 of 128 experts."""
    trace = talker_trace("full", "meta")
    calls = trace.calls
    text = preset("full").text
    hidden, width, experts = text.hidden_size, text.moe_intermediate_size, text.num_experts_per_tok
    decode = calls[(calls["phase"] == "decode") & (calls["path"] == "talker.model.layers.5.mlp.experts")].iloc[0]
    weights = experts * 3 * hidden * width
    assert decode["flops"] >= 2 * weights
    assert decode["flops"] < 2 * weights * 1.01
    assert 2 * weights < decode["bytes_read"] < 2 * weights * 1.01
    head = calls[(calls["phase"] == "decode") & (calls["path"] == "talker.codec_head")].iloc[0]
    assert head["flops"] == 2 * hidden * text.vocab_size
    # A frame reads the 20 layers' active weights: 14.3 M parameters each, and the head's.
    frame = calls[(calls["phase"] == "decode") & (calls["path"] == "talker")].iloc[0]
    assert frame["bytes_read"] == pytest.approx(2 * (20 * 14.3e6 + hidden * text.vocab_size), rel=0.01)
    assert calls["flops"].notna().all()
    assert calls["host_ns"].isna().all()


def test_experts_that_are_really_hit() -> None:
    config = preset("tiny")
    calls = talker_trace("tiny", "cpu").calls
    talker = build_talker(config, "native", "cpu", torch.float32, 0)
    hit = []
    for layer in talker.model.layers:
        layer.mlp.experts.register_forward_pre_hook(lambda module, args: hit.append(len(args[1].unique())))
    generate_scenario(talker, "native", Scenario(frames=2), config)
    text = config.text
    an_expert = 4 * 3 * text.hidden_size * text.moe_intermediate_size
    rows = calls[calls["path"].str.endswith("mlp.experts")]
    assert len(set(hit)) > 1
    for count, row in zip(hit, rows.itertuples(), strict=True):
        one_token = row.inputs[1].shape[0] == 1  # whose routing the host reads by itself
        tensors = [t for t in row.inputs if not (one_token and t.dtype == "int64")]
        inputs = sum(np.prod(t.shape) * {"float32": 4, "int64": 8}[t.dtype] for t in tensors)
        assert row.bytes_read == count * an_expert + inputs


def test_joined_with_the_times_of_another_run() -> None:
    timed, counted = talker_trace("tiny", "cpu", clock="cpu", measure=None), talker_trace("tiny", "cpu")
    both = join(timed, counted)
    assert both.calls["host_ns"].equals(timed.calls["host_ns"])
    assert both.calls["flops"].equals(counted.calls["flops"])
    assert both.facts["clock"] == "cpu"
    with pytest.raises(ValueError, match="the second run made"):
        join(timed, talker_trace("tiny", "cpu", frames=3))
    shifted = counted.calls["path"].astype(object).shift(fill_value="x")
    other = replace(counted, calls=counted.calls.assign(path=shifted))
    with pytest.raises(ValueError, match=r"differs at call 0, .*, in its path"):
        join(timed, other)


def test_joined_where_graphs_were_replayed() -> None:
    """Replays have calls in the timed run alone, with device times and no host times."""
    model = nn.Sequential(nn.Linear(4, 4))
    run = lambda: [model(torch.ones(1, 4)) for _ in range(3)]  # noqa: E731
    timed, counted = tv.record(model, run), tv.record(model, lambda: model(torch.ones(1, 4)), measure="cost")
    calls = timed.calls
    calls.loc[2:, "host_ns"] = pd.NA
    calls.loc[2:, "device_ns"] = 5
    both = join(timed, counted).calls
    assert both["flops"].fillna(-1).tolist() == [32, 32, -1, -1, -1, -1]
    assert both["device_ns"].fillna(-1).tolist() == [-1, -1, 5, 5, 5, 5]


def test_sparse_tensors_do_not_stop_the_count() -> None:
    class Sparse(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sparse.mm(x.to_sparse(), x)

    model, x = Sparse(), torch.eye(4)
    with torch.no_grad():
        calls = tv.record(model, lambda: model(x), measure="cost").calls
    assert calls["bytes_written"].tolist() == [64]


def test_summaries_add_up_outermost_calls() -> None:
    trace = talker_trace("tiny", "cpu")
    calls = trace.calls
    by_class = summarise(trace, "class").set_index("class")
    linear = calls[calls["class"] == "Linear"]
    assert by_class["flops"]["Linear"] == linear["flops"].sum()
    assert by_class["bytes"]["Linear"] == (linear["bytes_read"] + linear["bytes_written"]).sum()
    by_phase = summarise(trace, "phase").set_index("phase")
    assert by_phase["flops"]["decode"] == calls[calls["path"] == "talker"]["flops"].iloc[1]
    assert by_class["of_peak"].isna().all()
    assert by_class["bound"].isna().all()


def series(*values: float | None) -> pd.Series:
    return pd.Series(pd.array([pd.NA if value is None else value for value in values], dtype="Float64"))


def test_roofline() -> None:
    peaks = {"flops": 1e12, "bandwidth": 1e11}
    flops, moved = series(1e9, 1e6, 1e6, 1e6, None), series(1e6, 1e8, 1e6, 1e6, 1e6)
    time, busy = series(1.25e6, 1.25e6, 1e6, 1e6, 1e6), series(None, None, None, 1e5, None)
    found = roofline(flops, moved, time, busy, peaks)
    assert found["intensity"].tolist()[:3] == [1000, 0.01, 1]
    assert found["of_peak"].tolist()[:3] == [0.8, 0.8, 0.01]
    assert found["bound"].fillna("").tolist() == ["compute", "memory", "overhead", "launch", ""]
    without = roofline(flops, moved, time, busy, {})
    assert without["of_peak"].isna().all()
    assert without["bound"].fillna("").tolist() == ["", "", "", "launch", ""]
    nearly = roofline(series(1e6), series(1e6), series(1e6), series(0.9e6), peaks)
    assert nearly["bound"].tolist() == ["memory"]


def test_peaks(tmp_path: Path) -> None:
    h200 = published_peaks("NVIDIA H200")
    assert h200 is not None
    assert h200.bandwidth == 4.8e12
    assert published_peaks("NVIDIA L40S") is not published_peaks("NVIDIA L4") is not None
    assert (
        published_peaks("NVIDIA A100-SXM4-40GB") is None
        or published_peaks("NVIDIA A100-SXM4-40GB").bandwidth == 1.555e12
    )
    assert published_peaks("NVIDIA H2000") is None
    assert run_peaks(h200, "float32", tf32=True)["flops"] == 494.5e12
    assert run_peaks(h200, "float32", tf32=False)["flops"] == 67e12
    assert run_peaks(h200, "int8", tf32=False) == {}
    mine = Peaks("mine", {"float32": 1e9}, 2e9, "a test")
    save_peaks(mine, tmp_path / "peaks.json")
    assert load_peaks(tmp_path / "peaks.json") == mine
    for text in ("", "[]", "{}", '{"device": 1, "flops": {"a": "x"}, "bandwidth": 1, "source": ""}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json: holds no peaks"):
            load_peaks(tmp_path / "bad.json")
    save_peaks(Peaks("mine", {"float32": 0}, 2e9, ""), tmp_path / "bad.json")
    with pytest.raises(ValueError, match="peaks must be above 0"):
        load_peaks(tmp_path / "bad.json")
