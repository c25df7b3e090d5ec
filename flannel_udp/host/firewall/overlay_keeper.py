"""Keeping the overlay's own datagrams apart from all other connections of the host.

Masquerading keeps a container's source port if it can. A container that sends from the overlay's
port to a peer would so get the overlay's own 4-tuple, and what the peer sends with it.
"""

import logging
from collections.abc import Sequence

from flannel_udp.errors import FirewallError
from flannel_udp.host.firewall.rules import Overlay, Part
from flannel_udp.host.firewall.tools import Repair, Tool
from flannel_udp.log_limits import ChangeLog

log = logging.getLogger(__name__)

# What the lack of a part means, and what helps.
_WITHOUT = {
    Part.ZONE: "a container that this host masquerades can take over what peers send to this host:"
    " load the kernel module xt_CT, or use a kernel with CONFIG_NF_CONNTRACK_ZONES",
    Part.PORT: "NAT rules of this host may change the address or port of the overlay's datagrams:"
    " load the kernel module xt_nat, or install nftables",
    Part.GUARD: "containers that this host masquerades, and its users, can send datagrams as its"
    " overlay: install nftables, and use a kernel with it",
}


class OverlayKeeper:
    """Keeps each part in force, by the first tool that can write it; one thread uses it."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._changes = {part: ChangeLog(log) for part in Part}
        self._kept: dict[Part, str] = {}  # by which tool
        self.missing: dict[Part, str] = {}

    def check(self, tools: Sequence[Tool]) -> bool:
        """Write what is missing; returns whether that had been there before. The tools have read
        the rules just now, and the first is preferred."""
        restored = {part for part in Part if self._restores(part, tools)}
        return bool(restored)

    def _restores(self, part: Part, tools: Sequence[Tool]) -> bool:
        reason, changes, before = "", self._changes[part], self._kept.pop(part, None)
        for tool in tools:
            if part not in tool.PARTS:
                continue
            try:
                repair = tool.keep_apart(part, self._overlay)
            except FirewallError as error:
                reason = reason or str(error)
            else:
                self.missing.pop(part, None)
                self._kept[part] = tool.name
                changes.works("the overlay is kept apart from other connections again")
                return repair is Repair.WRITTEN and before == tool.name
        self.missing[part] = f"{_WITHOUT[part]} ({reason or 'no tool for it is installed'})"
        changes.failed(self.missing[part])
        return False
