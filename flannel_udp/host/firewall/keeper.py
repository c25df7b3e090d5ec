"""The overlay's rules in the host's firewall: the one door to iptables and nft.

Everything here speaks of the network namespace of the calling thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import Any, Protocol

from flannel_udp.errors import FirewallError
from flannel_udp.host.firewall import iptables as iptables_rules
from flannel_udp.host.firewall import nftables as nftables_rules
from flannel_udp.host.firewall.iptables import Ruleset
from flannel_udp.host.firewall.policy import Policy
from flannel_udp.log_limits import ChangeLog
from flannel_udp.logs import DETAIL

log = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds for one run of a tool: a host may have very many rules
_LOCK_PATIENCE = 5  # seconds that iptables-restore waits for another program's change
_TRIES = 3  # another daemon may have changed what we have just read
_WAIT_AND_RANDOM_FULLY_SINCE = (1, 6, 2)
_SYSTEM_PATH = "/usr/sbin:/sbin"  # some services run without these on PATH
_PACKAGES = {"nft": "nftables"}


class Tool(Protocol):
    """Writes a policy into the kernel and takes it out again. Its methods raise FirewallError."""

    name: str

    def apply(self, policy: Policy) -> bool:
        """Bring the rules about; whether anything had to be changed."""

    def remove(self, policy: Policy) -> None:
        """Take out the rules of this policy; nothing to do if there are none."""


class Iptables:
    """iptables-save and iptables-restore, whichever of nft and legacy is behind them."""

    PROGRAMS = ("iptables-restore", "iptables-save")

    def __init__(self) -> None:
        self._restore, self._save = map(_find, self.PROGRAMS)
        self.seen = Ruleset({}, {})
        version = _run([self._restore, "--version"]).strip()
        self.name = version.replace("iptables-restore", "iptables").replace("-nft ", " ")
        digits = re.search(r"v(\d+(?:\.\d+)*)", version)
        numbers = tuple(map(int, digits[1].split("."))) if digits else (0,)
        self._is_modern = numbers >= _WAIT_AND_RANDOM_FULLY_SINCE

    def read(self) -> Ruleset:
        """All tables that exist: naming one would make legacy iptables create it."""
        self.seen = Ruleset.parse(_run([self._save]))
        return self.seen

    def apply(self, policy: Policy) -> bool:
        for _ in range(_TRIES - 1):
            with contextlib.suppress(FirewallError):
                return self._apply(policy)
        return self._apply(policy)

    def remove(self, policy: Policy) -> None:
        self.apply(replace(policy, masquerade=False, forward=False))

    def _apply(self, policy: Policy) -> bool:
        policy = replace(policy, random_fully=policy.random_fully and self._is_modern)
        change = iptables_rules.change(self.read(), policy)
        if change:
            wait = ["--wait", str(_LOCK_PATIENCE)] * self._is_modern
            log.debug("iptables-restore: %s", "; ".join(change.splitlines()))
            _run([self._restore, "--noflush", *wait], change)
        return bool(change)


class Nftables:
    """nft, with chains in a table that is flannel's alone."""

    PROGRAMS = ("nft",)

    def __init__(self, port: int) -> None:
        (self._nft,) = map(_find, self.PROGRAMS)
        self._port = port
        self._written: dict[str, str] | None = None
        version = _run([self._nft, "--version"]).split()
        self.name = "nftables " + (version[1] if len(version) > 1 else "")

    def apply(self, policy: Policy) -> bool:
        if not (policy.masquerade or policy.forward):
            self.remove(policy)
            return False
        if self._ours() == self._written:
            return False
        rules = nftables_rules.replacement(policy, self._port)
        log.debug("nft: %s", "; ".join(rules.splitlines()))
        _run([self._nft, "-f", "-"], rules)
        found = self._ours()  # in nft's own words, which differ between versions
        # Another program may have been at them in between: then the next check writes them anew.
        is_whole = "".join(found.values()).count(" comment ") == rules.count(" comment ")
        self._written = found if is_whole else None
        return True

    def remove(self, policy: Policy) -> None:
        if not self._ours():
            return
        nothing = replace(policy, masquerade=False, forward=False)
        _run([self._nft, "-f", "-"], nftables_rules.replacement(nothing, self._port))
        if not nftables_rules.chains(self.listing()):
            _run([self._nft, "delete", "table", "ip", nftables_rules.TABLE])

    def listing(self) -> str:
        """The table's text; "" if it does not exist."""
        if f"table ip {nftables_rules.TABLE}\n" not in _run([self._nft, "list", "tables", "ip"]):
            return ""
        return _run([self._nft, "-s", "list", "table", "ip", nftables_rules.TABLE])

    def _ours(self) -> dict[str, str]:
        names = nftables_rules.chain_names(self._port)
        chains = nftables_rules.chains(self.listing())
        return {name: chains[name] for name in names if name in chains}


