"""The server of the health port and of the status socket: one thread, and every use is bounded.

A client sends one request and gets one answer, within one deadline for both. Slow clients cost no
thread, and few descriptors: who has kept us waiting longest makes room for the next.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from flannel_udp.errors import DeviceError
from flannel_udp.log_limits import ChangeLog
from flannel_udp.retry import retry_until
from flannel_udp.threads import Service

log = logging.getLogger(__name__)

BACKLOG = 1024  # connections that wait to be accepted; the kernel drops what comes beyond
MOST_CLIENTS = 64
_DEADLINE = 10.0  # seconds from accept to the end of the answer; Prometheus waits no longer
_MOST_REQUEST = 1 << 14  # bytes; longer ones are answered as if they ended there
_MOST_UNSENT = 1 << 27  # bytes of answers in all; one of 65,536 peers has some 30 MB
_PAUSE = 0.1  # seconds without accepting, after the kernel refused to


class Answers(Protocol):
    """The protocol that a server speaks."""

    def is_complete(self, request: bytes) -> bool:
        return True

    def is_slow(self, request: bytes) -> bool:
        """Whether the answer takes so long that others must not wait for it."""
        return False

    def answer(self, request: bytes) -> bytes: ...


@dataclass(eq=False, slots=True)
class _Client:
    host: Any
    task: asyncio.Task[None]
    has_asked: bool = False
    unsent: int = 0  # bytes of its answer, at most


class Server(Service):
    """Its thread runs an event loop. It holds the listener until ``__exit__``."""

    def __init__(
        self, what: str, answers: Answers, listen: Callable[[], socket.socket], *, patient: bool
    ) -> None:
        """``what`` it is called in the log. ``listen`` opens a listener that does not block, or
        raises DeviceError. If ``patient``, the thread calls it until it succeeds."""
        super().__init__(what, None)
        self._listener = None if patient else listen()
        self._what, self._answers, self._listen = what, answers, listen
        self._refusals = ChangeLog(log)
        self._clients: list[_Client] = []  # the oldest first
        self._loop = asyncio.new_event_loop()
        # Answers are not made in the loop: pyroute2 runs a loop of its own.
        self._threads = [ThreadPoolExecutor(1, f"{what}, {pace}") for pace in ("fast", "slow")]

    @property
    def port(self) -> int:
        """0 while it cannot listen."""
        return int(self._listener.getsockname()[1]) if self._listener else 0

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)
        self._loop.close()
        if self._listener:
            self._listener.close()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _serve(self) -> None:
        works = f"the {self._what} is served now"
        self._listener = self._listener or retry_until(
            self._stopping, self._listen, log, retry_on=(DeviceError,), works=works
        )
        if self._listener is None or self._stopping.is_set():
            return
        accepting = self._loop.create_task(self._accept_all(self._listener))
        accepting.add_done_callback(lambda _: self._loop.stop())
        self._loop.run_forever()
        tasks = [accepting, *(client.task for client in self._clients)]
        for task in tasks:
            task.cancel()
        results = self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        if isinstance(results[0], Exception):
            raise results[0]

    async def _accept_all(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, address = await self._loop.sock_accept(listener)
            except OSError as error:
                # The listener stays readable, so waiting for it would not wait.
                why = f"the {self._what} accepts no clients: {error.strerror}"
                self._refusals.failed(f"{why}; trying again")
                self._make_room()
                await asyncio.sleep(_PAUSE)
                continue
            self._refusals.works(f"the {self._what} accepts clients again")
            if len(self._clients) == MOST_CLIENTS:
                self._make_room()
            task = self._loop.create_task(self._serve_one(connection))
            self._clients.append(_Client(address[:1], task))
            await asyncio.sleep(0)  # most requests are here already

    def _make_room(self) -> None:
        """Drop a client of the address that has the most: the oldest, first of those that have not
        sent their request."""
        hosts = Counter(client.host for client in self._clients)
        if hosts:
            self._drop(max(self._clients, key=lambda each: (hosts[each.host], not each.has_asked)))

    def _drop(self, client: _Client) -> None:
        self._clients.remove(client)
        client.task.cancel()

    async def _serve_one(self, connection: socket.socket) -> None:
        """The task of a client; its socket is closed when it ends."""
        (client,) = (each for each in self._clients if each.task is asyncio.current_task())
        with connection:
            try:
                async with asyncio.timeout(_DEADLINE):
                    request = await self._request(connection)
                    if request is not None:
                        client.has_asked = True
                        await self._send(connection, client, await self._answer(request))
            except OSError as error:  # as of a probe that resets, or the deadline
                log.debug("%s broke off: %s", client.host, error.strerror or error)
            except Exception:
                log.exception("an answer failed")
            finally:
                if client in self._clients:
                    self._clients.remove(client)

    async def _request(self, connection: socket.socket) -> bytes | None:
        """None if the client leaves without one."""
        request = b""
        while len(request) < _MOST_REQUEST and not self._answers.is_complete(request):
            chunk = await self._loop.sock_recv(connection, _MOST_REQUEST)
            if not chunk:
                return request or None
            request += chunk
        return request

    async def _answer(self, request: bytes) -> bytes:
        thread = self._threads[self._answers.is_slow(request)]
        return await self._loop.run_in_executor(thread, self._answers.answer, request)

    async def _send(self, connection: socket.socket, client: _Client, answer: bytes) -> None:
        client.unsent = len(answer)
        while sum(each.unsent for each in self._clients) > _MOST_UNSENT:
            self._drop(next(each for each in self._clients if each.unsent))
        await self._loop.sock_sendall(connection, answer)
