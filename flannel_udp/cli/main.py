"""The command line: flags and ``FLANNELD_*`` variables, sub-commands, exit codes."""

import argparse
import difflib
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence

from flannel_udp import __version__
from flannel_udp.cli import commands
from flannel_udp.cli.flags import (
    IGNORED_BOOLEANS,
    IGNORED_VALUES,
    DaemonFlags,
    VersionRequested,
    options_of,
)
from flannel_udp.cli.go_flags import SECRETS, SHOWN_CHARACTERS
from flannel_udp.errors import FlannelError, UsageError
from flannel_udp.logs import complain, start_logging

log = logging.getLogger(__name__)


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
        from flannel_udp.cli import mk_docker_opts

        return mk_docker_opts.main(arguments[1:])
    if arguments and arguments[0] in commands.NAMES:
        start_logging(os.environ, "text")
        logging.getLogger("flannel_udp").setLevel(logging.WARNING)  # they print their results
        return commands.run(arguments, os.environ)
    return _run_daemon(arguments)


def _run_daemon(arguments: list[str]) -> int:
    # SIGUSR2 (restart) stays pending until the daemon handles it; its default is to kill.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        values = _parse(arguments, os.environ)
    except UsageError as error:
        return _end(error, _likely_log_format(arguments, os.environ))
    options = options_of(values)
    start_logging(os.environ, options.log_format, options.verbosity)
    try:
        _check_kubernetes_flags(values)
        from flannel_udp.handover import takeover
        from flannel_udp.host import systemd

        taken = takeover.take_over(options, systemd.inherited_descriptors())
        # This import takes a quarter of a second; the pump that was taken over runs meanwhile.
        from flannel_udp.daemon import daemon

        return daemon.run(options, taken)
    except FlannelError as error:
        return _end(error, options.log_format)


def _end(error: FlannelError, log_format: str) -> int:
    """Raise the error; if the log is JSON, log it as the last object and return the exit code."""
    if log_format != "json":
        raise error
    start_logging(os.environ, log_format)
    log.error("%s", error)
    return 1


def _likely_log_format(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    """The --log-format of a command line that cannot be parsed."""
    found = re.findall(r"(?:^| )--?log-format[= ](\w+)", " ".join(arguments))
    return found[-1] if found else environ.get("FLANNELD_LOG_FORMAT", "")


def _parse(argv: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
    """Raises UsageError; ``--help`` and ``--version`` print and raise SystemExit(0)."""
    flags = DaemonFlags()

    def refuse(operand: str, flag: str) -> None:
        raise UsageError(_misplaced(operand, flag, flags.flags))

    try:
        return flags.parse_line(argv, environ, refuse)
    except VersionRequested:
        print(__version__)
        raise SystemExit(0) from None


def _misplaced(operand: str, flag: str, flags: Mapping[str, argparse.Action]) -> str:
    """The error about an operand after ``flag``; "" if it is the first argument."""
    shown = "a word" if flag in SECRETS else repr(operand[:SHOWN_CHARACTERS])
    if not flag:
        close = difflib.get_close_matches(operand, [*commands.NAMES, "mk-docker-opts"], n=1)
        hint = f"did you mean flannel-udp {close[0]}?" if close else "see flannel-udp --help"
        return f"{shown} is neither a flag nor a command; {hint}"
    boolean = flags[flag].nargs == "?"
    hint = f"write --{flag}=VALUE" if boolean else "see flannel-udp --help"
    return f"{shown} stands where a flag should; {hint}"


def _check_kubernetes_flags(values: argparse.Namespace) -> None:
    for name in (*IGNORED_VALUES, *IGNORED_BOOLEANS):
        if hasattr(values, name.replace("-", "_")):
            log.warning("--%s has no effect: subnets are leased in etcd, not by Kubernetes", name)
    if getattr(values, "kube_subnet_mgr", False):
        raise UsageError(
            "--kube-subnet-mgr cannot be used: subnets are leased in etcd, not by Kubernetes;"
            " leave it out or run flanneld on this host"
        )
