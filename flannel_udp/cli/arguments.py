"""The words of a command line as flags, by the rules of Go's flag package (pure)."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence

from flannel_udp.errors import UsageError

SHOWN_CHARACTERS = 80
SECRETS = ("etcd-password",)


def read_words(
    words: Sequence[str],
    flags: Mapping[str, argparse.Action],
    program: str,
    on_operand: Callable[[str, str], None],
) -> Iterator[tuple[str, str | None]]:
    """Name and value of each flag.

    One dash or two; a value may start with a dash; booleans never take the next word. The value of
    a boolean without one is None, and so is that of ``-v``, unless a number follows. ``on_operand``
    gets each word that belongs to no flag, and the name of the flag before it, or "". Raises
    UsageError, which refers to the help of ``program``.
    """
    rest = list(words)
    name = ""
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            on_operand(word, name)
            continue
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if name not in flags:
            close = difflib.get_close_matches(name, flags, n=1)
            hint = f"did you mean --{close[0]}?" if close else f"see {program} --help"
            raise UsageError(f"there is no flag --{name[:SHOWN_CHARACTERS]}; {hint}")
        if equals:
            yield name, value
        elif flags[name].nargs is None:
            if not rest:
                raise UsageError(f"--{name} needs a value")
            yield name, rest.pop(0)
        elif name == "v" and rest and rest[0].isdecimal():
            yield name, rest.pop(0)
        else:
            yield name, None


def spelled(flags: Sequence[tuple[str, str | None]]) -> list[str]:
    """The flags in the one form that argparse never takes for something else."""
    return [f"--{name}" if value is None else f"--{name}={value}" for name, value in flags]
