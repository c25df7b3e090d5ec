"""A clock that is set is told once, and nothing else is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from flannel_udp.host.clock_watch import ClockWatch


class Clocks:
    """As a test sets them; the n-th look of the watch is the n-th of ``aheads``."""

    def __init__(self, aheads: list[float], *, stopped: float = 0.0) -> None:
        """``stopped``: seconds for which the process stands still at every second look."""
        self._aheads, self._stopped = aheads, stopped
        self._steady, self._looks = 100.0, 0
        self.seen = threading.Event()

    def steady(self) -> float:
        return self._steady

    def wall(self) -> float:
        ahead = self._aheads[min(self._looks, len(self._aheads) - 1)]
        self._looks += 1
        if self._looks > len(self._aheads):
            self.seen.set()
        if self._looks % 2 == 0:
            self._steady += self._stopped
        return self._steady + 1_700_000_000 + ahead


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[Clocks], list[str]]:
    def watch(clocks: Clocks) -> list[str]:
        caplog.set_level(logging.INFO)
        with ClockWatch(wall=clocks.wall, steady=clocks.steady, look_every=0.001):
            assert clocks.seen.wait(10)
        return caplog.messages

    return watch


def test_each_jump_is_told_once_with_its_direction(told: Callable[[Clocks], list[str]]) -> None:
    first, second = told(Clocks([0, 0, 3720, 3720, 3720, 0, 0]))
    assert first.startswith("this host's clock was set forward by 1 h 2 min: leases and packets do")
    assert second.startswith("this host's clock was set back by 1 h 2 min")


def test_a_clock_that_is_corrected_in_small_steps_was_not_set(
    told: Callable[[Clocks], list[str]],
) -> None:
    assert told(Clocks([0.5 * step for step in range(20)])) == []


def test_a_process_that_stood_still_between_two_clocks_saw_no_jump(
    told: Callable[[Clocks], list[str]],
) -> None:
    assert told(Clocks([0.0] * 10, stopped=60.0)) == []


def test_the_clocks_of_this_machine_agree(caplog: pytest.LogCaptureFixture) -> None:
    looks = threading.Semaphore(0)
    watch = ClockWatch(look_every=0.001)
    look = watch._ahead

    def counted() -> float | None:
        looks.release()
        return look()

    watch._ahead = counted  # type: ignore[method-assign]  # to wait for some looks
    with watch:
        for _ in range(20):
            assert looks.acquire(timeout=10)
    assert caplog.messages == []
