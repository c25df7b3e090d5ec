"""Numbers formatted for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.units import scaled, span, sparkline


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1234, "1.23 kB"),
        (12_345, "12.3 kB"),
        (99_960, "100 kB"),
        (999_600, "1.00 MB"),
        (5.4e9, "5.40 GB"),
        (7e15, "7000 TB"),
    ],
)
def test_three_digits_are_shown(value: float, text: str) -> None:
    assert scaled(value, "B") == text


def test_a_number_without_unit_ends_in_no_space() -> None:
    assert (scaled(3), scaled(3000)) == ("3", "3.00 k")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3599.6, "1 h"),
        (86_399, "23 h 59 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_span_shows_its_two_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_the_highest_value_of_a_sparkline_is_a_full_bar() -> None:
    assert sparkline([0, 1, 7], 5) == "   ▂█"
    assert sparkline([9, 7, 7], 2) == "██"
    assert sparkline([], 3) == sparkline([0, 0], 3) == "   "


@given(st.lists(st.floats(0, 1e15), max_size=50), st.integers(1, 40))
def test_a_sparkline_has_its_width(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == width
