"""The command-line parser, the flags that commands share, and the daemon's own flags (pure)."""

import argparse
import functools
import textwrap
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NoReturn

from flannel_udp.cli import convert
from flannel_udp.cli.go_flags import joined, read_flags
from flannel_udp.errors import UsageError
from flannel_udp.options import LOG_FORMATS, OFFLOAD_PRESETS, SOURCE_CHECKS, Options

IGNORED_VALUES = ("kube-api-url", "kube-annotation-prefix", "kubeconfig-file", "net-config-path")
IGNORED_BOOLEANS = ("set-node-network-unavailable", "use-multi-cluster-cidr")
KLOG_VALUES = ("vmodule", "log_backtrace_at", "stderrthreshold", "log_dir", "log_file")
KLOG_BOOLEANS = ("logtostderr", "alsologtostderr", "skip_headers", "skip_log_headers")

# The variables that Red Hat's packages of flannel set in /etc/sysconfig/flanneld, the older name
# last. A third one, FLANNEL_OPTIONS, holds arguments for the command line.
_PACKAGE_VARIABLES = {
    "etcd-endpoints": ("FLANNEL_ETCD_ENDPOINTS", "FLANNEL_ETCD"),
    "etcd-prefix": ("FLANNEL_ETCD_PREFIX", "FLANNEL_ETCD_KEY"),
}

_USAGE = """\
flannel-udp [FLAG]...                     the daemon
       flannel-udp status [--help]               the status of the running daemon
       flannel-udp top [--help]                  the traffic with each host, live
       flannel-udp etcd [--help]                 an etcd for a first cluster
       flannel-udp config show|set|validate      the network config in etcd
       flannel-udp lease list|reserve|revoke     the leases in etcd
       flannel-udp lab [--help]                  hosts and containers to try it out
       flannel-udp completion bash|zsh           completion for the shell
       flannel-udp mk-docker-opts [--help]       docker's options from subnet.env
       flannel-udp cleanup [--help]              remove what a killed daemon left here"""
_DESCRIPTION = "Lease a subnet in etcd and carry container packets over UDP, as flannel's udp does."
_EPILOG = """\
--flag=value, --flag value and -flag=value are the same; booleans take only --flag=false.
FLANNELD_ETCD_PREFIX in the environment sets --etcd-prefix, and so on; the command line wins."""

_DEFAULTS = Options()


