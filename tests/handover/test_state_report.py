"""Recording the state for the next process holds up nobody."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator

import pytest

from flannel_udp.handover import state_report


@pytest.fixture
def no_switches() -> Iterator[None]:
    """A thread goes on until it lets go of the interpreter by itself."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(60)
    yield
    sys.setswitchinterval(before)


def test_other_threads_run_between_two_pieces(no_switches: None) -> None:
    turns: list[None] = []
    ready, stopping = threading.Event(), threading.Event()

    def wait_for_turns() -> None:
        ready.set()
        while not stopping.is_set():
            turns.append(None)
            time.sleep(0.0001)

    def pieces() -> Iterator[bytes]:
        """Until the other thread has had some turns."""
        turns.clear()
        for number in range(100_000):
            if len(turns) >= 20:
                return
            yield bytes([number % 256])

    other = threading.Thread(target=wait_for_turns)
    other.start()
    ready.wait()
    gathered = state_report._gather(pieces())
    stopping.set()
    other.join()
    assert 0 < len(gathered) < 100_000
    assert gathered == bytes(number % 256 for number in range(len(gathered)))
