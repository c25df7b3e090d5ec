"""Keeping the overlay's firewall rules in force, and noticing rules of others that harm it."""

import contextlib
import logging
import time
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

from flannel_udp.errors import FirewallError
from flannel_udp.host.firewall import iptables
from flannel_udp.host.firewall.overlay_keeper import OverlayKeeper
from flannel_udp.host.firewall.rules import Part, Policy
from flannel_udp.host.firewall.tools import Iptables, Nftables, Repair, Tool
from flannel_udp.log_limits import ChangeLog, Seen
from flannel_udp.logs import DETAIL
from flannel_udp.threads import Service

log = logging.getLogger(__name__)

_DOCKER_START = 60.0  # seconds: docker writes its chains one after another while it starts


class Firewall(Service):
    """Keeps a policy in force from ``start`` to ``__exit__``, which removes the rules.

    Starting raises FirewallError if masquerading was asked for and cannot be had. Without forward
    rules packets may still pass, so their lack is only logged, and they are tried again. Rules of
    others that do harm are looked for in any case: docker may start, or be installed, at any time.
    """

    def __init__(
        self,
        policy: Policy,
        port: int,
        *,
        nftables: bool,
        resync: float,
        stale: IPv4Network | None = None,
    ) -> None:
        """``nftables`` is EnableNFTables of the network config, ``resync`` the seconds between
        checks, ``stale`` a Network that this daemon served before."""
        super().__init__("firewall", None)
        self._policy, self._port, self._nftables = policy, port, nftables
        self._resync, self._stale = resync, stale
        wanted = {"masquerade": policy.masquerade, "forward": policy.forward}
        self._wanted = " and ".join(name for name, is_wanted in wanted.items() if is_wanted)
        self._writer: Tool | None = None  # of the traffic rules
        self._other: Tool | None = None  # reads what others wrote, and stands in
        self._overlay = OverlayKeeper(policy.overlay) if policy.overlay else None
        self._established = False
        self._problem: str | None = None
        self._complaints: list[str] = []
        self._changes = ChangeLog(log)
        self._moves: Seen[str] = Seen(quiet=_DOCKER_START, most=1)

    def start(self) -> None:
        self._check(must_work=self._policy.masquerade)
        super().start()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for tool in self._tools():
            try:
                tool.remove(self._policy)
            except FirewallError as error:
                if tool is self._writer:
                    log.warning("%s; firewall rules may be left: run flannel-udp cleanup", error)

    @property
    def unready_reason(self) -> str | None:
        """Why the rules were not in place even once; None if they were, or if none are wanted."""
        return self._problem if self._wanted and not self._established else None

    def report(self) -> dict[str, Any]:
        """For the status: the tool, what it was asked for, and what is wrong."""
        missing = dict(self._overlay.missing) if self._overlay else {}
        zone = missing.pop(Part.ZONE, None)
        problems = [each for each in (self._problem, zone) if each]
        return {
            "tool": self._writer.name if self._writer else None,
            "masquerade": self._policy.masquerade,
            "forward": self._policy.forward,
            "problems": problems + self._complaints,
            "notes": list(missing.values()),
        }

    def _serve(self) -> None:
        while not self._stopping.wait(self._resync):
            self._check()

    def _check(self, *, must_work: bool = False) -> None:
        repair = Repair.NOTHING
        try:
            repair = self._apply()
        except FirewallError as error:
            if must_work:
                raise
            if self._wanted:
                self._failed(error)
        self._look_for_harmful_rules()
        if self._overlay and self._overlay.check(self._tools()):
            repair = Repair.WRITTEN
        if self._problem is None:
            self._log(repair)

    def _apply(self) -> Repair:
        """Write the traffic rules that are missing. Raises FirewallError."""
        if self._writer is None:
            writer = self._open(nftables=self._nftables)
            self._remove_leftovers(writer)
            self._writer = writer
        repair = self._writer.apply(self._policy)
        self._problem = None
        if self._established:
            return repair
        self._established = True
        if self._wanted:
            self._changes.works("the firewall can be used now")
            log.info("firewall rules: %s (%s)", self._wanted, self._writer.name)
        return Repair.NOTHING

    def _log(self, repair: Repair) -> None:
        if repair is Repair.MOVED_BEFORE_DOCKER:
            is_new = self._moves.is_new("docker", time.monotonic())
            log.log(
                logging.INFO if is_new else logging.DEBUG,
                "docker put its chains before flannel's in FORWARD: moved flannel's before them",
            )
        elif repair is Repair.WRITTEN:
            self._changes.failed("the firewall rules were changed by another program: restored")
        else:
            self._changes.works("the firewall rules are in place again")
            log.log(DETAIL, "the firewall rules are as they must be")

    def _tools(self) -> list[Tool]:
        return [tool for tool in (self._writer, self._other) if tool]

    def _open(self, *, nftables: bool) -> Tool:
        return Nftables(self._port) if nftables else Iptables()

    def _remove_leftovers(self, writer: Tool) -> None:
        """Remove what an earlier run wrote with the other tool, or for another Network."""
        tools = [writer]
        with contextlib.suppress(FirewallError):
            tools.append(self._open(nftables=not self._nftables))
            tools[1].remove(self._policy)
        for tool in tools:
            if self._stale and isinstance(tool, Iptables):
                tool.remove(replace(self._policy, network=self._stale, overlay=None))

    def _failed(self, error: FirewallError) -> None:
        self._problem = str(error)
        then = "trying again" if self._established else "going on without forward rules, not ready"
        self._changes.failed(f"{error}; {then}")

    def _look_for_harmful_rules(self) -> None:
        """Warn once of each rule by which another program harms the overlay."""
        with contextlib.suppress(FirewallError):
            if not self._other:
                self._other = self._open(nftables=not self._nftables)
            self._other.read()
        for tool in self._tools():
            if isinstance(tool, Iptables):
                known, self._complaints = (
                    self._complaints,
                    iptables.complaints(tool.last_read, self._policy, nftables=self._nftables),
                )
                for complaint in self._complaints:
                    if complaint not in known:
                        log.warning("%s", complaint)
