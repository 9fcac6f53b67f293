"""The bytes of a raw file, unpacked block by block; of a damaged archive, those that can be trusted.

An archive that was cut is right up to the cut. In one whose bytes were changed nobody can tell where: wrong letters
come out long before a checksum tells. There only the members before the change count, whose checksums were right.
(A change that makes an archive look as if it were cut cannot be told from a cut.)

Packing is told by a file's first bytes, not by its name: some tools unpack on the way and keep the name.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import fsspec
import zstandard
from isal import isal_zlib

BLOCK_BYTES = 16 * 2**20  # unpacked bytes at a time
HELD_BLOCKS = 4  # an archive is unpacked once if it is no longer than these, else twice
PACKED_BYTES = 8 * 2**10  # packed bytes at a time; zstd can blow them up 30,000 times
GZIP, ZSTD, ZSTD_SKIPPED = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # bytes that no text holds

UNPACKING_ERRORS: Any = (isal_zlib.error, zstandard.ZstdError)  # isal's stubs tell an instance where a class is
Decompressor = Any
"""An object with `decompress`, `eof` and `unused_data`."""


@dataclass(frozen=True)
class Damage:
    """What is wrong with an archive, and how many of its unpacked bytes can be trusted."""

    error: str
    num_bytes: int


class DamagedArchive(Exception):
    """Raised inside this module where unpacking must stop."""

    def __init__(self, error: str, num_bytes: int) -> None:
        super().__init__(error)
        self.damage = Damage(error, num_bytes)


class RawFile:
    """A file's unpacked bytes in blocks, each as long as BLOCK_BYTES but the last; and its damage, if it has any.

    An archive is unpacked to its end before a byte of it is given out. Raises OSError where a file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.damage: Damage | None = None
        self._held: list[bytes] = []
        self._is_held = False
        if packing(path) is not None:
            self._unpack_all()

    def _unpack_all(self) -> None:
        num_blocks = 0
        try:
            for block in unpacked_blocks(self.path):
                num_blocks += 1
                if num_blocks <= HELD_BLOCKS:
                    self._held.append(block)
        except DamagedArchive as error:
            self.damage = error.damage
        self._is_held = num_blocks <= HELD_BLOCKS
        if not self._is_held:
            self._held.clear()

    def blocks(self) -> Iterator[bytes]:
        """The unpacked bytes that can be trusted."""
        blocks = iter(self._held) if self._is_held else unpacked_blocks(self.path)
        return blocks if self.damage is None else first_bytes(blocks, self.damage.num_bytes)

    def text_blocks(self) -> Iterator[bytes]:
        """The same as text (see `as_text`)."""
        return as_text(self.blocks())


def as_text(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Blocks as UTF-8 with \\n between lines, without a byte order mark; UTF-16 is told by its mark."""
    first = next(blocks, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        blocks = from_utf16(first, blocks)
        first = next(blocks)
    first = first.removeprefix(codecs.BOM_UTF8)
    if b"\r" in first and b"\n" not in first:  # lines of an old Macintosh
        first, blocks = first.replace(b"\r", b"\n"), (block.replace(b"\r", b"\n") for block in blocks)
    yield first
    yield from blocks


def from_utf16(first: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Blocks of UTF-16 as UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-16")("replace")
    yield decoder.decode(first).encode()
    yield from (decoder.decode(block).encode() for block in blocks)
    yield decoder.decode(b"", final=True).encode()


def first_lines(path: str, num_lines: int) -> bytes:
    """The first lines of a text that are not blank; of a damaged archive no half ones. Reads no further than needed."""
    text = b""
    try:
        for block in as_text(unpacked_blocks(path)):
            text = (text + block).lstrip(b"\r\n")
            if text.count(b"\n") >= num_lines or len(text) > HELD_BLOCKS * BLOCK_BYTES:
                break
    except DamagedArchive:
        text = text[: text.rfind(b"\n") + 1]
    return b"\n".join(text.split(b"\n", num_lines)[:num_lines])


def packing(path: str) -> Callable[[], Decompressor] | None:
    """How to unpack a file, told by its first bytes; None for a plain one."""
    with fsspec.open(path, "rb") as file:
        head: bytes = file.read(4096)
    if head.startswith(GZIP):
        return partial(isal_zlib.decompressobj, isal_zlib.MAX_WBITS | 16)
    if head.startswith(ZSTD) or head[1:4] == ZSTD_SKIPPED:
        return zstandard.ZstdDecompressor().decompressobj
    named = next((name for ending, name in ((".gz", "gzip"), (".zst", "zstd")) if path.lower().endswith(ending)), None)
    return partial(refuse, f"it is no {named} archive") if named and head and not is_text(head) else None


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file that says it is packed are text all the same."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return len(head) >= len(ZSTD) and not CONTROL.search(head)


def refuse(error: str) -> Decompressor:
    """Stands for the unpacker of a file that says it is packed and is not."""
    raise DamagedArchive(error, 0)


def unpacked_blocks(path: str) -> Iterator[bytes]:
    """Unpacked bytes in blocks of one size; ends with DamagedArchive after the last byte that came out."""
    new_unpacker = packing(path)
    with fsspec.open(path, "rb") as file:
        if new_unpacker is None:
            yield from iter(lambda: file.read(BLOCK_BYTES), b"")
            return
        yield from in_blocks(unpacked_pieces(file, new_unpacker))


def in_blocks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces of any size, joined to blocks of BLOCK_BYTES; what came before an error is given out before it."""
    waiting = bytearray()
    try:
        for piece in pieces:
            waiting += piece
            while len(waiting) >= BLOCK_BYTES:
                yield bytes(waiting[:BLOCK_BYTES])
                del waiting[:BLOCK_BYTES]
    except DamagedArchive:
        yield bytes(waiting)
        raise
    if waiting:
        yield bytes(waiting)


def unpacked_pieces(file: BinaryIO, new_unpacker: Callable[[], Decompressor]) -> Iterator[bytes]:
    """What comes out of an archive of one or more members; zeros after a member are padding."""
    unpacker: Decompressor | None = None
    num_bytes = num_trusted = 0
    for packed in iter(lambda: file.read(PACKED_BYTES), b""):
        while packed and (unpacker is not None or packed.strip(b"\0")):
            try:
                unpacker = new_unpacker() if unpacker is None else unpacker
                piece = unpacker.decompress(packed)
            except UNPACKING_ERRORS as error:
                raise DamagedArchive(f"its bytes were changed: {error}", num_trusted) from error
            num_bytes += len(piece)
            yield piece
            packed = b""
            if unpacker.eof:
                packed, unpacker, num_trusted = unpacker.unused_data, None, num_bytes
    if unpacker is not None:
        raise DamagedArchive("it was cut: the archive has no end", num_bytes)


def first_bytes(blocks: Iterator[bytes], num_bytes: int) -> Iterator[bytes]:
    """Blocks up to a number of bytes; what follows is not asked for."""
    while num_bytes > 0:
        block = next(blocks)
        yield block[:num_bytes]
        num_bytes -= len(block)
