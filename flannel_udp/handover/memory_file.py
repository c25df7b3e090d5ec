"""A memory file that outlives the process, and whose content is replaced whole or not at all.

    magic | format | offset, length, CRC-32 of the content | ... content ...

New content is written beside the old; then one small write makes the header point to it. A process
killed at any moment leaves either the old content or the new.
"""

import errno
import os
import struct
import zlib
from typing import Self

from flannel_udp.errors import HandoverError

_MAGIC = b"flannel-udp-hand"
_FORMAT = 1  # raised when another version of the program could misread the content
_HEADER = struct.Struct("=16sIQQI")


class MemoryFile:
    """One writer. The descriptor is closed at ``__exit__``."""

    def __init__(self, descriptor: int) -> None:
        """Adopts an existing file; ``read`` checks its content."""
        self.descriptor = descriptor
        self._offset = self._end = _HEADER.size

    @classmethod
    def create(cls) -> Self:
        """A new, empty file. Raises OSError."""
        return cls(os.memfd_create("flannel-udp", os.MFD_CLOEXEC))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def write(self, content: bytes) -> None:
        """Replace the content. Raises OSError."""
        fits_before = self._offset - _HEADER.size >= len(content)
        offset = _HEADER.size if fits_before else self._end
        if os.pwrite(self.descriptor, content, offset) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        header = _HEADER.pack(_MAGIC, _FORMAT, offset, len(content), zlib.crc32(content))
        os.pwrite(self.descriptor, header, 0)
        self._offset, self._end = offset, offset + len(content)
        os.ftruncate(self.descriptor, self._end)

    def read(self) -> bytes:
        """The content. Raises HandoverError unless this program has written all of it."""
        try:
            header = os.pread(self.descriptor, _HEADER.size, 0)
            if len(header) < _HEADER.size:
                raise HandoverError(f"its state is cut short: {len(header)} bytes")
            magic, version, offset, length, checksum = _HEADER.unpack(header)
            if magic != _MAGIC:
                raise HandoverError("its state is not one that flannel-udp wrote")
            if version != _FORMAT:
                raise HandoverError(
                    f"its state has format {version}, and this version reads {_FORMAT}"
                )
            size = os.fstat(self.descriptor).st_size
            if offset + length > size:
                raise HandoverError(
                    f"its state is cut short: {size} of {offset + length} bytes are there"
                )
            content = os.pread(self.descriptor, length, offset)
        except OSError as error:
            raise HandoverError(f"its state cannot be read: {error.strerror}") from None
        if zlib.crc32(content) != checksum:
            raise HandoverError("its state is damaged: the checksum differs")
        self._offset, self._end = offset, offset + length
        return content
