"""Repeated reports are cut short, and what is new is still reported."""

from __future__ import annotations

import logging

import pytest

from flannel_udp.log_limits import LISTED, Lasting, Repeats, Seen, log_listed

log = logging.getLogger("test")


def test_a_key_is_new_once_and_again_after_an_hour_without_it() -> None:
    seen = Seen[str](quiet=3600, most=256)
    assert [at for at in range(0, 100_000, 60) if seen.is_new("a", at)] == [0]
    assert seen.is_new("b", 100_000)
    assert not seen.is_new("a", 103_000)
    assert seen.is_new("a", 106_600)


def test_a_forgotten_key_is_new() -> None:
    seen = Seen[str](quiet=3600, most=256)
    assert seen.is_new("a", 0)
    seen.forget("a")
    assert seen.is_new("a", 1)


def test_after_a_flood_of_keys_new_ones_are_reported_again() -> None:
    seen = Seen[int](quiet=3600, most=256)
    assert sum(seen.is_new(number, number / 100) for number in range(9999)) == 256
    assert not seen.is_new(-1, 101)
    assert seen.is_new(-1, 3601)


def test_a_condition_is_reported_when_it_begins() -> None:
    lasting = Lasting[str](settled=60)
    assert lasting.observe({"a"}, {"a", "b"}, 5) == ({"a"}, set())
    assert lasting.observe({"a"}, {"a", "b"}, 500) == (set(), set())
    assert lasting.due is None


def test_the_end_is_reported_after_a_minute_without_the_condition() -> None:
    lasting = Lasting[str](settled=60)
    lasting.observe({"a"}, {"a"}, 5)
    assert lasting.observe(set(), {"a"}, 10) == (set(), set())
    assert lasting.due == 70
    assert lasting.observe(set(), {"a"}, 69) == (set(), set())
    assert lasting.observe(set(), {"a"}, 70) == (set(), {"a"})
    assert lasting.due is None
    assert lasting.observe({"a"}, {"a"}, 90) == ({"a"}, set())


def test_a_condition_that_comes_and_goes_is_reported_once() -> None:
    lasting = Lasting[str](settled=60)
    reports = [
        lasting.observe({"a"} if second % 20 < 10 else set(), {"a"}, second)
        for second in range(0, 3600, 5)
    ]
    assert sum(len(begun) for begun, _ in reports) == 1
    assert not any(ended for _, ended in reports)


def test_an_unknown_subject_is_forgotten_without_a_report() -> None:
    lasting = Lasting[str](settled=60)
    lasting.observe({"a"}, {"a"}, 5)
    assert lasting.observe(set(), set(), 100) == (set(), set())
    assert lasting.due is None


def test_a_repeated_warning_is_logged_five_times(caplog: pytest.LogCaptureFixture) -> None:
    repeats = Repeats(log)
    for _ in range(20):
        repeats.warn("repaired a")
    repeats.warn("repaired b")
    assert caplog.messages.count("repaired a") == 5
    assert caplog.messages.count("repaired b") == 1
    assert sum("further repairs are not logged" in line for line in caplog.messages) == 1


@pytest.mark.parametrize("count", [0, 1, LISTED, LISTED + 1])
def test_many_lines_are_summed_up(count: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lines = [f"line {number}" for number in range(count)]
    log_listed(log, logging.INFO, lines, "many")
    assert caplog.messages == (lines if count <= LISTED else ["many"])
