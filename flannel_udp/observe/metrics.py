"""The status as Prometheus reads it: the names of the metrics and what becomes of each counter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flannel_udp.backends.pump.ends import names
from flannel_udp.backends.pump.pump import ALL_OFFLOADS
from flannel_udp.cluster.follower import FollowState
from flannel_udp.observe.health import Exposition
from flannel_udp.observe.readiness import Status

_TUNNEL = ("network", "subnet", "public_ip", "interface", "device", "preset")
_COUNTERS = {
    "tun_read_packets": "Packets from this host's containers, a superpacket being one",
    "tun_read_bytes": "Bytes of packets from this host's containers",
    "tun_read_superpackets": "Packets from this host's containers that hold many",
    "udp_sent_packets": "Datagrams sent",
    "udp_sent_bytes": "Bytes of the packets in datagrams sent",
    "udp_segmented_sends": "Sends that carried several datagrams (UDP GSO)",
    "udp_received_packets": "Datagrams received, refused ones too",
    "udp_received_bytes": "Bytes of the packets in datagrams received",
    "udp_merged_receives": "Receives that brought several datagrams (UDP GRO)",
    "tun_written_packets": "Packets handed to this host's kernel, a superpacket being one",
    "tun_written_bytes": "Bytes of packets handed to this host's kernel",
    "tun_written_superpackets": "Packets handed to this host's kernel that hold many",
    "send_fallbacks": "Superpackets the socket refused, which were sent packet by packet",
    "write_fallbacks": "Superpackets the tunnel refused, which were written packet by packet",
    "icmp_replies": "ICMP net unreachable sent to this host's containers",
    "icmp_suppressed": "ICMP net unreachable not sent, by the rate limit or RFC 1122",
    "send_pauses": "Times the socket was full and the tunnel had to wait",
    "receive_errors": "Errors the socket reported instead of a datagram",
    "wakeups": "Times the thread that carries the packets woke",
    "udp_overflows": "Datagrams the kernel dropped because that thread was too slow",
}
_PEER = {
    "sent_packets": "Packets sent to the peer",
    "sent_bytes": "Bytes of packets sent to the peer",
    "received_packets": "Packets received from the peer",
    "received_bytes": "Bytes of packets received from the peer",
    "dropped_packets": "Packets the kernel refused to send to the peer",
}


def exposition(read: Callable[[], Status]) -> Exposition:
    """What /metrics answers, made of the status that ``read`` returns at that moment."""
    registry = CollectorRegistry()
    registry.register(_StatusCollector(read))
    ProcessCollector(registry=registry)

    def expose(accept: str) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    return expose


class _StatusCollector(Collector):
    def __init__(self, read: Callable[[], Status]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        return []  # else registering would ask for the status to learn the names

    def collect(self) -> Iterator[Metric]:
        status = self._read()
        yield _labelled("flannel_build_info", "The program", {"version": status["version"]})
        yield _gauge("flannel_ready", "Whether containers can rely on the overlay", status["ready"])
        if "stats" not in status:  # it is still starting
            return
        tunnel = {name: str(status[name]) for name in _TUNNEL}
        yield _labelled("flannel_tunnel_info", "What the daemon has settled on", tunnel)
        yield _gauge("flannel_mtu_bytes", "MTU of the tunnel", status["mtu"])
        if not status["reservation"]:  # which never ends
            left = status["lease_seconds_left"]
            yield _gauge("flannel_lease_remaining_seconds", "Until our lease runs out", left)
        changed = "Whether the network config in etcd is another than the one in use"
        yield _gauge("flannel_config_changed", changed, bool(status["config_changed"]))
        conflict = "Whether another daemon uses our PublicIP too"
        yield _gauge("flannel_public_ip_conflict", conflict, bool(status["public_ip_conflict"]))
        yield from _etcd(status["etcd"])
        yield _flags(
            *("flannel_offload_enabled", "What makes packets cheap and is in use", "offload"),
            {name: name in status["offloads"] for name in names(ALL_OFFLOADS)},
        )
        yield _flags(
            *(
                "flannel_offload_refused",
                "What the kernel refuses to do with it, just now",
                "offload",
            ),
            {
                "TSO": "TCP" in status["refused_superpackets"],
                "USO": "UDP" in status["refused_superpackets"],
                "UDP GSO": sum(peer["refuses_gso"] for peer in status["peers"]),
            },
        )
        held = "Leases whose routes stay although etcd lost them with its data"
        yield _gauge("flannel_held_leases", held, len(status["held"]))
        yield from _pump(status["stats"])
        yield _gauge("flannel_peers", "Hosts that a route leads to", len(status["peers"]))
        yield from _peers(status["peers"])


def _etcd(etcd: Status) -> Iterator[Metric]:
    states = {each.value: each.value == etcd["state"] for each in FollowState}
    yield _flags("flannel_etcd_state", "State of the watch of all leases", "state", states)
    revision = "Revision of etcd up to which the routes are those of the leases"
    yield _gauge("flannel_etcd_revision", revision, etcd["revision"])
    silence = "Since etcd was last heard of"
    yield _gauge("flannel_etcd_silence_seconds", silence, etcd["silent_seconds"])
    resyncs = "Times all leases were read anew because etcd's history was gone"
    yield CounterMetricFamily("flannel_etcd_resyncs", resyncs, etcd["resyncs"])
    losses = "Times etcd came back with other data than it had"
    yield CounterMetricFamily("flannel_etcd_history_losses", losses, etcd["history_losses"])
    contested = "Whether another host claims our subnet in data that replaced etcd's"
    yield _gauge("flannel_lease_contested", contested, bool(etcd["lease_contested"]))
    removed = "Old leases of ours that such data brought back and that were removed"
    yield CounterMetricFamily("flannel_stale_leases_removed", removed, etcd["stale_leases_removed"])


def _pump(stats: dict[str, int]) -> Iterator[Metric]:
    """The pump's counters under their own names."""
    drops = CounterMetricFamily(
        "flannel_dropped_packets", "Packets not carried", labels=("direction", "reason")
    )
    for name, value in stats.items():
        if name == "routes":
            yield _gauge("flannel_routes", "Routes in the table", value)
        elif name == "cpu_ns":
            cpu = "CPU time of the thread that carries the packets"
            yield CounterMetricFamily("flannel_worker_cpu_seconds", cpu, value / 1e9)
        elif name.startswith("drop_"):
            direction, _, reason = name.removeprefix("drop_").partition("_")
            drops.add_metric((direction, reason), value)
        else:
            yield CounterMetricFamily(f"flannel_{name}", _COUNTERS[name], value)
    yield drops


def _peers(peers: list[Status]) -> Iterator[Metric]:
    for name, text in _PEER.items():
        family = CounterMetricFamily(f"flannel_peer_{name}", text, labels=("peer",))
        for peer in peers:
            family.add_metric((peer["public_ip"],), peer[name])
        yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, float(value))


def _labelled(name: str, text: str, labels: dict[str, str]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), 1)
    return family


def _flags(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for each, value in values.items():
        family.add_metric((each,), float(value))
    return family
