"""The service manager: the daemon's state (sd_notify(3)), and descriptors that outlive it.

systemd keeps copies of descriptors for a service and passes them to its next process, however the
last one ended (https://systemd.io/FILE_DESCRIPTOR_STORE/). They arrive as in sd_listen_fds(3), and
a process passes them in the same way to a program that it executes in its own place.
"""

import contextlib
import fcntl
import logging
import os
import select
import socket
from collections.abc import Mapping, MutableMapping
from typing import NoReturn

log = logging.getLogger(__name__)

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_BARRIER_PATIENCE = 5.0  # seconds


def notify(*assignments: str, descriptor: int | None = None) -> None:
    """Send ``READY=1`` and the like to ``$NOTIFY_SOCKET``; does nothing without a manager.

    The message carries a copy of ``descriptor``.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    message = "\n".join(assignments).encode()
    log.debug("to the service manager: %s", ", ".join(assignments))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect(address)
            if descriptor is None:
                channel.send(message)
            else:
                socket.send_fds(channel, [message], [descriptor])
        except OSError as error:
            log.warning("cannot notify the service manager at %s: %s", path, error.strerror)


def keeps_descriptors() -> bool:
    """Whether the manager stores descriptors for us. The manager sets $FDSTORE, or the unit does
    where the manager is too old."""
    count = os.environ.get("FDSTORE", "")
    return bool(os.environ.get("NOTIFY_SOCKET")) and count.isdecimal() and int(count) > 0


def store_descriptor(name: str, descriptor: int) -> None:
    """Ask the manager to keep a copy for the next process, even after the descriptor reports an
    error (FDPOLL=0)."""
    notify("FDSTORE=1", "FDPOLL=0", f"FDNAME={name}", descriptor=descriptor)


def forget_descriptor(name: str) -> None:
    """Ask the manager to close its copies of this name; it does so a little later."""
    notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def wait_until_processed() -> None:
    """Return when the manager has processed all earlier notices, or after five seconds."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        notify("BARRIER=1", descriptor=writer)
        os.close(writer)
        poll = select.poll()
        poll.register(reader, 0)  # POLLHUP: the manager has closed its copy
        if not poll.poll(_BARRIER_PATIENCE * 1000):
            log.warning("the service manager does not answer")
    finally:
        os.close(reader)


def inherited_descriptors(
    environ: MutableMapping[str, str] = os.environ, pid: int | None = None
) -> dict[str, int]:
    """The descriptors passed to this process, by name; removes the variables that announce them.

    Child processes do not inherit them. Of several with one name the last is returned, and the
    others are closed.
    """
    values = {name: environ.pop(name, "") for name in _LISTEN}
    count = values["LISTEN_FDS"]
    if values["LISTEN_PID"] != str(pid or os.getpid()) or not count.isdecimal():
        return {}
    found: dict[str, int] = {}
    names = values["LISTEN_FDNAMES"].split(":")
    for number, descriptor in enumerate(range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count))):
        try:
            os.set_inheritable(descriptor, False)
        except OSError:
            continue  # it is not open, although the variables announce it
        name = names[number] if number < len(names) else "unknown"
        if name in found:
            os.close(found[name])
        found[name] = descriptor
    return found


def execute(program: str, arguments: list[str], descriptors: Mapping[str, int]) -> NoReturn:
    """Become another program that inherits these descriptors. Raises OSError."""
    environ = {name: value for name, value in os.environ.items() if name not in _LISTEN}
    if descriptors:
        environ["LISTEN_PID"] = str(os.getpid())
        environ["LISTEN_FDS"] = str(len(descriptors))
        environ["LISTEN_FDNAMES"] = ":".join(descriptors)
    above = _FIRST_DESCRIPTOR + len(descriptors)
    # Copied above all targets first, so that no target overwrites a source.
    copies = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, above) for each in descriptors.values()]
    for target, copy in enumerate(copies, _FIRST_DESCRIPTOR):
        os.dup2(copy, target, inheritable=True)
    try:
        os.execve(program, arguments, environ)
    finally:
        for copy in copies:
            with contextlib.suppress(OSError):
                os.close(copy)
