"""Writing the overlay's rules into the kernel, and removing them, with iptables or nft.

Everything here concerns the network namespace of the calling thread.
"""

import contextlib
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from enum import Enum, auto
from ipaddress import IPv4Network

from flannel_udp.errors import FirewallError
from flannel_udp.host.firewall import iptables, nftables
from flannel_udp.host.firewall.iptables import Ruleset
from flannel_udp.host.firewall.nftables import Chains, Wanted
from flannel_udp.host.firewall.rules import Overlay, Part, Policy

log = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds for one run of a program: a host may have very many rules
_SYSTEM_PATH = "/usr/sbin:/sbin"  # some services run without these on PATH
_PACKAGES = {"nft": "nftables"}
_LOCK_PATIENCE = 5  # seconds that iptables-restore waits for another program's change
_TRIES = 3  # another daemon may change the rules between our reading and writing
_WAIT_AND_RANDOM_FULLY_SINCE = (1, 6, 2)


class Repair(Enum):
    """What had to be done so that our rules are as they must be."""

    NOTHING = auto()
    MOVED_BEFORE_DOCKER = auto()  # docker's chains came before ours; else nothing was wrong
    WRITTEN = auto()


class Iptables:
    """iptables-save and iptables-restore, by nft or legacy. Its methods raise FirewallError, and
    so do those of Nftables."""

    PROGRAMS = ("iptables-restore", "iptables-save")
    # Of the overlay's own rules, those that it can write: no chain comes after masquerading.
    PARTS = frozenset(Part) - {Part.GUARD}

    def __init__(self) -> None:
        self._restore, self._save = map(_find, self.PROGRAMS)
        self.last_read = Ruleset({}, {})
        version = _run([self._restore, "--version"]).strip()
        self.name = version.replace("iptables-restore", "iptables").replace("-nft ", " ")
        digits = re.search(r"v(\d+(?:\.\d+)*)", version)
        numbers = tuple(map(int, digits[1].split("."))) if digits else (0,)
        self._is_modern = numbers >= _WAIT_AND_RANDOM_FULLY_SINCE

    def read(self) -> Ruleset:
        """What keep_apart compares with. All tables that exist: naming one would make legacy
        iptables create it."""
        self.last_read = Ruleset.parse(_run([self._save]))
        return self.last_read

    def apply(self, policy: Policy) -> Repair:
        """Read, and write the traffic rules that are missing."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(FirewallError):
                return self._apply(policy)
        return self._apply(policy)

    def keep_apart(self, part: Part, overlay: Overlay) -> Repair:
        """Write what is missing of one part of the overlay's own rules."""
        with contextlib.suppress(FirewallError):
            return self._keep_apart(part, overlay)
        self.read()  # another program may have changed the rules
        return self._keep_apart(part, overlay)

    def _keep_apart(self, part: Part, overlay: Overlay) -> Repair:
        wanted = iptables.overlay_rules(part, overlay)
        change = iptables.overlay_change(self.last_read, wanted, overlay.port, part)
        return Repair.WRITTEN if self._write(change) else Repair.NOTHING

    def remove(self, policy: Policy) -> None:
        """Remove the rules of this policy; nothing to do if there are none."""
        self.apply(replace(policy, masquerade=False, forward=False))
        if policy.overlay:
            self.remove_overlay(policy.overlay.port)

    def remove_overlay(self, port: int) -> None:
        self._write(iptables.overlay_change(self.read(), {}, port))

    def _write(self, change: str) -> bool:
        """Returns whether there was anything to write."""
        if change:
            wait = ["--wait", str(_LOCK_PATIENCE)] * self._is_modern
            log.debug("iptables-restore: %s", "; ".join(change.splitlines()))
            _run([self._restore, "--noflush", *wait], change)
        return bool(change)

    def _apply(self, policy: Policy) -> Repair:
        policy = replace(policy, random_fully=policy.random_fully and self._is_modern)
        if not self._write(iptables.change(self.read(), policy)):
            return Repair.NOTHING
        if iptables.is_only_behind_docker(self.last_read, policy):
            return Repair.MOVED_BEFORE_DOCKER
        return Repair.WRITTEN


