"""The health server: /healthz, /readyz and /metrics over HTTP."""

import contextlib
import http.server
import logging
import os
import socket
import socketserver
from collections.abc import Callable, Iterator
from typing import Any

from flannel_udp.errors import DeviceError
from flannel_udp.logs import DETAIL
from flannel_udp.observe.readiness import Readiness
from flannel_udp.observe.server import QuietServer, ServerThread

log = logging.getLogger(__name__)

# Takes the Accept header; returns the metrics in a format that it names, and the content type.
Exposition = Callable[[str], tuple[bytes, str]]


@contextlib.contextmanager
def serve_health(
    address: str, port: int, readiness: Readiness, exposition: Exposition
) -> Iterator[int]:
    """Answer while entered; yields the port. Raises DeviceError if it cannot listen."""
    try:
        server = _Server(address, port, readiness, exposition)
    except OSError as error:
        raise DeviceError(
            f"cannot serve health checks on {address} port {port}: {os.strerror(error.errno or 0)};"
            " choose another --healthz-ip or --healthz-port, or 0 for none"
        ) from None
    with ServerThread(server, "health"):
        yield server.server_address[1]


class _Server(QuietServer, http.server.ThreadingHTTPServer):
    # HTTPServer's own server_bind asks DNS for this host's name, which may take half a minute.
    server_bind = socketserver.TCPServer.server_bind

    def __init__(
        self, address: str, port: int, readiness: Readiness, exposition: Exposition
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.readiness, self.exposition = readiness, exposition
        super().__init__((address, port), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    """The texts of /healthz and the first lines of /readyz are flannel's."""

    server: _Server
    timeout = 5  # seconds: a client that never finishes its request does not hold a thread

    def do_GET(self) -> None:
        readiness = self.server.readiness
        if self.path == "/healthz":
            self._answer(200, "flanneld is running")
        elif self.path.partition("?")[0] == "/metrics":
            self._send(200, *self.server.exposition(self.headers.get("Accept", "")))
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
