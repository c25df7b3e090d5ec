"""The lab's service manager: the parts of systemd that a daemon uses.

It receives sd_notify(3) and, if asked to, stores descriptors by name as systemd does: the store
outlives the process, and the next one gets them as sd_listen_fds(3) defines.
"""

import array
import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flannel_udp.threads import Service

_MOST_DESCRIPTORS = 8  # FileDescriptorStoreMax= of the packaged unit
_LOWEST_STORED = 32  # above the numbers that the shell of ``command`` gives the descriptors


class ServiceManager(Service):
    """Serves one daemon after another. Its thread handles notices as they arrive; a lock guards
    the notices and the store."""

    def __init__(self, path: Path, *, keeps_descriptors: bool) -> None:
        """``path`` becomes the notify socket. The thread starts at once and ends at ``close``."""
        super().__init__("service-manager", None)
        self.keeps_descriptors = keeps_descriptors
        self._stored: list[tuple[str, int]] = []  # name and descriptor, oldest first
        self._notices: list[str] = []
        self._arrived = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.start()

    def close(self) -> None:
        self.stop()
        self.join()
        self.drop_descriptors()
        os.close(self._arrived)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def wait_until_handled(self) -> None:
        """Wait until every notice sent so far was handled."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(str(self._path))
            socket.send_fds(sender, [b"BARRIER=1"], [writer])
        os.close(writer)
        os.read(reader, 1)  # returns when the thread has closed its copy of the writer
        os.close(reader)

    @property
    def stored(self) -> dict[str, int]:
        """The descriptors by name."""
        with self._lock:
            return dict(self._stored)

    def drop_descriptors(self) -> None:
        """Close all stored ones, as systemd does when a service is stopped for good."""
        with self._lock:
            for _, descriptor in self._stored:
                os.close(descriptor)
            self._stored.clear()

    def fileno(self) -> int:
        """Readable when a notice has arrived."""
        return self._arrived

    def receive(self) -> list[str]:
        """The notices since the last call: ``["READY=1", ...]``."""
        with self._lock, contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._arrived)
            notices, self._notices = self._notices, []
            return notices
        return []

    @property
    def environment(self) -> Mapping[str, str]:
        """What the daemon needs in its environment."""
        found = {"NOTIFY_SOCKET": str(self._path)}
        return found | {"FDSTORE": str(_MOST_DESCRIPTORS)} if self.keeps_descriptors else found

    def command(self, daemon: Sequence[str]) -> list[str]:
        """The command that runs ``daemon`` and gives it the descriptors of ``passed``.

        A shell moves them and sets LISTEN_PID, because it has the daemon's process id.
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
        while not self._stopping.is_set():
            text, control, *_ = self._socket.recvmsg(4096, socket.CMSG_SPACE(64))
            notices = text.decode().split("\n")
            descriptors = array.array("i")
            for *_, data in control:
                descriptors.frombytes(data)
            with self._lock:
                self._handle(dict(each.partition("=")[::2] for each in notices), descriptors)
                self._notices += notices
            os.eventfd_write(self._arrived, 1)

    def _wake(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", str(self._path))

    def _handle(self, notice: Mapping[str, str], descriptors: Iterable[int]) -> None:
        name = notice.get("FDNAME", "stored")
        if notice.get("FDSTOREREMOVE") == "1":
            for each in [each for each in self._stored if each[0] == name]:
                self._stored.remove(each)
                os.close(each[1])
        for descriptor in descriptors:
            room = self.keeps_descriptors and len(self._stored) < _MOST_DESCRIPTORS
            # With FDPOLL=1 systemd drops a descriptor at its first error.
            if room and notice.get("FDSTORE") == "1" and notice.get("FDPOLL") == "0":
                copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _LOWEST_STORED)
                self._stored.append((name, copy))
            os.close(descriptor)  # the sender of BARRIER=1 waits for this
