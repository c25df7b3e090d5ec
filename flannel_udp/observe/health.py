"""The health port: /healthz, /readyz and /metrics over HTTP."""

import contextlib
import errno
import http.server
import io
import logging
import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from flannel_udp.errors import DeviceError
from flannel_udp.host import ports
from flannel_udp.logs import DETAIL
from flannel_udp.observe.readiness import Readiness
from flannel_udp.observe.server import BACKLOG, Answers, Server

log = logging.getLogger(__name__)

# Takes the Accept header; returns the metrics in a format that it names, and the content type.
Exposition = Callable[[str], tuple[bytes, str]]

_END_OF_HEADERS = re.compile(rb"\n\r?\n")


@contextlib.contextmanager
def serve_health(
    address: str, port: int, readiness: Readiness, exposition: Exposition, *, patient: bool = False
) -> Iterator[int]:
    """Answer while entered; yields the port. Raises DeviceError if it cannot listen; if ``patient``
    it logs that, tries again while entered, and yields 0."""
    listen = partial(_listen, address, port)
    with Server("health port", _HTTP(readiness, exposition), listen, patient=patient) as server:
        yield server.port


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        user = f" by {ports.listener(port)}" if error.errno == errno.EADDRINUSE else ""
        raise DeviceError(
            f"cannot serve health checks on {address} port {port}:"
            f" {error.strerror}{user}; choose another --healthz-ip or --healthz-port, or 0"
            " for none"
        ) from None
    return listener


class _HTTP(Answers):
    """One request a connection, as the probes of load balancers and Prometheus send it."""

    def __init__(self, readiness: Readiness, exposition: Exposition) -> None:
        self.readiness, self.exposition = readiness, exposition

    def is_complete(self, request: bytes) -> bool:
        return _END_OF_HEADERS.search(request) is not None

    def is_slow(self, request: bytes) -> bool:
        return b" /metrics" in request.partition(b"\n")[0]

    def answer(self, request: bytes) -> bytes:
        return _Handler(self, request).answer.getvalue()


class _Handler(http.server.BaseHTTPRequestHandler):
    """The texts of /healthz and the first lines of /readyz are flannel's."""

    def __init__(self, http: _HTTP, request: bytes) -> None:
        """Answers at once: the request is all there, and the answer is kept. There is no connection
        for the base class to set up."""
        self._http = http
        self.rfile, self.wfile = io.BytesIO(request), io.BytesIO()
        self.answer = self.wfile
        self.handle_one_request()

    def do_GET(self) -> None:
        readiness = self._http.readiness
        if self.path == "/healthz":
            self._answer(200, "flanneld is running")
        elif self.path.partition("?")[0] == "/metrics":
            self._send(200, *self._http.exposition(self.headers.get("Accept", "")))
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
