"""The sub-commands that work beside a daemon: their flags, and what runs each.

A command imports what it needs when it runs, so that --help and a wrong flag answer at once.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from flannel_udp.cli import convert
from flannel_udp.cli.flags import FlagParser, options_of
from flannel_udp.cli.go_flags import SECRETS
from flannel_udp.errors import UsageError
from flannel_udp.options import Options

_JSON = "print JSON, for programs"
_SUBNET_FILE = "the daemon's --subnet-file"


@dataclass(frozen=True, slots=True)
class _Command:
    summary: str
    declare: Callable[[FlagParser], None]
    run: Callable[[argparse.Namespace, Options], int | None]  # None counts as 0


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """``argv`` begins with one of NAMES; returns the exit code.

    Variables set the flags that the daemon has too; the command line wins. Raises UsageError.
    """
    name, *arguments = argv
    secrets: list[str] = []  # an operand after a password may be the rest of it, after a space

    def note_secret(operand: str, flag: str) -> None:
        if flag in SECRETS:
            secrets.append(operand)

    try:
        values = parser(name).parse_line(arguments, environ, note_secret)
        return _COMMANDS[name].run(values, options_of(values)) or 0
    except UsageError as error:
        message = str(error)
        for secret in secrets:
            message = message.replace(secret, "...")
        raise UsageError(message) from None


def parser(name: str) -> FlagParser:
    """The parser of one sub-command."""
    command = _COMMANDS[name]
    flags = FlagParser(prog=f"flannel-udp {name}", description=command.summary)
    flags.add_help_flags()
    command.declare(flags)
    return flags


def parsers() -> dict[str, FlagParser]:
    """The parsers of all sub-commands."""
    return {name: parser(name) for name in NAMES}


def _declare_status(flags: FlagParser) -> None:
    flags.add_subnet_file(_SUBNET_FILE)
    flags.add_switch("json", _JSON)
    flags.add_switch("check", "check host, leases and the path to each peer; exit code 1 if bad")


def _status(values: argparse.Namespace, options: Options) -> int:
    from flannel_udp.observe import status_socket, status_view

    ask = partial(status_socket.ask, options.subnet_file)
    status = ask()
    if values.check:
        from flannel_udp.observe.check import check

        show = status_view.show_json_findings if values.json else status_view.show_findings
        return 0 if show(check(status, ask)) else 1
    if values.json:
        status_view.show_json(status)
    else:
        status_view.show(status)
    return 0 if status["ready"] else 1


def _declare_top(flags: FlagParser) -> None:
    flags.add_subnet_file(_SUBNET_FILE)
    flags.add_setting("interval", "SECONDS", "between two refreshes", convert.interval, 1.0)


def _top(values: argparse.Namespace, options: Options) -> None:
    from flannel_udp.observe import status_socket, top

    top.run(partial(status_socket.ask, options.subnet_file), values.interval)


def _cleanup(values: argparse.Namespace, options: Options) -> None:
    from flannel_udp.cli import cleanup

    cleanup.run()


def _declare_etcd(flags: FlagParser) -> None:
    flags.add_iface("where it listens, address or name (default: the default route's)")
    flags.add_setting(
        "network",
        "NETWORK",
        "the containers' network, such as 10.44.0.0/16, required if etcd holds no network config",
        convert.network,
        None,
    )
    flags.add_setting("data-dir", "DIR", "for etcd's data", Path, Path("/var/lib/flannel-udp"))
    flags.add_setting(
        "port", "PORT", "for clients; etcd itself uses the next one", convert.number(1, 65534), 2379
    )
    flags.add_switch("no-systemd", "start a detached process even if systemd runs")
    flags.add_setting(
        "check-version",
        "FILE",
        "start nothing: refuse this etcd if it is older than the last one that used the data, else"
        " record its version, as the unit does before each start",
        str,
        None,
    )
    flags.add_etcd_prefix()


def _etcd(values: argparse.Namespace, options: Options) -> None:
    folder = values.data_dir.absolute()
    if values.check_version:
        from flannel_udp.etcd import program

        program.admit(values.check_version, folder)
        return
    from flannel_udp.cli import first_etcd

    systemd = not values.no_systemd
    first_etcd.run(options, values.network, folder, values.port, systemd=systemd)


def _declare_config(flags: FlagParser) -> None:
    flags.add_argument("action", choices=("show", "set", "validate"), help="what to do")
    flags.add_argument(
        "config",
        nargs="?",
        default=None,
        metavar="JSON",
        help="for set, and for validate instead of the one in etcd; - reads it from stdin",
    )
    flags.add_switch("force", "set it even if leases do not fit it: their hosts get other subnets")
    flags.add_etcd_flags()


def _config(values: argparse.Namespace, options: Options) -> None:
    from flannel_udp.cli import cluster_commands

    cluster_commands.config(values.action, values.config, options, force=values.force)


def _declare_lease(flags: FlagParser) -> None:
    flags.add_argument(
        "action",
        choices=("list", "reserve", "revoke"),
        help="list all; reserve SUBNET PUBLIC_IP for good; revoke SUBNET, whose daemon then exits",
    )
    flags.add_argument(
        "operands", nargs="*", default=[], metavar="SUBNET", help="and PUBLIC_IP, to reserve"
    )
    flags.add_switch("json", _JSON)
    flags.add_etcd_flags()


def _lease(values: argparse.Namespace, options: Options) -> None:
    from flannel_udp.cli import cluster_commands

    cluster_commands.lease(values.action, values.operands, options, as_json=values.json)


def _declare_lab(flags: FlagParser) -> None:
    count = convert.number(1, 100)
    flags.add_setting("hosts", "N", "how many", count, 3)
    flags.add_setting("containers", "N", "on each host", count, 1)
    flags.add_argument(
        "--underlay",
        choices=("direct", "wire"),
        metavar="direct|wire",
        default="direct",
        help="direct: hosts exchange superpackets, as fast as the kernel can; wire: frames of 1500"
        " bytes, as between real network cards (default: direct)",
    )
    default = IPv4Network("10.1.0.0/16")
    flags.add_setting("network", "NETWORK", "of the overlay", convert.network, default)
    flags.add_switch("keep", "keep it running until Ctrl-C")
    flags.add_switch("no-iperf", "do not measure throughput")


def _lab(values: argparse.Namespace, options: Options) -> int:
    from flannel_udp.lab import demo

    return demo.run(values)


def _declare_completion(flags: FlagParser) -> None:
    flags.add_argument("shell", choices=("bash", "zsh"), help="the shell that reads the script")


def _completion(values: argparse.Namespace, options: Options) -> None:
    from flannel_udp.cli.completion import completion

    print(completion(values.shell, parsers()))


_COMMANDS = {
    "completion": _Command(
        "Print a script that completes the command line, to be read by the shell.",
        _declare_completion,
        _completion,
    ),
    "etcd": _Command(
        "Run an etcd on this host, for a first cluster, and print how hosts join it.",
        _declare_etcd,
        _etcd,
    ),
    "cleanup": _Command(
        "Remove the device, firewall rules and blackhole routes that a daemon left on this host."
        " What belongs to a running one stays, and so do leases and subnet.env.",
        lambda flags: None,
        _cleanup,
    ),
    "config": _Command(
        "The network config in etcd: show it, set it, check whether it is valid.",
        _declare_config,
        _config,
    ),
    "lab": _Command(
        "Hosts and containers in network namespaces, with a real etcd and real daemons: ping all"
        " pairs, measure, clean up.",
        _declare_lab,
        _lab,
    ),
    "lease": _Command("The leases of all hosts in etcd.", _declare_lease, _lease),
    "status": _Command("The status of the running daemon.", _declare_status, _status),
    "top": _Command("The traffic with each host, live.", _declare_top, _top),
}
NAMES = frozenset(_COMMANDS)
