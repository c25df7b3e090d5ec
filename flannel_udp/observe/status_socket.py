"""The status over a unix socket: the daemon serves it, the command line reads it."""

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from flannel_udp.errors import StatusError
from flannel_udp.observe.readiness import Status
from flannel_udp.observe.server import BACKLOG, Answers, Server

log = logging.getLogger(__name__)

_TIMEOUT = 5.0  # seconds


def status_path(subnet_file: Path) -> Path:
    """The socket of the daemon that writes this subnet.env: ``/run/flannel/subnet.sock``."""
    return subnet_file.with_name(subnet_file.name.removesuffix(".env") + ".sock")


@contextlib.contextmanager
def serve_status(path: Path, status: Callable[[], Status]) -> Iterator[None]:
    """While entered, write one JSON object to every client that connects; root only.

    If it cannot listen it logs a warning: the daemon forwards without it too.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(path)
        server = Server("status socket", _Json(status), lambda: _listen(path), patient=False)
    except OSError as error:
        log.warning("status is not available at %s: %s", path, error.strerror or error)
        yield
        return
    with server:
        try:
            yield
        finally:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # the next daemon removes it, as after a crash
                log.warning("cannot remove %s: %s", path, error.strerror)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class _Json(Answers):
    """Sends the status to whoever connects."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def answer(self, _: bytes) -> bytes:
        return json.dumps(self._status()).encode() + b"\n"


def _remove_dead(path: Path) -> None:
    """Remove the socket that a killed daemon left, but not one that a daemon serves.

    A file that is not a socket stays too; connecting to it would be refused as well.
    """
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_TIMEOUT)
        try:
            channel.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass


def read_status(path: Path) -> Status:
    """The status of the daemon that serves ``path``. Raises OSError if none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_TIMEOUT)
        channel.connect(str(path))
        with channel.makefile("rb") as answer:
            line = answer.readline()
    if not line:
        raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    status: Status = json.loads(line)
    return status


def ask(subnet_file: Path) -> Status:
    """The status of the daemon that writes ``subnet_file``. Raises StatusError."""
    path = status_path(subnet_file)
    try:
        return read_status(path)
    except PermissionError:
        raise StatusError(f"cannot read {path}: only root may; try sudo") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise StatusError(
            f"no daemon runs here: nothing answers at {path}; start flannel-udp, or name the"
            " --subnet-file that it was given"
        ) from None
    except (OSError, ValueError) as error:
        raise StatusError(
            f"the daemon at {path} does not answer ({error}); look at its log"
        ) from None
