"""Go's regular expressions mean here what they mean in flannel."""

from __future__ import annotations

import re
import string
import warnings
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.host.goregex import compile_go


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Python's would be printed to the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^eth[[:digit:]]+$", "eth10", "ethd"),
        ("^[[:alpha:]_-]+[^[:alpha:][:space:]]$", "a_-b7", "a_-b "),
        ("^[[:^digit:]]+$", "eth", "eth0"),
        (r"eth0\z", "eth0", "eth0\n"),
        ("^[]a]+$", "]a", "b"),
        ("^[^]a]+$", "b", "]"),
        ("^[a[]+$", "a[", "b"),
        ("^[&&||~~]+$", "&|~", "a"),
        (r"^[\]a]+$", "]a", "b"),
        (r"^\[[:digit:]]$", "[:]", "[7]"),
        ("^[:digit:]+$", "dig:t", "7"),
        (r"(?i)^ETH\d$", "eth0", "eth"),
    ],
)
def test_a_pattern_means_what_it_means_in_go(pattern: str, good: str, bad: str) -> None:
    assert compile_go(pattern).search(good)
    assert not compile_go(pattern).search(bad)


def test_every_class_is_that_of_ascii() -> None:
    members = {
        "digit": string.digits,
        "alpha": string.ascii_letters,
        "alnum": string.ascii_letters + string.digits,
        "lower": string.ascii_lowercase,
        "upper": string.ascii_uppercase,
        "punct": string.punctuation,
        "space": string.whitespace,
        "xdigit": string.hexdigits,
        "word": string.ascii_letters + string.digits + "_",
        "blank": " \t",
        "graph": string.ascii_letters + string.digits + string.punctuation,
        "print": string.ascii_letters + string.digits + string.punctuation + " ",
        "cntrl": "".join(map(chr, [*range(32), 127])),
        "ascii": "".join(map(chr, range(128))),
    }
    for name, expected in members.items():
        found = {c for c in map(chr, range(256)) if compile_go(f"[[:{name}:]]").fullmatch(c)}
        assert found == set(expected), name


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("[[:foo:]]", r"no class \[:foo:\]"),
        ("[[:^upper:]]", r"no class \[:\^upper:\]"),
        ("(", "missing"),
        ("[[:digit:]", "unterminated"),
        ("[", "unterminated"),
        ("a\\", "bad escape"),
        (r"\pN", "bad escape"),
        ("(" * 5000 + ")" * 5000, "nested too deeply"),
        ("a{99999999999999999999}", "too large"),
    ],
)
def test_what_is_none_is_an_error(pattern: str, words: str) -> None:
    with pytest.raises(re.error, match=words):
        compile_go(pattern)


@given(st.text("[]^:-\\ digt()a|&z*"))
def test_any_text_is_a_pattern_or_an_error(pattern: str) -> None:
    with warnings.catch_warnings(), suppress(re.error):
        warnings.simplefilter("ignore", FutureWarning)  # "--" in a set
        compile_go(pattern)
