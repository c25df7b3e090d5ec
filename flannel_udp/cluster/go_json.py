"""JSON objects, read as flannel's Go ``encoding/json`` reads them (pure)."""

import json
from typing import Any, NoReturn

_MAX_DIGITS = 20  # of an integer in Go
SHOWN_CHARACTERS = 80


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The object in ``text`` with case-folded names, at every level.

    As in Go, names match in any case, the last of several equal names wins, a null counts as an
    absent name, and bytes that are not UTF-8 become U+FFFD. A number with more digits than Go's
    integers have is returned as a float. Raises ValueError with a reason that fits in brackets.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"it is not JSON: {error.msg} at {where}") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is {shown(value)}, not an object")
    return value


def null_names(text: str | bytes) -> frozenset[str]:
    """The case-folded names that are null in an object that ``parse_object`` accepts."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    names: frozenset[str] = json.loads(text, object_pairs_hook=_nulls, parse_int=str)
    return names


def shown(value: object) -> str:
    """A parsed value as JSON on one line, short enough for a message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return json.dumps(value[:SHOWN_CHARACTERS]) + "..."
    return json.dumps(value)


def _fold(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name.casefold(): value for name, value in pairs if value is not None}


def _nulls(pairs: list[tuple[str, Any]]) -> frozenset[str]:
    return frozenset(name.casefold() for name, value in pairs if value is None)


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it is not JSON: {name} is not a number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_fold, parse_int=_number, parse_constant=_refuse_constant
)
