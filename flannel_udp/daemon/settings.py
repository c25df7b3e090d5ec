"""The settings of this start: what was chosen, and what each part is told of it."""

import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from flannel_udp.backends.pump.device_and_route_repair import TunnelPlan
from flannel_udp.backends.pump.ends import Tunnel, wants_vnet_header
from flannel_udp.backends.pump.pump import PumpConfig
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.lease import OwnLease
from flannel_udp.handover.state import Head
from flannel_udp.handover.takeover import here
from flannel_udp.host import subnet_env, tunnel_device
from flannel_udp.host.firewall.rules import Overlay, Policy
from flannel_udp.host.interface_choice import ExternalInterface
from flannel_udp.observe.status import StartFacts
from flannel_udp.options import Options


@dataclass(frozen=True, slots=True)
class Settings:
    """Fixed from the moment the lease is held until the daemon ends."""

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
        return tunnel_device.mtu_inside(self.external.mtu, self.config.mtu_cap)

    def facts(self) -> StartFacts:
        return StartFacts(
            self.options,
            network=self.config.network,
            subnet=self.own.subnet,
            public_ip=self.public_ip,
            port=self.config.port,
            interface=self.external.name,
            device=self.tunnel.device,
            mtu=self.mtu,
        )

    def head(self, own: OwnLease) -> Head:
        """For the next process; ``own`` is the lease as it is now."""
        return Head(
            place=here(),
            prefix=self.options.etcd_prefix,
            config=self.config,
            own=own,
            address=self.external.address,
            device=self.tunnel.device,
            vnet_header=wants_vnet_header(self.options.offload),
        )

    def pump_config(self) -> PumpConfig:
        return self.tunnel.pump_config(self.options, self.config, self.own)

    def firewall_policy(self) -> Policy:
        return Policy(
            self.config.network,
            self.own.subnet,
            masquerade=self.options.ip_masq,
            forward=self.options.iptables_forward_rules,
            random_fully=not self.options.ip_masq_fully_random_disable,
            overlay=Overlay(
                self.external.address,
                self.config.port,
                owner=os.fstat(self.tunnel.udp_fd).st_uid,
                is_translated=self.public_ip != self.external.address,
            ),
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
