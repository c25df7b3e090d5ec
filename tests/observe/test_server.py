"""The server of the health port and the status socket, with clients that mean harm."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from flannel_udp.observe import server
from flannel_udp.observe.server import MOST_CLIENTS, Server

LARGE = 16 << 20  # bytes: more than the buffers of two sockets hold


class Echo:
    """Answers a line with itself, ``times`` times; the line ``slow`` waits for ``go_on``."""

    def __init__(self, times: int = 1) -> None:
        self._times = times
        self.go_on = threading.Event()
        self.errors: list[Exception] = []  # of the next answers

    def is_complete(self, request: bytes) -> bool:
        return request.endswith(b"\n")

    def is_slow(self, request: bytes) -> bool:
        return request == b"slow\n"

    def answer(self, request: bytes) -> bytes:
        if self.errors:
            raise self.errors.pop()
        if request == b"slow\n":
            self.go_on.wait(10)
        return request * self._times


def listen(kind: type[socket.socket] = socket.socket) -> socket.socket:
    listener = kind()
    listener.setblocking(False)
    listener.bind(("", 0))
    listener.listen(1024)
    return listener


@contextmanager
def serving(
    answers: Echo | None = None, listen: Callable[[], socket.socket] = listen
) -> Iterator[tuple[Echo, int]]:
    answers = answers or Echo()
    with Server("echo port", answers, listen, patient=False) as running:
        yield answers, running.port


def connected(port: int, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 5, (source, 0))


def ask(port: int, request: bytes = b"hello\n") -> bytes:
    with connected(port) as client:
        client.sendall(request)
        return read(client)


def read(client: socket.socket) -> bytes:
    with client.makefile("rb") as answer:
        return answer.read()


def test_a_request_in_pieces_is_answered() -> None:
    with serving() as (_, port), connected(port) as client:
        for piece in (b"hel", b"lo", b"\n"):
            client.sendall(piece)
            time.sleep(0.02)
        assert read(client) == b"hello\n"


def test_a_request_ends_where_its_sender_ends_it() -> None:
    with serving() as (_, port), connected(port) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert read(client) == b"hello"


def test_an_endless_request_is_not_kept() -> None:
    with serving() as (_, port), connected(port) as client, suppress(OSError):
        for _ in range(1000):
            client.sendall(b"x" * 4096)
        raise AssertionError("took 4 MB of request")


def test_a_large_answer_arrives_whole() -> None:
    with serving(Echo(LARGE)) as (_, port), connected(port) as client:
        client.sendall(b"\n")
        time.sleep(0.2)
        assert len(read(client)) == LARGE


@pytest.mark.parametrize("request_", [b"", b"slow\n"], ids=["silent", "slow"])
def test_clients_that_hold_all_places_make_room(request_: bytes) -> None:
    with serving() as (answers, port), ExitStack() as others:
        clients = [others.enter_context(connected(port)) for _ in range(2 * MOST_CLIENTS)]
        for client in clients:
            with suppress(OSError):
                client.sendall(request_)
        before = len(os.listdir("/proc/self/fd"))
        assert ask(port) == b"hello\n"
        assert before < 3.2 * MOST_CLIENTS + 60  # our ends are open too
        answers.go_on.set()


def test_the_address_with_the_most_clients_makes_room() -> None:
    with serving() as (_, port), ExitStack() as others, connected(port, "127.0.0.2") as patient:
        for _ in range(2 * MOST_CLIENTS):
            others.enter_context(connected(port))
        assert ask(port) == b"hello\n"
        patient.sendall(b"still here\n")
        assert read(patient) == b"still here\n"


def test_a_dripped_request_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_DEADLINE", 0.5)
    with serving() as (_, port), connected(port) as client:
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < began + 5:
                client.sendall(b"x")
                time.sleep(0.05)
        assert 0.4 < time.monotonic() - began < 2


def test_an_unread_answer_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_DEADLINE", 0.3)
    with serving(Echo(LARGE)) as (_, port), connected(port) as client:
        client.sendall(b"\n")
        time.sleep(0.6)
        assert len(read(client)) < LARGE


def test_unread_answers_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MOST_UNSENT", 1 << 20)
    with serving(Echo(LARGE)) as (_, port), connected(port) as client:
        client.sendall(b"\n")
        assert len(read(client)) < LARGE


def test_a_slow_answer_delays_no_other_one() -> None:
    with serving() as (answers, port), connected(port) as client:
        client.sendall(b"slow\n")
        assert ask(port) == b"hello\n"
        answers.go_on.set()
        assert read(client) == b"slow\n"


def test_an_error_of_one_answer_is_logged_and_the_next_is_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving() as (answers, port):
        answers.errors.append(KeyError("a bug"))
        assert ask(port) == b""
        assert "an answer failed" in caplog.text
        assert ask(port) == b"hello\n"


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ECONNABORTED"])
def test_refused_accepts_are_tried_again_without_haste(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    refusals: list[float] = []

    class Refusing(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if len(refusals) < 4:
                refusals.append(time.monotonic())
                raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
            return super().accept()

    caplog.set_level(logging.INFO)
    with serving(listen=lambda: listen(Refusing)) as (_, port):
        assert ask(port) == b"hello\n"
    assert refusals[3] - refusals[0] > 0.25
    why = f"the echo port accepts no clients: {os.strerror(getattr(errno, name))}; trying again"
    assert caplog.messages == [why, "the echo port accepts clients again"]


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with serving() as (_, port), connected(port), connected(port):
        assert ask(port) == b"hello\n"
    assert len(os.listdir("/proc/self/fd")) == before
