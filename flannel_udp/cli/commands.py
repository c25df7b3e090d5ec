"""The sub-commands that work beside a daemon: their flags, and what runs each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from flannel_udp.cli.arguments import SECRETS, read_words, spelled
from flannel_udp.cli.flags import Flags, variables
from flannel_udp.errors import UsageError
from flannel_udp.options import Options


@dataclass(frozen=True, slots=True)
class _Command:
    summary: str
    declare: Callable[[Flags], None]
    run: Callable[[argparse.Namespace, Options], int]


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``argv`` begins with one of NAMES; returns the exit code.

    Variables set the flags that the daemon has too; the command line wins. Raises UsageError.
    """
    name, *words = argv
    flags = parser(name)
    known = {word.lstrip("-"): each for each in flags._actions for word in each.option_strings}
    operands: list[str] = []
    secrets: list[str] = []  # what follows a password may be the rest of it, behind a space

    def take(word: str, flag: str) -> None:
        operands.append(word)
        if flag in SECRETS:
            secrets.append(word)

    given = list(read_words(words, known, f"flannel-udp {name}", take))
    try:
        return _run(name, flags, given, operands, environ)
    except UsageError as error:
        said = str(error)
        for secret in secrets:
            said = said.replace(secret, "...")
        raise UsageError(said) from None


def _run(
    name: str,
    flags: Flags,
    given: list[tuple[str, str | None]],
    operands: list[str],
    environ: Mapping[str, str],
) -> int:
    set_by = variables(flags.flags, {flag for flag, _ in given}, environ)
    told = [(flag, environ[variable]) for flag, variable in set_by.items()]
    try:
        values = flags.parse_args([*operands, *spelled([*given, *told])])
    except argparse.ArgumentError as error:
        flag = (error.argument_name or "").lstrip("-")
        subject = f"{set_by.get(flag, error.argument_name)}: " if flag else ""
        raise UsageError(f"{subject}{error.message}; see flannel-udp {name} --help") from None
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(values).items()
        if name in Options.__slots__ and value is not None
    }
    return _COMMANDS[name].run(values, Options(**chosen))


def parser(name: str) -> Flags:
    """The flags of one sub-command."""
    command = _COMMANDS[name]
    flags = Flags(prog=f"flannel-udp {name}", description=command.summary)
    flags.add_help_flags()
    command.declare(flags)
    return flags


def parsers() -> dict[str, Flags]:
    """The flags of all of them."""
    return {name: parser(name) for name in NAMES}


def _declare_status(flags: Flags) -> None:
    flags.add_subnet_file("what the daemon was given")
    flags.add_argument("--json", action="store_true", default=False, help="for programs")
    flags.add_argument(
        "--check",
        action="store_true",
        default=False,
        help="look at the host, the leases and the way to each peer; exit code 1 if any is bad",
    )


def _status(values: argparse.Namespace, options: Options) -> int:
    from flannel_udp.observe import status_socket, status_view

    def ask() -> dict[str, object]:
        return status_socket.ask(options.subnet_file)

    status = ask()
    good = bool(status["ready"])
    if values.check:
        from flannel_udp.observe.check import check

        findings = check(status, ask)
        if values.json:
            good = status_view.show_json_findings(findings)
        else:
            good = status_view.show_findings(findings)
    elif values.json:
        status_view.show_json(status)
    else:
        status_view.show(status)
    return 0 if good else 1


def _declare_top(flags: Flags) -> None:
    flags.add_subnet_file("what the daemon was given")
    flags.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_interval,
        default=1.0,
        help="between two looks (default: 1)",
    )


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a number from 0.1 to 3600 seconds")
    return seconds


def _top(values: argparse.Namespace, options: Options) -> int:
    from flannel_udp.observe import status_socket, top

    top.run(lambda: status_socket.ask(options.subnet_file), values.interval)
    return 0


def _declare_nothing(flags: Flags) -> None:
    del flags


def _cleanup(values: argparse.Namespace, options: Options) -> int:
    from flannel_udp.cli import cleanup

    cleanup.run()
    return 0


def _declare_etcd(flags: Flags) -> None:
    flags.add_iface("where it listens, address or name (default: the default route's)")
    flags.add_argument(
        "--network",
        metavar="NETWORK",
        type=_network,
        default=None,
        help="the containers' network, such as 10.44.0.0/16, needed where etcd holds no network"
        " config yet (default: none)",
    )
    flags.add_argument(
        "--data-dir",
        metavar="DIR",
        type=Path,
        default=Path("/var/lib/flannel-udp"),
        help="for etcd's data (default: /var/lib/flannel-udp)",
    )
    flags.add_argument(
        "--port",
        metavar="PORT",
        type=_port,
        default=2379,
        help="for clients; the next one serves etcd itself (default: 2379)",
    )
    flags.add_argument(
        "--no-systemd",
        action="store_true",
        default=False,
        help="start a detached process, not a unit of systemd, also where systemd runs",
    )
    flags.add_argument(
        "--check-version",
        metavar="FILE",
        default=None,
        help="start nothing: refuse this etcd if it is older than the one that had the data last,"
        " else note its version, as the unit does before each start (default: none)",
    )
    flags.add_etcd_prefix()


