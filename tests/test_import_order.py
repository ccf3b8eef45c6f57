"""The order of imports: data flows one way, and no module imports itself by way of others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "talkerviz"

LEAVES = frozenset({"version", "atomic_file", "progress", "user_errors"})
"""Modules that import nothing of talkerviz, and that any layer but `talker` may import."""

LAYERS = {
    "talker": frozenset({"version", "atomic_file", "progress"}),
    "trace": LEAVES,
    "recorder": LEAVES | {"trace"},
    "targets": LEAVES | {"trace", "recorder", "talker"},
    "analysis": LEAVES | {"trace"},
    "flowchart": LEAVES | {"trace"},
    "render": LEAVES | {"trace", "analysis", "flowchart"},
    "report": LEAVES | {"trace", "analysis", "flowchart", "render"},
    "notebook": LEAVES | {"trace", "recorder", "analysis", "flowchart", "render", "report"},
}
"""Layer -> what it may import: targets -> recorder -> trace -> analysis, flowchart -> render -> report, notebook."""

ABOVE_API = frozenset(
    {"talkerviz", "talkerviz.pytest_support", "talkerviz.notebook.magics", "talkerviz.notebook.find_models"}
)
"""Modules beside the command line that may import `talkerviz.api`, which is above all layers."""


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported_names(path: Path) -> Iterator[str]:
    """Yield each name that a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports_of(module: str) -> set[str]:
    """Return the modules of the package that one of them imports."""
    found = {
        name if name in MODULES else name.rpartition(".")[0]
        for name in imported_names(MODULES[module])
        if name.partition(".")[0] == "talkerviz"
    }
    return (found & MODULES.keys()) - {module}


def part_of(module: str) -> str:
    """Return the layer or top-level module that a module is in; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


GRAPH = {module: imports_of(module) for module in MODULES}


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the sets of two or more modules that all import each other, directly or by way of others."""
    reachable = {module: set(imports) for module, imports in graph.items()}
    grown = True
    while grown:
        grown = False
        for modules in reachable.values():
            further = set().union(*(reachable[module] for module in modules)) - modules
            modules |= further
            grown |= bool(further)
    return {
        frozenset(other for other in modules if module in reachable[other])
        for module, modules in reachable.items()
        if module in modules
    }


def test_every_file_is_in_a_layer_or_named_here() -> None:
    above = {"", "__main__", "api", "cli", "doctor", "pytest_support"}
    assert {part_of(module) for module in MODULES} == LAYERS.keys() | LEAVES | above


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_layers_before_it(layer: str) -> None:
    allowed = LAYERS[layer] | {layer}
    against = {
        f"{module} -> {imported}"
        for module, imports in GRAPH.items()
        for imported in imports
        if part_of(module) == layer and part_of(imported) not in allowed and module not in ABOVE_API
    }
    assert not against


def test_leaves_import_nothing_of_the_package() -> None:
    assert not {leaf for leaf in LEAVES if GRAPH[f"talkerviz.{leaf}"]}


def test_nothing_below_the_public_surface_imports_it() -> None:
    importing = {module for module, imports in GRAPH.items() if imports & {"talkerviz", "talkerviz.api"}}
    assert {module for module in importing if part_of(module) != "cli"} <= ABOVE_API


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(GRAPH) == set()


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "e"}, "e": {"f"}, "f": {"d"}}
    assert circles(graph) == {frozenset({"b", "c"}), frozenset({"d", "e", "f"})}
