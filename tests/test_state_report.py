"""Recording the state for the next process holds up nobody."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator

import pytest

from flannel_udp import state_report


@pytest.fixture
def no_switches() -> Iterator[None]:
    """A thread goes on until it lets go of the interpreter by itself."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(60)
    yield
    sys.setswitchinterval(before)


def test_other_threads_run_between_two_pieces(no_switches: None) -> None:
    turns: list[int] = []
    ready, stopping = threading.Event(), threading.Event()

    def work(number: int) -> bytes:
        turns.append(number)
        return bytes([number])

    def wait_for_turns() -> None:
        ready.set()
        while not stopping.is_set():
            turns.append(-1)
            time.sleep(0.0001)

    other = threading.Thread(target=wait_for_turns)
    other.start()
    ready.wait()
    gathered = state_report._gather(map(work, range(100)))
    stopping.set()
    other.join()
    assert gathered == bytes(range(100))
    between = turns[turns.index(0) : turns.index(99)]
    assert between.count(-1) > 50
