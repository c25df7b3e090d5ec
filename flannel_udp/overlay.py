"""What a start of the daemon has settled on, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from flannel_udp import netdev, subnet_env
from flannel_udp.config import NetworkConfig, Options
from flannel_udp.firewall_rules import Policy
from flannel_udp.interface import ExternalInterface
from flannel_udp.lease import OwnLease
from flannel_udp.pump import PumpConfig
from flannel_udp.tunnel import Tunnel
from flannel_udp.tunnel_keeper import TunnelPlan


@dataclass(frozen=True, slots=True)
class Overlay:
    """Fixed from the lease on, until the daemon ends."""

    options: Options
    config: NetworkConfig
    external: ExternalInterface
    public_ip: IPv4Address
    own: OwnLease
    tunnel: Tunnel

    @property
    def tun_address(self) -> IPv4Address:
        return self.own.subnet.network_address

    @property
    def mtu(self) -> int:
        return netdev.tunnel_mtu(self.external.mtu, self.config.mtu_cap)

    def pump_config(self) -> PumpConfig:
        return self.tunnel.pump_config(self.options, self.config, self.own)

    def firewall_policy(self) -> Policy:
        return Policy(
            self.config.network,
            self.own.subnet,
            masquerade=self.options.ip_masq,
            forward=self.options.iptables_forward_rules,
            random_fully=not self.options.ip_masq_fully_random_disable,
        )

    def tunnel_plan(self) -> TunnelPlan:
        return TunnelPlan(
            self.own.subnet, self.mtu, self.config.network, self.external, self.config.port
        )

    def subnet_env(self) -> subnet_env.SubnetEnv:
        gateway = IPv4Interface(
            (int(self.own.subnet.network_address) + 1, self.own.subnet.prefixlen)
        )
        return subnet_env.SubnetEnv(
            self.config.network, gateway, self.mtu, ip_masq=self.options.ip_masq
        )
