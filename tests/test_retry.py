from __future__ import annotations

import heapq
import logging
import random
import threading

import pytest

from flannel_udp.errors import EtcdError, NetworkConfigError, UsageError
from flannel_udp.log_limits import ChangeLog, LineBudget
from flannel_udp.retry import LONGEST_DELAY, SHORTEST_DELAY, Backoff, retry_until

log = logging.getLogger("test")


class Flaky:
    """Raises each of ``errors`` once, then returns 42."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return 42


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_delays_grow_from_a_fifth_of_a_second_to_three_and_start_anew(
    monkeypatch: pytest.MonkeyPatch, chance: float
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: low + chance * (high - low))
    backoff = Backoff()
    delays = [backoff.next() for _ in range(12)]
    assert delays == sorted(delays)
    assert delays[0] == SHORTEST_DELAY * (1 + chance)
    assert delays[-1] == LONGEST_DELAY * (1 + chance) / 2
    backoff.reset()
    assert backoff.next() == delays[0]


def test_each_reason_is_logged_once_and_the_recovery_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    heard: list[str] = []
    attempt = Flaky(EtcdError("a"), EtcdError("a"), NetworkConfigError("b"))
    assert retry_until(threading.Event(), attempt, log, on_failure=heard.append, works="ok") == 42
    assert caplog.messages == ["a; trying again", "b; trying again", "ok"]
    assert heard == ["a", "a", "b"]


def test_success_at_once_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert retry_until(threading.Event(), Flaky(), log) == 42
    assert caplog.messages == []


def test_failures_that_alternate_for_ten_minutes_fill_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At most ten lines, and one a minute from then on."""
    caplog.set_level(logging.INFO)
    now = 0.0
    changes = ChangeLog(log, LineBudget(clock=lambda: now))
    for second in range(600):
        now = float(second)
        changes.failed("a" if second % 2 else "b")
    assert 10 + 8 <= len(caplog.messages) <= 10 + 10
    assert changes.works("ok")
    assert not changes.works("ok")


@pytest.mark.parametrize("seed", range(5))
def test_ten_minutes_without_etcd_are_ten_lines_and_one_a_minute_of_the_whole_daemon(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Four retry loops meet a different failure each time, and all of them log."""
    caplog.set_level(logging.INFO)
    chance = random.Random(seed)
    monkeypatch.setattr("flannel_udp.retry.random", chance)
    now = 0.0
    lines = LineBudget(clock=lambda: now)
    parts = [(Backoff(), ChangeLog(log, lines)) for _ in range(4)]
    due = [(0.0, number) for number in range(len(parts))]
    told: list[float] = []
    while due[0][0] < 600:
        now, number = heapq.heappop(due)
        backoff, changes = parts[number]
        changes.failed(f"{number} cannot be done: {chance.choice('abcdef')}")
        told += [now] * (len(caplog.messages) - len(told))
        heapq.heappush(due, (now + backoff.next(), number))
    assert len(told) >= 10 + 8
    assert all(at >= 60 * minute for minute, at in enumerate(told[10:], start=1))


def test_a_server_that_comes_and_goes_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    changes = ChangeLog(log, LineBudget(clock=lambda: now))
    for second in range(600):
        now = float(second)
        changes.failed("gone")
        changes.works("back")
    assert 10 + 8 <= len(caplog.messages) <= 10 + 10 + 1
    assert caplog.messages[-1] == "back"


def test_other_errors_pass() -> None:
    with pytest.raises(UsageError):
        retry_until(threading.Event(), Flaky(UsageError("x")), log)


def test_stop_ends_the_waiting_without_a_line(caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()

    def attempt() -> int:
        stop.set()
        raise EtcdError("down")

    assert retry_until(stop, attempt, log) is None
    assert caplog.messages == []
