"""The daemon's flags: names, conversions, help (pure)."""

from __future__ import annotations

import argparse
import functools
import re
import textwrap
from collections.abc import Callable, Container, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, NoReturn

from flannel_udp.cli.arguments import SHOWN_CHARACTERS
from flannel_udp.host.goregex import compile_go
from flannel_udp.options import LOG_FORMATS, OFFLOAD_PRESETS, Options, clean_prefix

IGNORED_VALUES = ("kube-api-url", "kube-annotation-prefix", "kubeconfig-file", "net-config-path")
IGNORED_BOOLEANS = ("set-node-network-unavailable", "use-multi-cluster-cidr")
KLOG_VALUES = ("vmodule", "log_backtrace_at", "stderrthreshold", "log_dir", "log_file")
KLOG_BOOLEANS = ("logtostderr", "alsologtostderr", "skip_headers", "skip_log_headers")

# What Red Hat's packages of flannel have in /etc/sysconfig/flanneld, the older name last. Their
# third one, FLANNEL_OPTIONS, is words for the command line.
_OF_PACKAGES = {
    "etcd-endpoints": ("FLANNEL_ETCD_ENDPOINTS", "FLANNEL_ETCD"),
    "etcd-prefix": ("FLANNEL_ETCD_PREFIX", "FLANNEL_ETCD_KEY"),
}

_USAGE = """\
flannel-udp [FLAG]...                     the daemon
       flannel-udp status [--help]               what the running daemon says of itself
       flannel-udp top [--help]                  the traffic with each host, live
       flannel-udp etcd [--help]                 an etcd for a first cluster
       flannel-udp config show|set|validate      the network config in etcd
       flannel-udp lease list|reserve|revoke     the leases in etcd
       flannel-udp lab [--help]                  hosts and containers to try it out
       flannel-udp completion bash|zsh           for the shell
       flannel-udp mk-docker-opts [--help]       docker's options from subnet.env
       flannel-udp cleanup [--help]              remove what a killed daemon left here"""
_DESCRIPTION = "Lease a subnet in etcd and carry container packets over UDP, as flannel's udp does."
_EPILOG = """\
--flag=value, --flag value and -flag=value are the same; booleans take only --flag=false.
FLANNELD_ETCD_PREFIX in the environment sets --etcd-prefix, and so on; the command line wins."""

