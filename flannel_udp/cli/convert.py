"""Conversions of a flag's text to its value (pure). Each raises argparse.ArgumentTypeError."""

import argparse
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path

from flannel_udp.cli.go_flags import SHOWN_CHARACTERS
from flannel_udp.host.interface_choice import compile_regex
from flannel_udp.options import clean_prefix

_BOOLEANS = {  # Go's strconv.ParseBool
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


def _wrong(text: str, why: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text[:SHOWN_CHARACTERS]!r} {why}")


def boolean(text: str) -> bool:
    if text not in _BOOLEANS:
        raise _wrong(text, "is neither true nor false")
    return _BOOLEANS[text]


def one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in choices:
            raise _wrong(text, "is none of " + ", ".join(choices))
        return text

    return convert


def number(lowest: int, highest: int, unit: str = "") -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not (re.fullmatch("[0-9]{1,9}", text) and lowest <= int(text) <= highest):
            raise _wrong(text, f"is not a whole number from {lowest} to {highest}{unit}")
        return int(text)

    return convert


def seconds(text: str) -> int:
    """``90``, ``90s``, ``30m`` or ``24h``."""
    match = re.fullmatch("([0-9]{1,7})([smh]?)", text)
    if not match:
        raise _wrong(text, "is no time such as 90s, 30m or 24h")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def path(text: str) -> Path | None:
    if text and Path(text).name in ("", ".."):
        raise _wrong(text, "does not name a file")
    return Path(text) if text else None


def ipv4(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text) if text else None
    except ValueError:
        raise _wrong(text, "is not an IPv4 address") from None


def ipv6(text: str) -> IPv6Address | None:
    try:
        return IPv6Address(text) if text else None
    except ValueError:
        raise _wrong(text, "is not an IPv6 address") from None


def listen_address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise _wrong(text, "is not an IP address") from None


def regex(text: str) -> str:
    try:
        compile_regex(text)
    except re.error as error:
        raise _wrong(text, f"is not a regular expression as Python writes them: {error}") from None
    return text


def endpoints(text: str) -> tuple[str, ...]:
    urls = tuple(part.strip() for part in text.split(",") if part.strip())
    if not urls:
        raise _wrong(text, "holds no URL such as http://10.0.0.1:2379")
    return urls


def prefix(text: str) -> str:
    cleaned = clean_prefix(text)
    if cleaned == ".":  # flannel would use the key "config", which nobody means
        raise _wrong(text, "is no key such as /coreos.com/network")
    return cleaned


def interval(text: str) -> float:
    """Seconds between two refreshes."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise _wrong(text, "is not a number from 0.1 to 3600 seconds")
    return value


def network(text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no network such as 10.44.0.0/16: {error}") from None