class FlagParser(argparse.ArgumentParser):
    """An argparse parser that follows Go's rules for flags and also reads variables.

    ``flags`` holds, by name, those that a variable can set. A flag that is not given is absent from
    the result: Options has the defaults.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(
            formatter_class=functools.partial(_HelpFormatter, max_help_position=40, width=100),
            argument_default=argparse.SUPPRESS,
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
            **more,
        )
        self.flags: dict[str, argparse.Action] = {}
        self._group: Any = self

    def parse_line(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        on_operand: Callable[[str, str], None],
    ) -> argparse.Namespace:
        """The values from the command line, else from variables.

        ``on_operand`` gets each operand and the name of the flag before it, or "", and may raise.
        Raises UsageError, which names the flag or the variable that is wrong.
        """
        known = {text.lstrip("-"): each for each in self._actions for text in each.option_strings}
        operands: list[str] = []

        def take(operand: str, flag: str) -> None:
            on_operand(operand, flag)
            operands.append(operand)

        given = list(read_flags(arguments, known, self.prog, take))
        set_by = _variables(self.flags, {name for name, _ in given}, environ)
        given += [(name, environ[variable]) for name, variable in set_by.items()]
        try:
            return self.parse_args([*operands, *joined(given)])
        except argparse.ArgumentError as error:
            name = error.argument_name or ""
            if name.startswith("--"):
                subject = set_by.get(name.removeprefix("--"), name)
                raise UsageError(f"{subject}: {error.message}") from None
            subject = f"{name}: " if name else ""
            raise UsageError(f"{subject}{error.message}; see {self.prog} --help") from None

    def add_etcd_flags(self) -> None:
        """How etcd is reached, in a group of their own."""
        self._group = self.add_argument_group("etcd")
        self._value("etcd-endpoints", "URL,...", "servers, tried in this order", convert.endpoints)
        self.add_etcd_prefix()
        self._value("etcd-cafile", "FILE", "the servers' CA (default: the system's)", convert.path)
        self._value("etcd-certfile", "FILE", "certificate of this host", convert.path)
        self._value("etcd-keyfile", "FILE", "key of that certificate", convert.path)
        self._value("etcd-username", "NAME", "user of etcd", str)
        self._value("etcd-password", "SECRET", "its password; better in the environment", str)

    def add_etcd_prefix(self) -> None:
        self._value("etcd-prefix", "KEY", "where the config and the leases are", convert.prefix)

    def add_iface(self, text: str) -> None:
        self._value("iface", "IFACE", text, str, action="append")

    def add_subnet_file(self, text: str) -> None:
        self._value("subnet-file", "FILE", text, convert.path)

    def add_help_flags(self) -> None:
        self._add("help", "print this help", action="help")
        self._add("h", argparse.SUPPRESS, action="help")

    def add_switch(self, name: str, text: str) -> None:
        """A boolean of a sub-command; no variable sets it."""
        self.add_argument(f"--{name}", action="store_true", default=False, help=text)

    def add_setting(
        self, name: str, metavar: str, text: str, kind: Callable[[str], object], default: object
    ) -> None:
        """A value of a sub-command; no variable sets it."""
        shown = "none" if default is None else default
        text += f" (default: {shown})"
        self.add_argument(f"--{name}", metavar=metavar, type=kind, default=default, help=text)

    def _value(
        self, name: str, metavar: str, text: str, kind: Callable[[str], object], **more: Any
    ) -> None:
        if "(default: " not in text:
            default = _default(more.get("dest", name))
            shown = ",".join(default) if isinstance(default, tuple) else default
            text += f" (default: {'none' if shown in (None, '') else shown})"
        self._add(name, text, metavar=metavar, type=kind, **more)

    def _boolean(self, name: str, text: str, **more: Any) -> None:
        text += f" (default: {str(bool(_default(name))).lower()})"
        self._add(name, text, type=convert.boolean, nargs="?", const=True, metavar="", **more)

    def _add(self, name: str, text: str, **more: Any) -> None:
        self.flags[name] = self._group.add_argument(f"--{name}", help=text, **more)

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


class DaemonFlags(FlagParser):
    """The parser of the daemon's command line."""

    def __init__(self) -> None:
        super().__init__(prog="flannel-udp", usage=_USAGE, description=_DESCRIPTION, epilog=_EPILOG)
        self.add_etcd_flags()
        self._add_lease_flags()
        self._add_interface_flags()
        self._add_running_flags()
        self._add_firewall_flags()
        for name in (*IGNORED_VALUES, *KLOG_VALUES):
            self._add(name, argparse.SUPPRESS)
        for name in ("kube-subnet-mgr", *IGNORED_BOOLEANS, *KLOG_BOOLEANS):
            self._add(name, argparse.SUPPRESS, type=convert.boolean, nargs="?", const=True)

    def _add_lease_flags(self) -> None:
        self._group = self.add_argument_group("leases")
        self._value(
            "subnet-lease-renew-margin",
            "MINUTES",
            "renew the 24-hour lease when this many minutes are left, 1 to 1439",
            convert.number(1, 1439, " minutes"),
        )
        self._value(
            "stale-hold",
            "TIME",
            "how long to keep the routes of leases that etcd lost with its data, such as 90s, 30m"
            " or 24h; 0 is off (default: 24h)",
            convert.seconds,
        )

    def _add_interface_flags(self) -> None:
        self._group = self.add_argument_group(
            "external interface (the default route's if none of these is given)"
        )
        self.add_iface("its address or name; may be repeated")
        text = "matches its address, else its name; may be repeated"
        self._value("iface-regex", "REGEX", text, convert.regex, action="append")
        self._value("iface-can-reach", "ADDR", "the interface that routes to ADDR", convert.ipv4)
        self._value(
            "public-ip", "ADDR", "where others send to (default: its address)", convert.ipv4
        )
        self._value("public-ipv6", "ADDR", "accepted, has no effect", convert.ipv6)

    def _add_running_flags(self) -> None:
        self._group = self.add_argument_group("running")
        self.add_subnet_file("written for docker and others: the subnet and its MTU")
        text = "serve /healthz, /readyz and /metrics at this address"
        self._value("healthz-ip", "ADDR", text, convert.listen_address)
        self._value("healthz-port", "PORT", "and at this port; 0 is off", convert.number(0, 65535))
        self._value(
            "source-check",
            "CHECK",
            "full: accept packets only from the public IPs and the port of the overlay's hosts;"
            " address: from any port there, for networks that rewrite ports; off: from anywhere",
            convert.one_of(SOURCE_CHECKS),
        )
        self._value(
            "offload",
            "PRESET",
            "auto: what the kernel has; full: all, or fail; tso: without UDP GSO and GRO; none:"
            " packet by packet",
            convert.one_of(OFFLOAD_PRESETS),
        )
        self._value(
            "busy-poll-us",
            "MICROSECONDS",
            "poll for packets up to this long before sleeping, while that finds some: lower"
            " latency, more CPU time; 0 is off",
            convert.number(0, 1_000_000, " microseconds"),
        )
        self._boolean("ip-blackhole-route", "drop packets to our subnet that no container takes")
        text = "log more: 1 adds decisions, 2 also every check and call"
        kind = convert.number(0, 99)
        self._value("v", "N", text, kind, dest="verbosity", nargs="?", const=1)
        self._value("log-format", "FORMAT", "text or JSON lines", convert.one_of(LOG_FORMATS))
        self._boolean("version", "print the version", action=_Version)
        self.add_help_flags()

    def _add_firewall_flags(self) -> None:
        self._group = self.add_argument_group("firewall")
        self._boolean("ip-masq", "masquerade traffic that leaves the overlay, and none inside it")
        self._boolean("ip-masq-fully-random-disable", "masquerade with predictable ports")
        self._boolean("iptables-forward-rules", "accept forwarded overlay packets")
        kind = convert.number(1, 86400, " seconds")
        self._value("iptables-resync", "SECONDS", "time between checks of the rules", kind)


