"""Chromium for tests that look at a page, and servers of pages."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# Only a page that never comes waits so long: a loaded machine needs a minute to start a server that imports torch.
PATIENCE_MS = 180_000
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no chromium or google-chrome")


@contextmanager
def running_browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def serving(
    command: Callable[[int], Sequence[str]], folder: Path, alive: str, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Return the address of a server, started by the command for a port, once its page `alive` is there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = folder / "server.log"
    with said.open("w") as log:
        server = subprocess.Popen(command(port), cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=env)
    try:
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{alive}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
