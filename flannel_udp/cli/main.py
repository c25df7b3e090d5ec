"""The command line: flags and ``FLANNELD_*`` variables, sub-commands, exit codes."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from flannel_udp import __version__
from flannel_udp.cli import commands
from flannel_udp.cli.arguments import SECRETS, SHOWN_CHARACTERS, read_words, spelled
from flannel_udp.cli.flags import (
    IGNORED_BOOLEANS,
    IGNORED_VALUES,
    FlagParser,
    VersionAsked,
    variables,
)
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.logs import complain, start_logging
from flannel_udp.options import Options

log = logging.getLogger(__name__)

_OPTION_NAMES = frozenset(Options.__slots__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon or a sub-command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except FlannelError as error:
        complain("flannel-udp", error)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    """Import only what the sub-command needs: --help and a wrong flag answer at once."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if arguments[:1] == ["mk-docker-opts"]:
        from flannel_udp.host import subnet_env

        return subnet_env.mk_docker_opts_main(arguments[1:])
    if arguments and arguments[0] in commands.NAMES:
        start_logging(os.environ, "text")
        logging.getLogger("flannel_udp").setLevel(logging.WARNING)  # they speak for themselves
        return commands.run(arguments, os.environ)
    return _run_daemon(arguments)


def _run_daemon(arguments: list[str]) -> int:
    # A restart asked for before the daemon listens waits until it does: by default it would kill.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        values = _parse(arguments, os.environ)
    except UsageError as error:
        return _end(error, _likely_log_format(arguments, os.environ))
    log_format = values.get("log_format", Options().log_format)
    start_logging(os.environ, log_format, values.get("verbosity", 0))
    try:
        options = _options(values)
        from flannel_udp.handover import takeover
        from flannel_udp.host import systemd

        taken = takeover.take_over(options, systemd.inherited_descriptors())
        from flannel_udp.daemon import (
            daemon,  # takes a quarter of a second, in which packets flow already
        )

        return daemon.run(options, taken)
    except FlannelError as error:
        return _end(error, log_format)


def _end(error: FlannelError, log_format: str) -> int:
    """Say why: whoever reads a log of JSON objects reads of the end in the last one."""
    if log_format != "json":
        raise error
    start_logging(os.environ, log_format)
    log.error("%s", error)
    return 1


def _likely_log_format(words: Sequence[str], environ: Mapping[str, str]) -> str:
    """What was asked for, among words that cannot be parsed."""
    asked = re.findall(r"(?:^| )--?log-format[= ](\w+)", " ".join(words))
    return asked[-1] if asked else environ.get("FLANNELD_LOG_FORMAT", "")


def parse_options(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """The daemon's options: from the command line, else from a variable, else the default.

    Raises UsageError; ``--help`` and ``--version`` print and raise SystemExit(0).
    """
    return _options(_parse(argv, environ))


def _parse(argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    parser = FlagParser()

    def refuse(word: str, name: str) -> None:
        raise UsageError(_misplaced(word, name, parser.flags))

    given = list(read_words(argv, parser.flags, "flannel-udp", refuse))
    set_by = variables(parser.flags, {name for name, _ in given}, environ)
    given += [(name, environ[variable]) for name, variable in set_by.items()]
    try:
        return vars(parser.parse_args(spelled(given)))
    except VersionAsked:
        print(__version__)
        raise SystemExit(0) from None
    except argparse.ArgumentError as error:
        flag = error.argument_name or ""
        raise UsageError(f"{set_by.get(flag.lstrip('-'), flag)}: {error.message}") from None


def _misplaced(word: str, name: str, flags: Mapping[str, argparse.Action]) -> str:
    """What to say of a word behind the flag ``name``, or of the first one (name "")."""
    shown = "a word" if name in SECRETS else repr(word[:SHOWN_CHARACTERS])
    if not name:
        close = difflib.get_close_matches(word, [*commands.NAMES, "mk-docker-opts"], n=1)
        hint = f"did you mean flannel-udp {close[0]}?" if close else "see flannel-udp --help"
        return f"{shown} is neither a flag nor a command; {hint}"
    boolean = flags[name].nargs == "?"
    hint = f"write --{name}=VALUE" if boolean else "see flannel-udp --help"
    return f"{shown} stands where a flag should; {hint}"


def _options(values: Mapping[str, Any]) -> Options:
    for name in (*IGNORED_VALUES, *IGNORED_BOOLEANS):
        if name.replace("-", "_") in values:
            log.warning("--%s has no effect: subnets are leased in etcd, not by Kubernetes", name)
    if values.get("kube_subnet_mgr"):
        raise UsageError(
            "--kube-subnet-mgr cannot be used: subnets are leased in etcd, not by Kubernetes;"
            " leave it out or run flanneld on this host"
        )
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        if name in _OPTION_NAMES and value is not None:  # None: given, but empty
            chosen[name] = tuple(filter(None, value)) if isinstance(value, list) else value
    return Options(**chosen)