class Nftables:
    """nft, with chains in a table that is flannel's alone."""

    PROGRAMS = ("nft",)
    PARTS = frozenset(Part)

    def __init__(self, port: int) -> None:
        (self._nft,) = map(_find, self.PROGRAMS)
        self._port = port
        self._last_read: Chains = {}
        self._written: dict[frozenset[str], Chains] = {}
        version = _run([self._nft, "--version"]).split()
        self.name = "nftables " + (version[1] if len(version) > 1 else "")

    def read(self) -> None:
        self._last_read = self.chains()

    def apply(self, policy: Policy) -> Repair:
        self.read()
        return self._establish(nftables.traffic_chains(policy, self._port))

    def keep_apart(self, part: Part, overlay: Overlay) -> Repair:
        return self._establish(nftables.overlay_chains(part, overlay))

    def remove(self, policy: Policy) -> None:
        if own := nftables.of_port(self.chains(), self._port):
            self._write({name: ("", []) for name in own})
            if not self.chains():
                _run([self._nft, "delete", "table", "ip", nftables.TABLE])

    def _establish(self, wanted: Wanted) -> Repair:
        found = self._found(wanted)
        is_wanted = any(rules for _, rules in wanted.values())
        if found == (self._written.get(frozenset(wanted)) if is_wanted else {}):
            return Repair.NOTHING
        self._write(wanted)
        self.read()
        found = self._found(wanted)  # as this version of nft prints them
        # Another program may have changed them in between: then the next check writes them anew.
        if nftables.is_complete(found, wanted):
            self._written[frozenset(wanted)] = found
        return Repair.WRITTEN

    def _found(self, wanted: Wanted) -> Chains:
        return {name: chain for name, chain in self._last_read.items() if name in wanted}

    def chains(self) -> Chains:
        """Of all daemons; none if the table does not exist."""
        try:
            if not nftables.has_table(self._list("tables", "ip")):
                return {}
            return nftables.chains(self._list("table", "ip", nftables.TABLE))
        except (ValueError, KeyError) as error:
            raise FirewallError(
                f"cannot write firewall rules: {self._nft} --json printed no list of chains"
                f" ({error!r}); install nftables anew"
            ) from None

    def _write(self, wanted: Wanted) -> None:
        script = nftables.replacement(wanted)
        log.debug("nft: %s", "; ".join(script.splitlines()))
        _run([self._nft, "-f", "-"], script)

    def _list(self, *what: str) -> str:
        return _run([self._nft, "--json", "--stateless", "list", *what])


Tool = Iptables | Nftables


def require_tool(*, nftables: bool) -> None:
    """Raises FirewallError if the program that would write the rules is missing."""
    for program in (Nftables if nftables else Iptables).PROGRAMS:
        _find(program)


def remove_dead(
    is_served: Callable[[IPv4Network], bool], is_running: Callable[[int], bool]
) -> Iterator[str]:
    """Remove the rules of daemons that are gone; yields what was removed. Raises FirewallError.

    ``is_served`` returns whether a daemon carries the Network, ``is_running`` whether one has the
    port: their rules stay.
    """
    if are_installed(Iptables.PROGRAMS):
        tool = Iptables()
        for network in sorted(iptables.networks(tool.read())):
            if not is_served(network):
                tool.remove(_nothing(network))
                yield f"the iptables rules of {network}"
        for port in sorted(iptables.overlay_ports(tool.read())):
            if not is_running(port):
                tool.remove_overlay(port)
                yield f"the iptables rules of port {port}"
    if are_installed(Nftables.PROGRAMS):
        for port in sorted(nftables.ports(Nftables(0).chains())):
            if not is_running(port):
                Nftables(port).remove(_nothing(IPv4Network(0)))
                yield f"the nftables rules of port {port}"


def _nothing(network: IPv4Network) -> Policy:
    return Policy(network, network, masquerade=False, forward=False)


def _which(program: str) -> str | None:
    """The program's path; None if it is not installed."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}")


def are_installed(programs: Iterable[str]) -> bool:
    return all(map(_which, programs))


def _find(program: str) -> str:
    """The program's path. Raises FirewallError if it is not installed."""
    if found := _which(program):
        return found
    raise FirewallError(
        f"cannot write firewall rules: {program} is not installed; apt-get install"
        f" {_PACKAGES.get(program, 'iptables')}, or start without --ip-masq and with"
        " --iptables-forward-rules=false"
    )


def _run(command: list[str], feed: str = "") -> str:
    """What the program prints when it reads ``feed``. Raises FirewallError.

    Comments of other programs' rules may be in any encoding: undecodable bytes are surrogates.
    """
    program = os.path.basename(command[0])
    try:
        result = subprocess.run(
            command,
            input=feed.encode(errors="surrogateescape"),
            capture_output=True,
            timeout=_PATIENCE,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise FirewallError(
            f"cannot write firewall rules: {program} took longer than {_PATIENCE:g} seconds;"
            " look for a program that holds /run/xtables.lock"
        ) from None
    except OSError as error:
        raise FirewallError(
            f"cannot write firewall rules: {command[0]} does not start: {error.strerror};"
            " install it anew"
        ) from None
    if result.returncode:
        lines = result.stderr.decode(errors="backslashreplace").strip().splitlines()
        reason = next(iter(lines), f"exit code {result.returncode}")
        raise FirewallError(
            f"cannot write firewall rules: {program} says '{reason}'; it needs CAP_NET_ADMIN and"
            " CAP_NET_RAW, and a kernel with netfilter"
        )
    return result.stdout.decode(errors="surrogateescape")