def _network(text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no network such as 10.44.0.0/16: {error}") from None


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= 65534:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a port from 1 to 65534")
    return int(text)


def _etcd(values: argparse.Namespace, options: Options) -> int:
    folder = values.data_dir.absolute()
    if values.check_version:
        from flannel_udp.etcd import program as etcd_program

        etcd_program.admit(values.check_version, folder)
        return 0
    from flannel_udp.cli import first_etcd

    first_etcd.run(
        options,
        values.network,
        folder,
        values.port,
        systemd=not values.no_systemd,
    )
    return 0


def _declare_config(flags: Flags) -> None:
    flags.add_argument("action", choices=("show", "set", "validate"), help="what to do")
    flags.add_argument(
        "config",
        nargs="?",
        default=None,
        metavar="JSON",
        help="for set, and for validate instead of the one in etcd; - reads it from stdin",
    )
    flags.add_argument(
        "--force",
        action="store_true",
        default=False,
        help="set it even if leases do not fit it: their hosts get other subnets",
    )
    flags.add_etcd_flags()


def _config(values: argparse.Namespace, options: Options) -> int:
    from flannel_udp.cli import cluster as cluster_commands

    cluster_commands.config(values.action, values.config, options, force=values.force)
    return 0


def _declare_lease(flags: Flags) -> None:
    flags.add_argument(
        "action",
        choices=("list", "reserve", "revoke"),
        help="list all; reserve SUBNET PUBLIC_IP, for ever; revoke SUBNET, whose daemon then ends",
    )
    flags.add_argument(
        "words", nargs="*", default=[], metavar="SUBNET", help="and PUBLIC_IP, to reserve"
    )
    flags.add_argument("--json", action="store_true", default=False, help="for programs")
    flags.add_etcd_flags()


def _lease(values: argparse.Namespace, options: Options) -> int:
    from flannel_udp.cli import cluster as cluster_commands

    cluster_commands.lease(values.action, values.words, options, as_json=values.json)
    return 0


def _declare_lab(flags: Flags) -> None:
    for name, default, text in (("hosts", 3, "how many"), ("containers", 1, "on each host")):
        flags.add_argument(
            f"--{name}",
            metavar="N",
            type=_count,
            default=default,
            help=f"{text} (default: {default})",
        )
    flags.add_argument(
        "--underlay",
        choices=("direct", "wire"),
        metavar="direct|wire",
        default="direct",
        help="direct: hosts exchange superpackets, as fast as the kernel can; wire: frames of 1500"
        " bytes, as between real network cards (default: direct)",
    )
    flags.add_argument(
        "--network",
        metavar="NETWORK",
        type=_network,
        default=IPv4Network("10.1.0.0/16"),
        help="of the overlay (default: 10.1.0.0/16)",
    )
    flags.add_argument(
        "--keep", action="store_true", default=False, help="leave it up until Ctrl-C"
    )
    flags.add_argument(
        "--no-iperf", action="store_true", default=False, help="do not measure throughput"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= 100:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a number from 1 to 100")
    return int(text)


def _lab(values: argparse.Namespace, options: Options) -> int:
    from flannel_udp.lab import demo as lab_demo

    return lab_demo.run(values)


def _declare_completion(flags: Flags) -> None:
    flags.add_argument("shell", choices=("bash", "zsh"), help="whose words to print")


def _completion(values: argparse.Namespace, options: Options) -> int:
    from flannel_udp.cli import completion as reference

    print(reference.completion(values.shell, parsers()))
    return 0


_COMMANDS = {
    "completion": _Command(
        "Print a script that completes the command line, to be read by the shell.",
        *(_declare_completion, _completion),
    ),
    "etcd": _Command(
        "Run an etcd on this host, for a first cluster, and say how hosts join it.",
        *(_declare_etcd, _etcd),
    ),
    "cleanup": _Command(
        "Remove the device, firewall rules and blackhole routes that a daemon left on this host."
        " What belongs to a running one stays, and so do leases and subnet.env.",
        _declare_nothing,
        _cleanup,
    ),
    "config": _Command(
        "The network config in etcd: show it, set it, see whether it is valid.",
        *(_declare_config, _config),
    ),
    "lab": _Command(
        "Hosts and containers in network namespaces, with a real etcd and real daemons: ping all"
        " pairs, measure, clean up.",
        *(_declare_lab, _lab),
    ),
    "lease": _Command("The leases of all hosts in etcd.", _declare_lease, _lease),
    "status": _Command("What the running daemon says of itself.", _declare_status, _status),
    "top": _Command("The traffic with each host, live.", _declare_top, _top),
}
NAMES = frozenset(_COMMANDS)
