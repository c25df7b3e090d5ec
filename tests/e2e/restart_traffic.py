"""Traffic during restarts of the daemon: no connection may break, no packet be lost or late."""

from __future__ import annotations

import socket
import threading
import time

from etcd_server import wait_until
from instruments import connect, listen
from pings import Pings, Times, lost
from starvation import Starvation

from flannel_udp.lab.lab import Container, Lab

LONGEST_DELAY = 1.0  # seconds for which a packet may wait


class Traffic:
    """A busy TCP connection and fifty pings a second, from one container to another."""

    def __init__(self, source: Container, target: Container, starvation: Starvation) -> None:
        with listen(target, socket.SOCK_STREAM) as listener:
            self._client = connect(source, target.address, listener.getsockname()[1])
            self._server, _ = listener.accept()
        self._client.settimeout(30)
        self._server.settimeout(30)
        self._pings = Pings(source.netns, target.address)
        self._starvation = starvation
        self._exchanges: list[Times] = []  # over TCP
        self._fault: OSError | None = None
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._request, self._reply)]

    def __enter__(self) -> Traffic:
        self._starvation.__enter__()
        for thread in self._threads:
            thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._client.close()
        self._server.close()
        self._pings.__exit__()
        self._starvation.__exit__()

    def wait_for_more(self) -> None:
        """Waits until the connection has carried 20 more exchanges, or broke."""
        enough = len(self._exchanges) + 20
        wait_until(lambda: self._fault or len(self._exchanges) >= enough, "more traffic", 30)

    def assert_connected(self) -> None:
        """The connection is not broken."""
        self.wait_for_more()
        assert self._fault is None

    def assert_unharmed(self, *, most_lost: int = 0) -> None:
        """The connection is not broken, nothing was late, and few enough pings are lost."""
        self.assert_connected()
        pings = self._pings.stop()
        missing = lost(pings)
        print(f"{len(missing)} of {max(pings)} pings lost")
        assert len(missing) <= most_lost, missing
        for what, times in (("ping", pings.values()), ("answer over TCP", self._exchanges)):
            longest = max(ended - began for began, ended in times)
            net = max(self._starvation.net_duration(*each) for each in times)
            print(f"longest {what} {longest:.3f} s, {net:.3f} s without waiting for a processor")
            assert net < LONGEST_DELAY

    def _request(self) -> None:
        try:
            while not self._stopping.wait(0.005):
                began = time.monotonic()
                self._client.sendall(b"x")
                if self._client.recv(1) != b"x":
                    raise ConnectionError("the connection has ended")
                self._exchanges.append((began, time.monotonic()))
            self._client.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fault = error

    def _reply(self) -> None:
        try:
            while data := self._server.recv(100):
                self._server.sendall(data)
        except OSError as error:
            self._fault = error


def traffic(lab: Lab) -> Traffic:
    """Between containers of the two hosts; the tests restart one of their daemons."""
    first, second = lab.hosts
    return Traffic(first.containers[0], second.containers[0], Starvation(first, second))
