"""A pseudo-terminal that runs a program, and the text on its screen."""

from __future__ import annotations

import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from fcntl import ioctl
from typing import Any

import pyte

from flannel_udp.lab.etcd import child_environment


class Terminal:
    """Runs ``argv`` until it ends or ``close`` ends it."""

    def __init__(self, argv: Sequence[str], columns: int = 80, lines: int = 24) -> None:
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.screen = pyte.Screen(columns, lines)
        self.output = b""
        self._slave = slave
        self._stream = pyte.ByteStream(self.screen)
        environ = child_environment({"TERM": "xterm-256color"})
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, env=environ, process_group=0
        )

    def wait_for(self, shown: Callable[[str], object], what: str, seconds: float = 20) -> str:
        """The text of the screen as soon as ``shown`` is true of it."""
        end = time.monotonic() + seconds
        while not shown(text := "\n".join(self.screen.display)):
            assert time.monotonic() < end, f"{what} did not show:\n{text}"
            self._read(0.1)
        return text

    def finish(self) -> int:
        """Wait for the end and show all output on the screen; returns the exit code."""
        end = time.monotonic() + 20
        while self.process.poll() is None:  # it cannot end before its output is read
            assert time.monotonic() < end, "it does not end"
            self._read(0.1)
        while self._read(0):
            pass
        return self.process.returncode

    def after(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)

    def _read(self, seconds: float) -> bool:
        if not select.select((self.master,), (), (), seconds)[0]:
            return False
        data = os.read(self.master, 65536)
        self.output += data
        self._stream.feed(data)
        return True