_BOOLEANS = {  # Go's strconv.ParseBool
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_DEFAULTS = Options()


def variables(
    flags: Mapping[str, argparse.Action], given: Container[str], environ: Mapping[str, str]
) -> dict[str, str]:
    """The variable that sets each flag which the command line has not ``given``.

    That is ``FLANNELD_<FLAG>``, before those of flannel's packages; an empty one sets nothing.
    """
    found = {}
    for flag, action in flags.items():
        if flag in given or action.nargs == 0 or isinstance(action, _Version):
            continue
        for name in ("FLANNELD_" + flag.upper().replace("-", "_"), *_OF_PACKAGES.get(flag, ())):
            if environ.get(name):
                found[flag] = name
                break
    return found


class Flags(argparse.ArgumentParser):
    """A parser that knows every flag as ``--name=value``; ``flags`` holds them by name.

    What is not given is absent from the result: Options supplies the defaults. Raises
    argparse.ArgumentError, whose ``argument_name`` is the flag.
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

    def add_etcd_flags(self) -> None:
        """How etcd is reached, in a group of their own."""
        self._group = self.add_argument_group("etcd")
        self._value("etcd-endpoints", "URL,...", "servers, tried in this order", _endpoints)
        self.add_etcd_prefix()
        self._value("etcd-cafile", "FILE", "CA of the servers (default: the system's)", _path)
        self._value("etcd-certfile", "FILE", "certificate of this host", _path)
        self._value("etcd-keyfile", "FILE", "key of that certificate", _path)
        self._value("etcd-username", "NAME", "user of etcd", str)
        self._value("etcd-password", "SECRET", "better set in the environment", str)

    def add_etcd_prefix(self) -> None:
        self._value("etcd-prefix", "KEY", "where the config and the leases are", _prefix)

    def add_iface(self, text: str) -> None:
        self._value("iface", "IFACE", text, str, action="append")

    def add_subnet_file(self, text: str) -> None:
        self._value("subnet-file", "FILE", text, _path)

    def add_help_flags(self) -> None:
        self._add("help", "print this", action="help")
        self._add("h", argparse.SUPPRESS, action="help")

    def _value(
        self, name: str, metavar: str, text: str, convert: Callable[[str], object], **more: Any
    ) -> None:
        if "(default: " not in text:
            default = _default(more.get("dest", name))
            shown = ",".join(default) if isinstance(default, tuple) else default
            text += f" (default: {'none' if shown in (None, '') else shown})"
        self._add(name, text, metavar=metavar, type=convert, **more)

    def _boolean(self, name: str, text: str, **more: Any) -> None:
        text += f" (default: {str(bool(_default(name))).lower()})"
        self._add(name, text, type=_boolean, nargs="?", const=True, metavar="", **more)

    def _hidden(self, name: str, *, boolean: bool = False) -> None:
        if boolean:
            self._add(name, argparse.SUPPRESS, type=_boolean, nargs="?", const=True)
        else:
            self._add(name, argparse.SUPPRESS)

    def _add(self, name: str, text: str, **more: Any) -> None:
        self.flags[name] = self._group.add_argument(f"--{name}", help=text, **more)

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


class FlagParser(Flags):
    """The daemon's."""

    def __init__(self) -> None:
        super().__init__(prog="flannel-udp", usage=_USAGE, description=_DESCRIPTION, epilog=_EPILOG)
        self.add_etcd_flags()

        self._group = self.add_argument_group("leases")
        self._value(
            "subnet-lease-renew-margin",
            "MINUTES",
            "renew the lease of 24 hours when so many minutes are left, 1 to 1439",
            _number(1, 1439, " minutes"),
        )
        self._value(
            "stale-hold",
            "TIME",
            "keep the routes of hosts that are missing after etcd lost its data so long, as in 90s,"
            " 30m or 24h; 0 is off (default: 24h)",
            _seconds,
        )

        self._group = self.add_argument_group(
            "external interface (the default route's if none of these is given)"
        )
        again = "; may be given again"
        self.add_iface("address or name" + again)
        self._value(
            "iface-regex", "REGEX", "for addresses, else names" + again, _regex, action="append"
        )
        self._value("iface-can-reach", "ADDR", "the interface that routes to ADDR", _ipv4)
        self._value("public-ip", "ADDR", "where other hosts send to (default: its address)", _ipv4)
        self._value("public-ipv6", "ADDR", "accepted, has no effect", _ipv6)

        self._group = self.add_argument_group("running")
        self.add_subnet_file("tells docker and others the subnet")
        self._value(
            "healthz-ip", "ADDR", "where /healthz, /readyz and /metrics listen", _listen_address
        )
        self._value("healthz-port", "PORT", "their port; 0 is off", _number(0, 65535, ""))
        self._value(
            "source-check",
            "on|off",
            "drop packets from addresses that are no host's public IP; off for hosts that send from"
            " another address (default: on)",
            _on_or_off,
        )
        self._value(
            "offload",
            "PRESET",
            "auto uses what the kernel has, full insists on all of it, tso leaves UDP GSO and GRO"
            " out, none sends packet by packet",
            _offload,
        )
        self._value(
            "busy-poll-us",
            "MICROSECONDS",
            "look for packets up to this long before sleeping, while that pays: lower latency for"
            " a busier CPU; 0 is off",
            _number(0, 1_000_000, " microseconds"),
        )
        self._boolean("ip-blackhole-route", "drop what is for no container of our subnet")
        self._value(
            "v",
            "N",
            "log more: 1 what is decided, 2 also every look and call",
            _number(0, 99, ""),
            dest="verbosity",
            nargs="?",
            const=1,
        )
        self._value("log-format", "FORMAT", "text or json, one line each", _log_format)
        self._boolean("version", "print the version", action=_Version)
        self.add_help_flags()

        self._group = self.add_argument_group("firewall")
        self._boolean("ip-masq", "masquerade what leaves the overlay, and nothing inside it")
        self._boolean("ip-masq-fully-random-disable", "masquerade with predictable ports")
        self._boolean("iptables-forward-rules", "accept forwarded overlay packets")
        self._value(
            "iptables-resync",
            "SECONDS",
            "time between checks of the rules",
            _number(1, 86400, " seconds"),
        )

        for name in (*IGNORED_VALUES, *KLOG_VALUES):
            self._hidden(name)
        for name in ("kube-subnet-mgr", *IGNORED_BOOLEANS, *KLOG_BOOLEANS):
            self._hidden(name, boolean=True)


class VersionAsked(Exception):  # noqa: N818  # it is no error
    """Nothing else is wanted, whatever the other flags are."""


class _Version(argparse.Action):
    """As in flannel a boolean, which may be false. Raises VersionAsked."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, *_: object
    ) -> None:
        if values:
            raise VersionAsked


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


def _wrong(text: str, why: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text[:SHOWN_CHARACTERS]!r} {why}")


def _boolean(text: str) -> bool:
    if text not in _BOOLEANS:
        raise _wrong(text, "is neither true nor false")
    return _BOOLEANS[text]


def _offload(text: str) -> str:
    if text not in OFFLOAD_PRESETS:
        raise _wrong(text, "is none of " + ", ".join(OFFLOAD_PRESETS))
    return text


def _log_format(text: str) -> str:
    if text not in LOG_FORMATS:
        raise _wrong(text, "is none of " + ", ".join(LOG_FORMATS))
    return text


def _on_or_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise _wrong(text, "is neither on nor off")
    return text == "on"


def _number(lowest: int, highest: int, unit: str) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not (re.fullmatch("[0-9]{1,9}", text) and lowest <= int(text) <= highest):
            raise _wrong(text, f"is not a whole number from {lowest} to {highest}{unit}")
        return int(text)

    return convert


def _seconds(text: str) -> int:
    match = re.fullmatch("([0-9]{1,7})([smh]?)", text)
    if not match:
        raise _wrong(text, "is no time such as 90s, 30m or 24h")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _path(text: str) -> Path | None:
    path = Path(text)
    if text and path.name in ("", ".."):
        raise _wrong(text, "does not name a file")
    return path if text else None


def _ipv4(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text) if text else None
    except ValueError:
        raise _wrong(text, "is not an IPv4 address") from None


def _ipv6(text: str) -> IPv6Address | None:
    try:
        return IPv6Address(text) if text else None
    except ValueError:
        raise _wrong(text, "is not an IPv6 address") from None


def _listen_address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise _wrong(text, "is not an IP address") from None


def _regex(text: str) -> str:
    try:
        compile_go(text)
    except re.error as error:
        raise _wrong(text, f"is not a regular expression: {error}") from None
    return text


def _endpoints(text: str) -> tuple[str, ...]:
    endpoints = tuple(part.strip() for part in text.split(",") if part.strip())
    if not endpoints:
        raise _wrong(text, "holds no URL such as http://10.0.0.1:2379")
    return endpoints


def _prefix(text: str) -> str:
    prefix = clean_prefix(text)
    if prefix == ".":  # flannel would use the key "config", which nobody means
        raise _wrong(text, "is no key such as /coreos.com/network")
    return prefix
