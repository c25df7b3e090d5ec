"""Runs commands in a virtual machine through QEMU's guest agent: JSON lines over a serial port.

The protocol is in QEMU's "Guest Agent Protocol Reference".
"""

from __future__ import annotations

import base64
import itertools
import json
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

PORT = "org.qemu.guest_agent.0"  # the name of the serial port, for which Debian starts the agent
_ASK_AGAIN = 2.0  # seconds after which an unanswered greeting is sent again
_ANSWER_WITHIN = 30.0  # seconds
_POLL = 0.3  # seconds between two looks whether a command has ended
_MARK = b"\xff"  # no JSON text contains this byte
_ENVIRONMENT = (
    *("HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    "LANG=C.UTF-8",
)


class GuestAgent:
    """The agent behind the UNIX socket ``path``, on which QEMU listens."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._received = b""
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self._socket.close()

    def greet(self, within: float) -> None:
        """Returns when the agent answers; what it answered before is dropped. Raises OSError."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            number = next(self._numbers)
            self._send("guest-sync-delimited", {"id": number}, before=_MARK)
            with suppress(TimeoutError):
                while self._next_greeting() != number:
                    pass
                return
        raise TimeoutError(f"no guest agent answered within {within:g} s")

    def _next_greeting(self) -> Any:
        self._receive_until(_MARK, _ASK_AGAIN)
        return self._answer(_ASK_AGAIN)

    def run(self, command: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Runs a shell command as root. Raises OSError if it or the agent takes too long, or if the
        machine has been rebooted meanwhile."""
        pid = self.start(command)
        end = time.monotonic() + timeout
        while not (status := self._call("guest-exec-status", {"pid": pid}))["exited"]:
            if time.monotonic() > end:
                raise TimeoutError(f"{command} did not end within {timeout:g} s")
            time.sleep(_POLL)
        out, err = (
            base64.b64decode(status.get(name, "")).decode(errors="replace")
            for name in ("out-data", "err-data")
        )
        return subprocess.CompletedProcess(command, status.get("exitcode", -1), out, err)

    def start(self, command: str) -> int:
        """Returns the pid of the shell that runs the command."""
        arguments = {
            "path": "/bin/sh",
            "arg": ["-c", command],
            "env": _ENVIRONMENT,
            "capture-output": True,
        }
        return int(self._call("guest-exec", arguments)["pid"])

    def _call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        self._send(method, arguments)
        return self._answer(_ANSWER_WITHIN)

    def _send(self, method: str, arguments: Mapping[str, Any], before: bytes = b"") -> None:
        request = {"execute": method, "arguments": arguments}
        self._socket.sendall(before + json.dumps(request).encode() + b"\n")

    def _answer(self, timeout: float) -> Any:
        answer = json.loads(self._receive_until(b"\n", timeout))
        if "return" not in answer:
            raise ConnectionError(f"the guest agent answered {answer}")
        return answer["return"]

    def _receive_until(self, end: bytes, timeout: float) -> bytes:
        self._socket.settimeout(timeout)
        while end not in self._received:
            received = self._socket.recv(1 << 16)
            if not received:
                raise ConnectionError("QEMU has closed the connection to the guest agent")
            self._received += received
        found, _, self._received = self._received.partition(end)
        return found
