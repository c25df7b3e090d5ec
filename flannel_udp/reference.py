"""The whole command line as one parser: what completion and the man page are made of."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import shtab

from flannel_udp.flags import FlagParser, Flags

_ELSEWHERE = {
    "lab": "Hosts and containers in network namespaces, to try it out.",
    "mk-docker-opts": "Write docker's options from subnet.env.",
}


def whole_parser(commands: Mapping[str, Flags]) -> argparse.ArgumentParser:
    """The daemon's flags and every sub-command with its own; not for parsing."""
    whole = FlagParser()
    whole.usage = "flannel-udp [FLAG]... | COMMAND [FLAG]..."
    names = whole.add_subparsers(
        title="commands",
        prog="flannel-udp",
        metavar="COMMAND",
        parser_class=argparse.ArgumentParser,
    )
    for name, part in sorted(commands.items()):
        names.add_parser(
            name,
            help=part.description,
            description=part.description,
            parents=[part],
            add_help=False,
        )
    for name, text in _ELSEWHERE.items():
        names.add_parser(name, help=text, description=text)
    return whole


def completion(shell: str, commands: Mapping[str, Flags]) -> str:
    """The script that teaches bash or zsh our words."""
    whole = whole_parser(commands)
    for action in whole._actions:
        if action.metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    return str(shtab.complete(whole, shell))