@dataclass(frozen=True, slots=True)
class _Tools:
    """The one that writes, and iptables, where the host has it, to see what others wrote."""

    writer: Tool
    iptables: Iptables | None


class Firewall:
    """Keeps a policy in force from ``__enter__`` to ``__exit__``; owns one thread.

    ``nftables`` is EnableNFTables of the network config, ``resync`` the seconds between checks,
    ``stale`` a Network that this daemon served before. Entering raises FirewallError if
    masquerading was asked for and cannot be had; without forward rules packets may still pass, so
    there it warns and goes on trying. It looks for rules of others that do harm in any case, for
    docker may start, or be installed, at any time. ``on_fatal`` hears of an error of our own, and
    the thread ends.
    """

    def __init__(
        self,
        policy: Policy,
        port: int,
        on_fatal: Callable[[BaseException], None],
        *,
        nftables: bool,
        resync: float,
        stale: IPv4Network | None = None,
    ) -> None:
        self._policy, self._port, self._nftables = policy, port, nftables
        self._on_fatal = on_fatal
        self._resync, self._stale = resync, stale
        self._wanted = policy.masquerade or policy.forward
        self._tools: _Tools | None = None
        self._established = False
        self._problem: str | None = None
        self._complaints: list[str] = []
        self._changes = ChangeLog(log)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="firewall", daemon=True)

    def __enter__(self) -> Firewall:
        try:
            self._apply()
        except FirewallError as error:
            if self._policy.masquerade:
                raise
            if self._wanted:
                self._failed(error)
        self._look_around()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if not self._tools:
            return
        try:
            self._tools.writer.remove(self._policy)
        except FirewallError as error:
            log.warning("%s; firewall rules may be left: run flannel-udp cleanup", error)

    @property
    def missing(self) -> str | None:
        """Why the rules were not in place even once; None if they were, or if none are wanted."""
        return self._problem if self._wanted and not self._established else None

    def report(self) -> dict[str, Any]:
        """For the status: the tool, what it was asked for, and what is wrong."""
        problems = [self._problem] if self._problem else []
        return {
            "tool": self._tools.writer.name if self._tools else None,
            "masquerade": self._policy.masquerade,
            "forward": self._policy.forward,
            "problems": problems + self._complaints,
        }

    def _begin(self) -> None:
        """Find the tools and bring the rules about."""
        policy = self._policy
        self._tools = self._find_tools()
        self._clean(self._tools)
        self._tools.writer.apply(policy)
        wanted = {"masquerade": policy.masquerade, "forward": policy.forward}
        if names := [name for name, is_wanted in wanted.items() if is_wanted]:
            log.info("firewall rules: %s (%s)", " and ".join(names), self._tools.writer.name)
        self._look_around()

    def _find_tools(self) -> _Tools:
        if not self._nftables:
            iptables = Iptables()
            return _Tools(iptables, iptables)
        return _Tools(Nftables(self._port), Iptables() if _has(Iptables.PROGRAMS) else None)

    def _clean(self, tools: _Tools) -> None:
        """What an earlier run left with the other tool, or for another Network."""
        with contextlib.suppress(FirewallError):
            (Nftables(self._port) if not self._nftables else Iptables()).remove(self._policy)
        if self._stale and tools.iptables:
            tools.iptables.remove(replace(self._policy, network=self._stale))

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._resync):
                self._check()
        except Exception as error:
            log.exception("keeping the firewall rules ended")
            self._on_fatal(error)

    def _check(self) -> None:
        if self._wanted or not self._established:
            try:
                self._apply()
            except FirewallError as error:
                if self._wanted:
                    self._failed(error)
        self._look_around()

    def _apply(self) -> None:
        """Bring the rules about and say what was new. Raises FirewallError."""
        if self._tools is None:
            tools = self._find_tools()
            self._clean(tools)
            self._tools = tools
        changed = self._tools.writer.apply(self._policy)
        self._problem = None
        if not self._established:
            self._established = True
            if self._wanted:
                self._changes.works("the firewall can be used now")
                log.info("firewall rules: %s (%s)", self._names(), self._tools.writer.name)
        elif changed:
            self._changes.failed("the firewall rules were changed by another program: restored")
        else:
            self._changes.works("the firewall rules are in place again")
            log.log(DETAIL, "the firewall rules are as they must be")

    def _failed(self, error: FirewallError) -> None:
        self._problem = str(error)
        then = "trying again" if self._established else "going on without forward rules, not ready"
        self._changes.failed(f"{error}; {then}")

    def _names(self) -> str:
        wanted = {"masquerade": self._policy.masquerade, "forward": self._policy.forward}
        return " and ".join(name for name, is_wanted in wanted.items() if is_wanted)

    def _look_around(self) -> None:
        """Warn once of each rule by which another program harms the overlay."""
        tools = self._tools
        if tools and not tools.iptables and _has(Iptables.PROGRAMS):
            with contextlib.suppress(FirewallError):
                tools = self._tools = replace(tools, iptables=Iptables())
        if not (tools and tools.iptables):
            return
        with contextlib.suppress(FirewallError):
            if tools.writer is not tools.iptables or not self._wanted:
                tools.iptables.read()
            known = self._complaints
            self._complaints = iptables_rules.complaints(
                tools.iptables.seen, self._policy, nftables=self._nftables
            )
            for complaint in self._complaints:
                if complaint not in known:
                    log.warning("%s", complaint)