def options_of(values: argparse.Namespace) -> Options:
    """Options from parsed flags; one with an empty value has its default."""
    chosen: dict[str, Any] = {
        name: tuple(filter(None, value)) if isinstance(value, list) else value
        for name, value in vars(values).items()
        if name in Options.__slots__ and value is not None
    }
    return Options(**chosen)


def _variables(
    flags: Mapping[str, argparse.Action], given: Container[str], environ: Mapping[str, str]
) -> dict[str, str]:
    """The variable that sets each flag which is not ``given``.

    That is ``FLANNELD_<FLAG>``, before those of flannel's packages; an empty one sets nothing.
    """
    found = {}
    for flag, action in flags.items():
        if flag in given or action.nargs == 0 or isinstance(action, _Version):
            continue
        names = "FLANNELD_" + flag.upper().replace("-", "_"), *_PACKAGE_VARIABLES.get(flag, ())
        if used := next(filter(environ.get, names), None):
            found[flag] = used
    return found


class VersionRequested(Exception):  # noqa: N818  # it is no error
    """--version was given: print it, whatever the other flags are."""


class _Version(argparse.Action):
    """As in flannel a boolean, which may be false. Raises VersionRequested if it is true."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, *_: object
    ) -> None:
        if values:
            raise VersionRequested


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows ``--flag=VALUE``, which is right for every flag."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        return "  ".join(action.option_strings) + (f"={action.metavar}" if action.metavar else "")

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def _default(flag: str) -> object:
    return getattr(_DEFAULTS, flag.replace("-", "_"), None)
