"""Regular expressions written for Go's ``regexp``, compiled by Python's ``re`` (pure)."""

from __future__ import annotations

import re

_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_NEGATED = {"digit": r"\D", "space": r"\S", "word": r"\W"}

_SET_START = re.compile(r"\[\^?\]?")
_IN_SET = re.compile(r"\[:(\^?)(\w*):\]|\\.|.", re.DOTALL)


def compile_go(pattern: str) -> re.Pattern[str]:
    """The pattern with Go's ``[[:digit:]]`` and ``\\z``. Raises re.error for what is none,
    or what Python cannot compile.
    """
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        if pattern[at] == "[":
            start = _SET_START.match(pattern, at)
            assert start
            parts.append(start[0])
            at = _copy_set(pattern, start.end(), parts)
        else:
            length = 2 if pattern[at] == "\\" else 1
            word = pattern[at : at + length]
            parts.append(r"\Z" if word == r"\z" else word)
            at += length
    try:
        return re.compile("".join(parts))
    except RecursionError:
        raise re.error("it is nested too deeply") from None
    except OverflowError as error:
        raise re.error(str(error)) from None


def _copy_set(pattern: str, at: int, parts: list[str]) -> int:
    """Copies up to the bracket that closes the set; where that ends."""
    while at < len(pattern):
        token = _IN_SET.match(pattern, at)
        assert token
        at = token.end()
        if token[0] == "]":
            parts.append("]")
            break
        if token[2] is not None:
            parts.append(_named(token[2], negated=bool(token[1])))
        else:  # Python warns that these may get a meaning of their own in sets
            parts.append("\\" + token[0] if token[0] in "[&~|" else token[0])
    return at


def _named(name: str, *, negated: bool) -> str:
    found = (_NEGATED if negated else _CLASSES).get(name)
    if found is None:
        raise re.error(f"there is no class [:{'^' * negated}{name}:] here")
    return found
