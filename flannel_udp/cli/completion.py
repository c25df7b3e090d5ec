"""Completion scripts, and the whole command line as one parser, which the man page needs too."""

import argparse
from collections.abc import Mapping

import shtab

from flannel_udp.cli import mk_docker_opts
from flannel_udp.cli.flags import DaemonFlags

_COMPLETED_AS = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}  # by the metavar of a flag


def whole_parser(commands: Mapping[str, argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The daemon's flags and every sub-command; for display, not for parsing."""
    whole = DaemonFlags()
    whole.usage = "flannel-udp [FLAG]... | COMMAND [FLAG]..."
    names = whole.add_subparsers(
        title="commands",
        prog="flannel-udp",
        metavar="COMMAND",
        parser_class=argparse.ArgumentParser,
    )
    for name, part in sorted({**commands, "mk-docker-opts": mk_docker_opts.parser()}.items()):
        names.add_parser(
            name,
            help=part.description,
            description=part.description,
            parents=[part],
            add_help=False,
        )
        _complete_values(part)
    _complete_values(whole)
    return whole


def completion(shell: str, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """The completion script for bash or zsh."""
    return str(shtab.complete(whole_parser(commands), shell))


def _complete_values(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action.metavar, str) and action.metavar in _COMPLETED_AS:
            action.complete = _COMPLETED_AS[action.metavar]  # type: ignore[attr-defined]  # the interface of shtab
