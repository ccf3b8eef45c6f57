"""For mkdocs: pages show pictures by their place in the repository, `../reports/...`, as GitHub does.

The site has copies. So none is kept twice, and `reports/make.sh` refreshes those of the guide too.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[1]
_KINDS = {".svg", ".png", ".html"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures, and the report's page."""
    for path in sorted((_ROOT / "reports").rglob("*")):
        if path.suffix in _KINDS:
            files.append(File.generated(config, path.relative_to(_ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Name them as the site has them, a folder less far up."""
    return re.sub(r"\]\(((?:\.\./)*)\.\./reports/", r"](\1reports/", markdown)
