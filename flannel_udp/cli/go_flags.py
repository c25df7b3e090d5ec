"""Splits a command line into flags and operands by the rules of Go's flag package (pure)."""

import argparse
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence

from flannel_udp.errors import UsageError

SHOWN_CHARACTERS = 80
SECRETS = ("etcd-password",)


def read_flags(
    arguments: Sequence[str],
    flags: Mapping[str, argparse.Action],
    program: str,
    on_operand: Callable[[str, str], None],
) -> Iterator[tuple[str, str | None]]:
    """Yields name and value of each flag.

    A flag has one dash or two; its value may start with a dash; booleans never take the next
    argument. The value is None for a boolean without one, and for ``-v`` unless a number follows.
    ``on_operand`` gets each argument that belongs to no flag, and the name of the flag before it,
    or "". Raises UsageError, which names the help of ``program``.
    """
    rest = list(arguments)
    name = ""
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-") or argument == "-":
            on_operand(argument, name)
            continue
        name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
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


def joined(flags: Sequence[tuple[str, str | None]]) -> list[str]:
    """``--name=value`` for each flag: the form that argparse always takes for a flag."""
    return [f"--{name}" if value is None else f"--{name}={value}" for name, value in flags]
