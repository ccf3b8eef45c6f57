"""Checksummed blocks of a file that grows while a run goes on.

A block is a head of 24 bytes, little endian, and a body of parts compressed with zstd:

| bytes | content |
| --- | --- |
| 4 | `TVB1` |
| 4 | size of the body |
| 4 | CRC-32 of the body |
| 8 | offset of the block in the file |
| 4 | CRC-32 of the 20 bytes before |

The body follows: the number of parts in 4 bytes, their sizes in 8 bytes each, and the compressed parts.

A write that was cut short leaves the beginning of a block, or zeros where the machine went down. Any other mismatch of
a checksum is later damage.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from talkerviz.trace.validation import DamagedError, decompress

MAGIC = b"TVB1"
_HEAD = struct.Struct("<4sIIQI")
_MAX_PARTS = 16  # a log has 3
# Bounds of decompressed blocks: the memory that a hostile file takes stays in proportion to its size.
_MIN_BUDGET_BYTES, _MAX_RATIO, _MAX_BLOCK_BYTES = 1 << 28, 1 << 11, 1 << 29
_ZEROS_CHUNK_BYTES = 1 << 16


def block(at: int, parts: Sequence[bytes]) -> bytes:
    """Encode the parts of a block whose offset in the file is `at`."""
    content = b"".join(parts)
    compressed = pa.compress(content, "zstd", asbytes=True) if content else b""
    body = struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts)) + compressed
    head = _HEAD.pack(MAGIC, len(body), zlib.crc32(body), at, 0)[:-4]
    return head + zlib.crc32(head).to_bytes(4, "little") + body


def read_blocks(source: Path | bytes, size: int | None = None) -> Iterator[list[bytes]]:
    """Yield the parts of each complete block.

    Args:
        source: a file, or its content.
        size: number of bytes to read; None for all.

    Raises:
        DamagedError: a block was damaged after it was written, or claims more content than it can hold.
    """
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        at, budget = 0, _MIN_BUDGET_BYTES
        while True:
            head = file.read(_HEAD.size)
            if size is not None and at + len(head) > size:
                return
            if len(head) < _HEAD.size:
                if head.rstrip(b"\0") and not _is_beginning(head, at):
                    raise _damaged(at)
                return
            magic, length, crc, begins, head_crc = _HEAD.unpack(head)
            if zlib.crc32(head[:-4]) != head_crc:
                if not head.rstrip(b"\0") and _only_zeros(file):
                    return
                raise _damaged(at)
            if magic != MAGIC or begins != at:
                raise _damaged(at)
            if size is not None and at + _HEAD.size + length > size:
                return
            body = file.read(length)
            if len(body) < length:
                return
            if zlib.crc32(body) != crc:
                # The machine went down, and the disk had the size of the file but not yet all of its bytes.
                if not body[-1:].rstrip(b"\0") and _only_zeros(file):
                    return
                raise _damaged(at)
            budget += _MAX_RATIO * len(body)
            parts = _parts(body, min(budget, _MAX_BLOCK_BYTES))
            budget -= sum(map(len, parts))
            yield parts
            at += _HEAD.size + length


def _damaged(at: int) -> DamagedError:
    if at == 0:
        return DamagedError("its first block is corrupt")
    return DamagedError(f"it is corrupt behind its first {at:,} bytes; recover those with head -c {at}")


def _is_beginning(head: bytes, at: int) -> bool:
    """Return whether an incomplete head fits a block at this offset."""
    return head[:4] == MAGIC[: len(head)] and head[12:20] == at.to_bytes(8, "little")[: len(head[12:20])]


def _only_zeros(file: BinaryIO) -> bool:
    return all(not chunk.rstrip(b"\0") for chunk in iter(lambda: file.read(_ZEROS_CHUNK_BYTES), b""))


def _parts(body: bytes, most: int) -> list[bytes]:
    count = int.from_bytes(body[:4], "little")
    begin = 4 + 8 * count
    if count > _MAX_PARTS or len(body) < begin:
        raise DamagedError("a block has a wrong number of parts")
    sizes = struct.unpack_from(f"<{count}Q", body, 4)
    content = decompress(body[begin:], sum(sizes), most, "its blocks")
    parts, at = [], 0
    for part in sizes:
        parts.append(content[at : at + part])
        at += part
    return parts
