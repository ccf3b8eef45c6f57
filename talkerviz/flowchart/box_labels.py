"""Labels of boxes: name, shapes, repetitions, times and details of their rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from talkerviz.flowchart.call_arrays import NUMBER, CallArrays, find_rows, ranges, with_numbers
from talkerviz.flowchart.folding import Fold
from talkerviz.flowchart.kv_cache import is_cached
from talkerviz.flowchart.model import Box
from talkerviz.flowchart.similarity import SimilarityHashes
from talkerviz.trace.schema import Tensors

# Limits of a label: a box of 60 characters is a third of a page wide, and a tooltip of 12 lines fits a small window.
_MAX_NAMES = 5
_MAX_LABEL_CHARS = 60
_MAX_DETAIL_LINES = 12
_ATTENTION = re.compile("scaled_dot_product")


def label_box(rows: CallArrays, hashes: SimilarityHashes, fold: Fold, name: str) -> Box:
    """Build the box of a fold, with the id `name`; its share is of the time of all calls in the trace."""
    if fold.kind == "phase":
        return _phase_box(rows, fold, name)
    calls = fold.rows[fold.rows < rows.calls]
    if fold.kind == "repeat":
        return _timed(rows, calls, Box(name, "repeat", "", repeats=_times(fold), calls=len(calls)))
    if fold.kind == "more":
        return _timed(rows, calls, Box(name, "more", f"{len(fold.rows):,} more", calls=len(calls)))
    if fold.kind in ("operation", "input"):
        return _operations_box(rows, fold, name)
    table = rows.trace.calls
    paths = [str(path) for path in table["path"].cat.categories[np.unique(rows.path[calls])]]
    first = calls[0]
    errors = table["error"].iloc[calls].dropna()
    signatures = np.unique(rows.signature[calls], return_index=True)
    lists = [rows.lists[number] for number in signatures[0][np.argsort(signatures[1])]]
    differs = ["the calls differ inside"] if len(np.unique(hashes.exact[calls])) > 1 else []
    box = Box(
        id=name,
        kind="module",
        name=with_numbers(rows.names[rows.name[first]], paths),
        path=with_numbers(NUMBER.sub("#", paths[0]), paths),
        class_name=str(table["class"].iloc[first]),
        shapes=_in_and_out([inputs for inputs, _ in lists], [outputs for _, outputs in lists]),
        repeats=_repeats(rows, fold),
        modules=len(paths),
        calls=len(calls),
        details=(*differs, *_details(lists)),
        error=str(errors.iloc[0]) if len(errors) else None,
    )
    return _timed(rows, calls, box)


def is_result(rows: CallArrays, fold: Fold) -> bool:
    """Return whether operations are drawn although nothing reads their results.

    Inside a module these are the results that it returns; outside of modules all results but booleans, which a program
    computes for its control flow.
    """
    flow = rows.trace.flow
    if fold.kind != "operation" or flow is None:
        return False
    if rows.parent[fold.rows[0]] < rows.calls:
        return bool(flow.ops["returned"].to_numpy()[fold.rows - rows.calls].any())
    outputs = rows.lists[rows.signature[fold.rows[-1]]][1]
    return any(tensor.dtype != "bool" for tensor in outputs)


def _phase_box(rows: CallArrays, fold: Fold, name: str) -> Box:
    of_phase = [rows.phases[row - rows.first_phase] for row in fold.rows]
    frames = sorted(frame for _, frame in of_phase if frame is not None)
    child, _ = rows.children_of(fold.rows)
    calls = child[child < rows.calls]
    texts = [f"{len(frames)} frames" if len(frames) > 1 else f"frame {frames[0]}"] if frames else []
    if grown := _attended(rows, fold):
        texts.append(f"cache {grown}")
    details = (f"frames {_range(frames[0], frames[-1])}",) if len(frames) > 1 else ()
    box = Box(name, "phase", of_phase[0][0], repeats=" · ".join(texts), calls=len(calls), details=details)
    return _timed(rows, calls, box)


def _attended(rows: CallArrays, fold: Fold) -> str:
    """Return the least and greatest number of positions that attention attends to in a phase; empty if constant."""
    lengths = _key_lengths(rows, fold)
    grown = _grown_sizes(rows, fold) if lengths is None else lengths
    return _range(min(grown), max(grown)) if grown else ""


def _key_lengths(rows: CallArrays, fold: Fold) -> set[int] | None:
    """Return the lengths of growing attention keys; None without attention. Cross-attention does not grow."""
    if rows.trace.flow is None:
        return None
    ops = rows.trace.flow.ops
    ops = ops[ops["name"].isin([name for name in ops["name"].unique() if _ATTENTION.search(str(name))])]
    call = find_rows(rows.trace.calls["call"].to_numpy(), ops["call"].to_numpy())
    inside = (call >= 0) & np.isin(rows.phase[call], fold.rows)
    if not inside.any():
        return None
    lengths: dict[tuple[int, int], list[int]] = {}
    before: Counter[int] = Counter()  # a module may have several attentions
    for row, inputs in zip(call[inside].tolist(), ops["inputs"][inside], strict=True):
        before[row] += 1
        if len(inputs) > 1 and len(inputs[1].shape) > 1:
            lengths.setdefault((int(rows.path[row]), before[row]), []).append(inputs[1].shape[-2])
    return {length for of_place in lengths.values() if of_place[-1] > of_place[0] for length in of_place}


def _grown_sizes(rows: CallArrays, fold: Fold) -> set[int]:
    """Return the sizes of call tensors that grow from frame to frame; of caches those after the call."""
    child, _ = rows.children_of(fold.rows)
    calls = child[child < rows.calls]
    sizes: set[int] = set()
    for loose in np.unique(rows.loose[calls]):
        shapes: dict[str, list[tuple[int, ...]]] = {}
        for number in np.unique(rows.signature[calls[rows.loose[calls] == loose]]):  # in the order of the run
            inputs, outputs = rows.lists[number]
            tensors = [tensor for tensor in inputs if not is_cached(tensor.name)]
            tensors += [tensor for tensor in outputs if is_cached(tensor.name)]
            for tensor in tensors:
                shapes.setdefault(tensor.name, []).append(tensor.shape)
        for of_tensor in shapes.values():
            if len({len(shape) for shape in of_tensor}) == 1:
                sizes |= {size for axis in zip(*of_tensor, strict=True) if axis[-1] > axis[0] for size in axis}
    return sizes


def _operations_box(rows: CallArrays, fold: Fold, name: str) -> Box:
    parent = rows.parent[fold.rows]
    changes = np.flatnonzero(np.diff(parent)) + 1
    first, last = fold.rows[np.concatenate([[0], changes])], fold.rows[np.concatenate([changes - 1, [len(parent) - 1]])]
    # A run may stop before the operation that the others end with.
    last = last[rows.name[last] == np.bincount(rows.name[last]).argmax()]
    _, named_first = np.unique(rows.name[fold.rows], return_index=True)
    texts = [rows.names[rows.name[fold.rows[index]]].strip().partition(" ")[2] for index in sorted(named_first)]
    of_input = fold.kind == "input"
    outputs = [rows.lists[number][1] for number in np.unique(rows.signature[fold.rows if of_input else last])]
    inputs = [rows.lists[number][0] for number in np.unique(rows.signature[first])]
    several = int(np.unique(parent, return_counts=True)[1].max())
    shown = [f"{several:,} inputs"] if of_input and several > fold.each[1] else _first_names(texts)
    return Box(
        name,
        "input" if of_input else "operation",
        " · ".join(shown),
        shapes=_shapes(outputs) if of_input else _in_and_out(inputs, outputs),
        repeats=_repeats(rows, fold) if len(texts) == 1 or fold.each == (0, 1) else "",
        calls=len(fold.rows),
        details=(", ".join(texts),) if len(texts) > len(shown) else (),
    )


def _first_names(names: list[str]) -> list[str]:
    """Return as many names as fit, and the number of others."""
    room = next((count for count in range(len(names), 1, -1) if len(" · ".join(names[:count])) <= _MAX_LABEL_CHARS), 1)
    shown = names[: min(room, _MAX_NAMES if len(names) <= _MAX_NAMES else _MAX_NAMES - 1)]
    return [*shown, f"… {len(names) - len(shown)} more"] if len(shown) < len(names) else shown


def _repeats(rows: CallArrays, fold: Fold) -> str:
    """Format the number of repetitions; of a phase's children the frames that they are in, if not all.

    An input is in the frames that read it.
    """
    above = rows.parent[fold.rows]
    if fold.each != (0, 1) or above[0] < rows.first_phase:
        return _times(fold)
    phase = rows.phases[above[0] - rows.first_phase][0]
    all_frames = {frame for name, frame in rows.phases if name == phase and frame is not None}
    frames = {frame for row in above if (frame := rows.phases[row - rows.first_phase][1]) is not None}
    if fold.kind == "input":  # it is recorded only where it was first read
        frames = all_frames & set(rows.frame[rows.readers_of(fold.rows)].tolist())
    if not frames or frames == all_frames:
        return ""
    return f"frame{'s' if len(frames) > 1 else ''} {ranges(frames).replace('-', '–')}"


def _times(fold: Fold) -> str:
    return "" if fold.each == (1, 1) else f"{_range(*fold.each)}×"


def _timed(rows: CallArrays, calls: np.ndarray, box: Box) -> Box:
    total, own = rows.host_ns[calls].sum(), rows.self_ns[calls].sum()
    if not len(calls) or np.isnan(total):
        return box
    share = float(total / rows.whole_ns) if rows.whole_ns > 0 else None
    return replace(box, total_ns=int(total), self_ns=int(own), share=share)


def _in_and_out(inputs: Sequence[Tensors], outputs: Sequence[Tensors]) -> str:
    before, after = _shapes(inputs), _shapes(outputs)
    return f"{before} → {after}".strip() if before or after else ""


def _shapes(lists: Sequence[Tensors]) -> str:
    """Format the shapes of the first tensors: `1x21–27x128` if only sizes differ."""
    shapes = list(dict.fromkeys(tensors[0].shape for tensors in lists if tensors))
    if not shapes:
        return ""
    if len({len(shape) for shape in shapes}) > 1:
        return f"{'x'.join(map(str, shapes[0])) or 'scalar'} (+{len(shapes) - 1})"
    return "x".join(_range(min(sizes), max(sizes)) for sizes in zip(*shapes, strict=True)) or "scalar"


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


def _details(lists: Sequence[tuple[Tensors, Tensors]]) -> tuple[str, ...]:
    """Format a line for each input and output tensor, if all calls have the same tensors."""
    shown: list[tuple[str, list[Tensors], int]] = []
    for direction, of_calls in (("in", [inputs for inputs, _ in lists]), ("out", [outputs for _, outputs in lists])):
        of_calls = list({id(tensors): tensors for tensors in of_calls}.values())
        if len({tuple([tensor.name for tensor in tensors]) for tensors in of_calls}) == 1:
            shown += [(direction, of_calls, index) for index in range(len(of_calls[0]))]
    further = len(shown) - _MAX_DETAIL_LINES + 1 if len(shown) > _MAX_DETAIL_LINES else 0
    lines = []
    for direction, of_calls, index in shown[: len(shown) - further]:
        first = of_calls[0][index]
        sizes = _shapes([tensors[index : index + 1] for tensors in of_calls])
        several = f"{first.copies:,} of " if first.copies > 1 else ""
        lines.append(f"{direction} {first.name}: {several}{sizes} {first.dtype}")
    return (*lines, f"… {further} more") if further else tuple(lines)
