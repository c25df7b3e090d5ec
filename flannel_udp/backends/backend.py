"""The interface of every backend; docs/internals.md says what else a new one needs."""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

Routes = Mapping[IPv4Network, IPv4Address]  # subnet -> PublicIP of the host that leases it


class Backend(Protocol):
    """Carries packets to the PublicIPs that routes name. Its methods raise OSError."""

    def replace(self, routes: Routes) -> None:
        """Make these the routes."""

    def update(self, added: Routes, removed: Iterable[IPv4Network]) -> None:
        """Add or change some routes and withdraw others; the rest stay."""
