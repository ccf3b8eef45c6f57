"""A report's folder: only what a report wrote is written over or removed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import talkerviz
from sample_trace import sample_trace

from talkerviz.report.folder import MANIFEST, ReportFolder
from talkerviz.report.writer import write_report


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report."""
    folder = tmp_path_factory.mktemp("report")
    write_report(sample_trace(), folder)
    return folder


def test_a_report_over_a_report(tmp_path: Path) -> None:
    write_report(sample_trace(), tmp_path)
    earlier = ReportFolder(tmp_path)
    earlier.write_text("frames/frame-0007.js", "stale")
    for name in files(tmp_path):
        if name not in (MANIFEST, "frames/frame-0007.js"):
            earlier.write_bytes(name, (tmp_path / name).read_bytes())
    earlier.finish()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "frames" / "mine.js").write_text("mine")
    before = files(tmp_path)
    write_report(sample_trace(), tmp_path)
    after = files(tmp_path)
    assert set(before) - set(after) == {"frames/frame-0007.js"}
    assert after["notes.txt"] == after["frames/mine.js"] == b"mine"
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", MANIFEST], cwd=tmp_path, check=True)


@pytest.mark.parametrize("name", ["index.html", "trace.json", "flowchart.dot", "frames/frame-0000.js", "frames"])
@pytest.mark.parametrize("kind", ["changed", "link"])
def test_what_no_report_wrote_is_refused(name: str, kind: str, written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    shutil.copytree(written, folder)
    (tmp_path / "mine").write_text("mine")
    changed = folder / name
    changed.parent.mkdir(exist_ok=True)
    if kind == "link":
        changed.unlink(missing_ok=True)
        changed.symlink_to(tmp_path / "mine")
    else:
        changed.write_text("mine")
    before = files(folder)
    with pytest.raises(ValueError, match=f"{name}: (was changed since the report was written|is not from a report)"):
        write_report(sample_trace(), folder)
    assert files(folder) == before
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_of_something_else_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    Path("docs/index.html").write_text("mine")
    assert talkerviz(monkeypatch, "report", "missing.parquet", "-o", "docs") == 2
    assert capsys.readouterr().err == "talkerviz: docs: is not empty and holds no report; name another folder\n"
    Path("docs", MANIFEST).symlink_to("index.html")
    assert talkerviz(monkeypatch, "report", "missing.parquet", "-o", "docs") == 2
    assert Path("docs/index.html").read_text() == "mine"
    Path("empty").mkdir()
    Path("empty/.gitkeep").touch()
    sample_trace().save("t.parquet")
    assert talkerviz(monkeypatch, "report", "t.parquet", "-o", "empty") == 0
    assert Path("empty/.gitkeep").exists()


def test_a_report_that_was_broken_off_can_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    write_report(sample_trace(), tmp_path)
    monkeypatch.setattr("talkerviz.report.writer._write_calls", stop)
    with pytest.raises(KeyboardInterrupt):
        write_report(sample_trace(), tmp_path)
    monkeypatch.undo()
    assert write_report(sample_trace(), tmp_path) == []


def test_a_manifest_reaches_nothing_outside(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    shutil.copytree(written, folder)
    (tmp_path / "mine").write_text("")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with (folder / MANIFEST).open("a") as manifest:
        manifest.write(f"{empty}  ../mine\n{empty}  {tmp_path / 'mine'}\nnonsense\n")
    write_report(sample_trace(), folder)
    assert (tmp_path / "mine").exists()