def require_tool(*, nftables: bool) -> None:
    """Raises FirewallError if the program that would write the rules is missing."""
    for program in (Nftables if nftables else Iptables).PROGRAMS:
        _find(program)


def remove_dead(
    is_served: Callable[[IPv4Network], bool], is_running: Callable[[int], bool]
) -> Iterator[str]:
    """Remove what daemons that are gone left; yields a word on each. Raises FirewallError.

    ``is_served`` tells whether a daemon carries the Network, ``is_running`` whether one has the
    port: their rules stay.
    """
    if _has(Iptables.PROGRAMS):
        iptables = Iptables()
        for network in sorted(iptables_rules.networks(iptables.read())):
            if not is_served(network):
                iptables.remove(_nothing(network))
                yield f"the iptables rules of {network}"
    if _has(Nftables.PROGRAMS):
        for port in sorted(nftables_rules.ports(Nftables(0).listing())):
            if not is_running(port):
                Nftables(port).remove(_nothing(IPv4Network(0)))
                yield f"the nftables rules of port {port}"


def _nothing(network: IPv4Network) -> Policy:
    return Policy(network, network, masquerade=False, forward=False)


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}")


def _has(programs: Iterable[str]) -> bool:
    return all(map(_which, programs))


def _find(program: str) -> str:
    if found := _which(program):
        return found
    raise FirewallError(
        f"cannot write firewall rules: {program} is not installed; apt-get install"
        f" {_PACKAGES.get(program, 'iptables')}, or start without --ip-masq and with"
        " --iptables-forward-rules=false"
    )


def _run(command: list[str], feed: str = "") -> str:
    """What the tool prints, fed with ``feed``.

    Others' comments may be bytes of any encoding: they come and go as surrogates.
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
        said = next(iter(lines), f"exit code {result.returncode}")
        raise FirewallError(
            f"cannot write firewall rules: {program} says '{said}'; it needs CAP_NET_ADMIN and"
            " CAP_NET_RAW, and a kernel with netfilter"
        )
    return result.stdout.decode(errors="surrogateescape")
