"""What a running daemon tells others: health and metrics over HTTP, status over a unix socket."""

from __future__ import annotations

import contextlib
import errno
import http.server
import json
import logging
import os
import select
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flannel_udp import __version__
from flannel_udp.errors import DeviceError
from flannel_udp.logs import DETAIL

log = logging.getLogger(__name__)

Status = dict[str, Any]

# Of the Accept header: the metrics in a format the asker reads, and the name of the format.
Exposition = Callable[[str], tuple[bytes, str]]


class Readiness:
    """Whether containers can rely on the overlay, and why not. Any thread may ask or tell."""

    def __init__(self) -> None:
        self._reason: str | None = "starting"
        self._fault: str | None = None
        self._remark: Callable[[], str | None] = lambda: None

    @property
    def remark(self) -> str | None:
        """What is worth knowing of a daemon that is ready all the same."""
        return self._remark()

    @property
    def reason(self) -> str | None:
        """Why the daemon is not ready; None when it is."""
        return self._reason or self._fault

    def not_ready(self, reason: str) -> bool:
        """From now until ``ready``; whether the reason is another one than before."""
        before, self._reason = self._reason, reason
        return before != reason

    def set_fault(self, fault: str | None) -> None:
        """What keeps a daemon that was ready from forwarding; None once nothing does."""
        self._fault = fault

    def ready(self, remark: Callable[[], str | None] = lambda: None) -> None:
        """``remark`` is asked whenever somebody asks us."""
        self._remark, self._reason = remark, None


class Board:
    """The status, for all who ask. A lock keeps the report alive while somebody reads it."""

    def __init__(self, readiness: Readiness) -> None:
        self.readiness = readiness
        self._lock = threading.Lock()
        self._report: Callable[[], Status] | None = None

    @contextlib.contextmanager
    def show(self, report: Callable[[], Status]) -> Iterator[None]:
        """Show what ``report`` tells, too."""
        self._set(report)
        try:
            yield
        finally:
            self._set(None)

    def read(self) -> Status:
        """Before and after ``show`` it holds ``version``, ``ready`` and ``reason`` alone."""
        with self._lock:
            more = self._report() if self._report else {}
        reason = self.readiness.reason
        return {"version": __version__, "ready": reason is None, "reason": reason} | more

    def _set(self, report: Callable[[], Status] | None) -> None:
        with self._lock:
            self._report = report


class _Quiet(socketserver.BaseServer):
    """Does not print a traceback for a client that went away, such as a probe that resets."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            log.debug("%s broke off: %s", client_address, error.strerror or error)
        else:
            log.exception("an answer failed")


@contextlib.contextmanager
def serve_health(
    address: str, port: int, readiness: Readiness, exposition: Exposition
) -> Iterator[int]:
    """/healthz and /readyz, in the words flannel uses, and /metrics; yields the port.

    Raises DeviceError.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 5  # seconds: a client that never finishes its request does not hold a thread

        def do_GET(self) -> None:
            if self.path == "/healthz":
                self._answer(200, "flanneld is running")
            elif self.path.partition("?")[0] == "/metrics":
                self._send(200, *exposition(self.headers.get("Accept", "")))
            elif self.path != "/readyz":
                self._answer(404, "see /healthz, /readyz and /metrics")
            elif (reason := readiness.reason) is None:
                remark = readiness.remark
                self._answer(200, "flanneld is ready" + (f"\n{remark}" if remark else ""))
            else:
                self._answer(503, f"flanneld is not ready yet\n{reason}")

        def _answer(self, code: int, text: str) -> None:
            self._send(code, text.encode(), "text/plain; charset=utf-8")

        def _send(self, code: int, body: bytes, content_type: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            log.log(DETAIL, "health: " + format, *args)

    class Server(_Quiet, http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        # HTTPServer's own asks DNS for this host's name, which may take half a minute.
        server_bind = socketserver.TCPServer.server_bind

    try:
        server = Server((address, port), Handler)
    except OSError as error:
        raise DeviceError(
            f"cannot serve health checks on {address} port {port}: {os.strerror(error.errno or 0)};"
            " choose another --healthz-ip or --healthz-port, or 0 for none"
        ) from None
    with _serving(server):
        yield server.server_address[1]


def status_path(subnet_file: Path) -> Path:
    """Where the daemon that writes this subnet.env answers: ``/run/flannel/subnet.sock``."""
    return subnet_file.with_name(subnet_file.name.removesuffix(".env") + ".sock")


@contextlib.contextmanager
def serve_status(path: Path, status: Callable[[], Status]) -> Iterator[None]:
    """One JSON object to everyone who connects; root only.

    Without it the daemon still forwards, so trouble with the path is a warning.
    """

    class Handler(socketserver.StreamRequestHandler):
        timeout = 5  # seconds

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the asker went away
                self.wfile.write(json.dumps(status()).encode() + b"\n")

    class Server(_Quiet, socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

        def server_bind(self) -> None:
            super().server_bind()
            path.chmod(0o600)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(path)
        server = Server(str(path), Handler)
    except OSError as error:
        log.warning("status is not available at %s: %s", path, error.strerror or error)
        yield
        return
    with _serving(server):
        try:
            yield
        finally:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # the next daemon removes it, as after a crash
                log.warning("cannot remove %s: %s", path, error.strerror)


def _remove_dead(path: Path) -> None:
    """Remove the socket that a killed daemon left; that of a live one stays in the way.

    So does a file that is no socket: it refuses the connection, too.
    """
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(5)
        try:
            channel.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass


def read_status(path: Path) -> Status:
    """What a running daemon answers. Raises OSError when none answers there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(5)
        channel.connect(str(path))
        with channel.makefile("rb") as answer:
            line = answer.readline()
    if not line:
        raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    status: Status = json.loads(line)
    return status


@contextlib.contextmanager
def _serving(server: socketserver.TCPServer) -> Iterator[None]:
    """Serve in a thread; unlike serve_forever it ends at once and does not poll in between."""
    stop_reader, stop_writer = os.pipe2(os.O_CLOEXEC)
    server.timeout = 0  # handle_request does not wait for a client that has gone again

    def serve() -> None:
        while stop_reader not in select.select((stop_reader, server.fileno()), (), ())[0]:
            server.handle_request()

    thread = threading.Thread(target=serve, name="admin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(stop_writer)
        thread.join()
        os.close(stop_reader)
        server.server_close()
