"""The content is whole whenever the writer dies, and garbage is told apart."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.errors import HandoverError
from flannel_udp.handover.memory_file import MemoryFile


@pytest.fixture
def memory() -> Iterator[MemoryFile]:
    with MemoryFile.create() as memory:
        yield memory


@given(st.lists(st.binary(max_size=200), min_size=1))
def test_the_last_content_is_read_by_another_process(contents: list[bytes]) -> None:
    with MemoryFile.create() as memory:
        for content in contents:
            memory.write(content)
        with MemoryFile(os.dup(memory.descriptor)) as other:
            assert other.read() == contents[-1]
            other.write(b"next")
            assert other.read() == b"next"


@pytest.mark.parametrize("size", [1, 1000, 3000])
def test_a_writer_that_dies_leaves_the_old_content(
    size: int, memory: MemoryFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it had written of the new one, up to the header that makes it count."""
    old = b"o" * 1000
    memory.write(b"x" * 500)
    memory.write(old)
    written = 0
    pwrite = os.pwrite

    def die_before_the_header(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal written
        if offset == 0:
            raise KeyboardInterrupt
        written += pwrite(descriptor, data, offset)
        return len(data)

    monkeypatch.setattr(os, "pwrite", die_before_the_header)
    with pytest.raises(KeyboardInterrupt):
        memory.write(b"n" * size)
    assert written == size
    with MemoryFile(os.dup(memory.descriptor)) as other:
        assert other.read() == old


def test_it_does_not_grow_with_every_write(memory: MemoryFile) -> None:
    for _ in range(100):
        memory.write(b"x" * 10_000)
    assert os.fstat(memory.descriptor).st_size < 30_000


@pytest.mark.parametrize(
    ("offset", "data", "sentence"),
    [
        (0, b"other", "not one that flannel-udp wrote"),
        (16, b"\x02", "has format 2, and this version reads 1"),
        (20, b"\xff\xff\xff", "cut short"),
        (60, b"x", "the checksum differs"),
    ],
)
def test_garbage_is_refused_with_a_clause(
    offset: int, data: bytes, sentence: str, memory: MemoryFile
) -> None:
    memory.write(b"c" * 100)
    os.pwrite(memory.descriptor, data, offset)
    with pytest.raises(HandoverError, match=sentence):
        memory.read()


@pytest.mark.parametrize("size", [0, 10, 50, 100])
def test_a_file_cut_short_is_refused(size: int, memory: MemoryFile) -> None:
    memory.write(b"c" * 100)
    os.ftruncate(memory.descriptor, size)
    with pytest.raises(HandoverError, match="cut short"):
        memory.read()


def test_what_is_no_file_is_refused(memory: MemoryFile) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with MemoryFile(reader) as other, pytest.raises(HandoverError, match="cannot be read"):
        other.read()
