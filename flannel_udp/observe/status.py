"""Gathers the status that the socket, /metrics and the command line show."""

import os
from dataclasses import KW_ONLY, asdict, dataclass
from ipaddress import IPv4Address, IPv4Network

from flannel_udp.backends.pump.ends import names, superpackets
from flannel_udp.backends.pump.pump import Pump
from flannel_udp.clock import boottime
from flannel_udp.cluster.config_watch import ConfigWatch
from flannel_udp.cluster.follower import Follower
from flannel_udp.cluster.lease_keeper import LeaseKeeper
from flannel_udp.host.firewall.rule_keeper import Firewall
from flannel_udp.host.tunnel_device import queue_drops
from flannel_udp.observe.readiness import Status
from flannel_udp.options import Options
from flannel_udp.routing.reconciler import Reconciler

# Counted by the kernel: packets that did not fit into the queue of the tunnel device.
QUEUE_DROPS = "drop_tun_queue_full"


@dataclass(frozen=True, slots=True)
class StartFacts:
    """What is fixed from the lease on until the daemon ends."""

    options: Options
    _: KW_ONLY
    network: IPv4Network
    subnet: IPv4Network
    public_ip: IPv4Address
    port: int
    interface: str
    device: str
    mtu: int


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Gathers the status from the objects that own its parts; any thread may call."""

    facts: StartFacts
    keeper: LeaseKeeper
    follower: Follower
    config_watch: ConfigWatch
    reconciler: Reconciler
    pump: Pump
    firewall: Firewall

    def report(self) -> Status:
        """Addresses and subnets are strings, spans of time are seconds."""
        facts, deadline, now = self.facts, self.keeper.own.deadline, boottime()
        return {
            "network": str(facts.network),
            "subnet": str(facts.subnet),
            "public_ip": str(facts.public_ip),
            "port": facts.port,
            "interface": facts.interface,
            "device": facts.device,
            "preset": facts.options.offload,
            "kernel": os.uname().release,
            "offloads": names(self.pump.offloads),
            "refused_superpackets": superpackets(self.pump.refused_offloads),
            "mtu": facts.mtu,
            "firewall": self.firewall.report(),
            "config_changed": self.config_watch.difference,
            "public_ip_conflict": self.keeper.conflict,
            "reservation": deadline is None,
            "lease_seconds_left": None if deadline is None else round(deadline - now, 1),
            "etcd": {
                **self._etcd_options(),
                "state": self.follower.state.value,
                "revision": self.follower.revision,
                "resyncs": self.follower.resyncs,
                "history_losses": self.follower.history_losses,
                "lease_contested": self.keeper.contest,
                "stale_leases_removed": self.keeper.stale_removed,
                "silent_seconds": round(now - self.follower.last_contact, 1),
            },
            "held": [
                {
                    "subnet": str(held.lease.subnet),
                    "public_ip": str(held.lease.public_ip),
                    "seconds_left": round(held.until - now, 1),
                }
                for held in self.reconciler.held()
            ],
            "stats": self.pump.stats() | {QUEUE_DROPS: queue_drops(facts.device)},
            "peers": self._peers(now),
        }

    def _etcd_options(self) -> Status:
        options = self.facts.options
        return {
            "endpoints": options.etcd_endpoints,
            "prefix": options.etcd_prefix,
            "cafile": options.etcd_cafile and str(options.etcd_cafile),
            "certfile": options.etcd_certfile and str(options.etcd_certfile),
            "keyfile": options.etcd_keyfile and str(options.etcd_keyfile),
        }

    def _peers(self, now: float) -> list[Status]:
        subnets = self.reconciler.subnets_by_peer()
        since = self.reconciler.known_since()
        return [
            {
                **asdict(peer),
                "public_ip": str(peer.public_ip),
                "subnets": [str(subnet) for subnet in subnets.get(peer.public_ip, ())],
                "age_seconds": round(now - since.get(peer.public_ip, now), 1),
            }
            for peer in sorted(self.pump.peers(), key=lambda peer: peer.public_ip)
        ]
