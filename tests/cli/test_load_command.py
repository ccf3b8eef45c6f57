"""`talkerviz load`: tables, limits and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import talkerviz

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def test_tables_of_several_numbers_of_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    out = tmp_path / "load.md"
    asked = ("load", "--preset", "tiny", "--streams", "2,1", "--frames", "4", "--requests", "2")
    assert talkerviz(monkeypatch, *asked, "--fail-ttfa", "900s", "--fail-rtf", "1e-9", "-o", out) == 0
    printed = capsys.readouterr().out.splitlines()
    for heading in ("first audio p95", "real time p99", "stalls", "in time", "as alone"):
        assert heading in printed[0]
    for heading in ("setup", "prefill", "first chunk", "code2wav"):
        assert heading in printed[3]
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["streams", "---:", "1", "2", "streams", "---:", "1", "2"]
    assert [row[-1] for row in rows[2:4]] == ["yes", "yes"]
    assert out.read_text().startswith("tiny, float32, ")


def test_limits_that_are_not_kept(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    asked = ("load", "--preset", "tiny", "--streams", "1", "--frames", "2", "--requests", "1")
    assert talkerviz(monkeypatch, *asked, "--fail-ttfa", "0ms", "--fail-rtf", "1e9") == 1
    late, slow = capsys.readouterr().err.splitlines()
    assert late.startswith("talkerviz: 1 at once: first audio p95 ")
    assert late.endswith("above --fail-ttfa 0ms")
    assert slow.startswith("talkerviz: 1 at once: real time p95 ")
    assert slow.endswith("below --fail-rtf 1e+09")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--streams", "0"), "--streams 0: give numbers from 1 to 1024, such as 1,4,16"),
        (("--streams", "2,x"), "--streams 2,x: give numbers"),
        (("--streams", "99999"), "--streams 99999: give numbers"),
        (("--interval", "5"), "--interval 5: give a time such as 300ms or 1.5s"),
        (("--fail-ttfa", "soon"), "--fail-ttfa soon: give a time such as 300ms or 1.5s"),
        (("--fail-rtf", "nan"), "must be above 0 and finite, not nan"),
        (("--device", "meta"), "--device meta: it computes no values; use cpu or cuda"),
        (("--checkpoint", "x"), "--preset: --checkpoint says which weights they are; give one of them"),
        (("--speaker", "bob"), "unknown speaker 'bob'"),
        (("--frames", "70000"), "positions: the talker has 65536"),
    ],
)
def test_what_cannot_be_measured(
    args: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert talkerviz(monkeypatch, "load", "--preset", "tiny", *args) == 2
    assert says in capsys.readouterr().err
