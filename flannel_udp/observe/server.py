"""What the health server and the status socket share: one thread that accepts connections."""

import logging
import os
import select
import socketserver
import sys
from typing import Any

from flannel_udp.threads import Service

log = logging.getLogger(__name__)


class QuietServer(socketserver.BaseServer):
    """Prints no traceback when a client closes early, as a probe that resets does."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            log.debug("%s broke off: %s", client_address, error.strerror or error)
        else:
            log.exception("an answer failed")


class ServerThread(Service):
    """Serves ``server`` and closes it at the end; unlike serve_forever it does not poll."""

    def __init__(self, server: socketserver.TCPServer, name: str) -> None:
        super().__init__(name, None)
        self._server, self._stop_event = server, os.eventfd(0)
        server.timeout = 0  # handle_request returns at once if the client is gone already

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        os.close(self._stop_event)
        self._server.server_close()

    def _serve(self) -> None:
        watched = self._stop_event, self._server.fileno()
        while self._stop_event not in select.select(watched, (), ())[0]:
            self._server.handle_request()

    def _wake(self) -> None:
        os.eventfd_write(self._stop_event, 1)
