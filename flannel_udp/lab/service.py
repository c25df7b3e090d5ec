"""The lab's service manager: what a daemon meets of systemd, in readiness and descriptors.

It hears sd_notify(3) and, where it is asked to, keeps descriptors as systemd does: in a store that
outlives the process, by name, passed on as sd_listen_fds(3) says.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_MOST_DESCRIPTORS = 8  # FileDescriptorStoreMax= of the packaged unit
_END = "END"  # what the thread is told at the end
_ABOVE = 32  # descriptors go where they are in nobody's way until the daemon's shell moves them


class ServiceManager:
    """Serves one daemon after the other. Owns a thread, which obeys notices as they come; a lock
    guards what it has heard and stored."""

    def __init__(self, path: Path, *, keeps_descriptors: bool) -> None:
        """``path`` becomes the notify socket."""
        self.keeps_descriptors = keeps_descriptors
        self._stored: list[tuple[str, int]] = []  # name and descriptor, oldest first
        self._said: list[str] = []
        self._heard = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._serve, name="service-manager", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(_END.encode(), str(self._path))
        self._thread.join()
        self.drop_descriptors()
        os.close(self._heard)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def catch_up(self) -> None:
        """Returns when every notice sent so far was obeyed, as before a daemon is started."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.connect(str(self._path))
            socket.send_fds(last, [b"BARRIER=1"], [writer])
        os.close(writer)
        os.read(reader, 1)  # ends when the thread has closed its copy
        os.close(reader)

    @property
    def stored(self) -> dict[str, int]:
        """The descriptors by name."""
        with self._lock:
            return dict(self._stored)

    def drop_descriptors(self) -> None:
        """As systemd does when a service is stopped and not started again."""
        with self._lock:
            for _, descriptor in self._stored:
                os.close(descriptor)
            self._stored.clear()

    def fileno(self) -> int:
        """Readable when the daemon has said something."""
        return self._heard

    def receive(self) -> list[str]:
        """What it said since the last call: ``["READY=1", ...]``."""
        with self._lock, contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._heard)
            said, self._said = self._said, []
            return said
        return []

    @property
    def environment(self) -> Mapping[str, str]:
        """For the daemon."""
        found = {"NOTIFY_SOCKET": str(self._path)}
        return found | {"FDSTORE": str(_MOST_DESCRIPTORS)} if self.keeps_descriptors else found

    def command(self, daemon: Sequence[str]) -> list[str]:
        """What to run, with the descriptors of ``passed`` open, so that the daemon inherits them.

        A shell, because only the process itself knows its id in time, and where to move them.
        """
        if not self._stored:
            return list(daemon)
        moves = [f"{to}<&{at} {at}<&-" for to, (_, at) in enumerate(self._stored, start=3)]
        names = ":".join(name for name, _ in self._stored)
        script = (
            f"export LISTEN_PID=$$ LISTEN_FDS={len(moves)} LISTEN_FDNAMES={names};"
            f' exec "$@" {" ".join(moves)}'
        )
        return ["bash", "-c", script, "bash", *daemon]

    @property
    def passed(self) -> tuple[int, ...]:
        """The descriptors that the process of ``command`` needs open."""
        return tuple(descriptor for _, descriptor in self._stored)

    def _serve(self) -> None:
        while True:
            text, control, *_ = self._socket.recvmsg(4096, socket.CMSG_SPACE(64))
            said = text.decode().split("\n")
            if said == [_END]:
                return
            descriptors = array.array("i")
            for *_, data in control:
                descriptors.frombytes(data)
            with self._lock:
                self._obey(dict(each.partition("=")[::2] for each in said), descriptors)
                self._said += said
            os.eventfd_write(self._heard, 1)

    def _obey(self, notice: Mapping[str, str], descriptors: Iterable[int]) -> None:
        name = notice.get("FDNAME", "stored")
        if notice.get("FDSTOREREMOVE") == "1":
            for each in [each for each in self._stored if each[0] == name]:
                self._stored.remove(each)
                os.close(each[1])
        for descriptor in descriptors:
            room = self.keeps_descriptors and len(self._stored) < _MOST_DESCRIPTORS
            # With FDPOLL=1 systemd would drop it at the first error.
            if room and notice.get("FDSTORE") == "1" and notice.get("FDPOLL") == "0":
                copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
                self._stored.append((name, copy))
            os.close(descriptor)  # after BARRIER=1 the daemon waits for just this
