"""/metrics: the status as Prometheus metrics, with the name and help text of each."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flannel_udp.backends.pump.ends import names
from flannel_udp.backends.pump.pump import ALL_OFFLOADS
from flannel_udp.cluster.lease import FollowState
from flannel_udp.observe.health import Exposition
from flannel_udp.observe.readiness import Status

_TUNNEL = ("network", "subnet", "public_ip", "interface", "device", "preset")
_COUNTERS = {
    "tun_read_packets": "Packets from this host's containers; a superpacket counts as one",
    "tun_read_bytes": "Bytes of packets from this host's containers",
    "tun_read_superpackets": "Superpackets from this host's containers",
    "udp_sent_packets": "Datagrams sent",
    "udp_sent_bytes": "Bytes of the packets in datagrams sent",
    "udp_segmented_sends": "Sends that carried several datagrams (UDP GSO)",
    "udp_received_packets": "Datagrams received, including those refused",
    "udp_received_bytes": "Bytes of the packets in datagrams received",
    "udp_merged_receives": "Receives that brought several datagrams (UDP GRO)",
    "tun_written_packets": "Packets written to the tunnel device; a superpacket counts as one",
    "tun_written_bytes": "Bytes of packets written to the tunnel device",
    "tun_written_superpackets": "Superpackets written to the tunnel device",
    "send_fallbacks": "Superpackets that the socket refused, sent packet by packet",
    "write_fallbacks": "Superpackets that the tunnel refused, written packet by packet",
    "icmp_replies": "ICMP net unreachable messages sent to this host's containers",
    "icmp_suppressed": "ICMP net unreachable messages not sent: the rate limit or RFC 1122",
    "send_pauses": "Times the tunnel was not read because the socket was full",
    "receive_errors": "Errors that the socket returned instead of a datagram",
    "wakeups": "Times the worker thread woke",
    "udp_overflows": "Datagrams dropped because the socket's receive buffer was full",
}
_PEER = {
    "sent_packets": "Packets sent to the peer",
    "sent_bytes": "Bytes of packets sent to the peer",
    "received_packets": "Packets received from the peer",
    "received_bytes": "Bytes of packets received from the peer",
    "dropped_packets": "Packets that the kernel refused to send to the peer",
}


def exposition(read: Callable[[], Status]) -> Exposition:
    """The answer to /metrics, made of the status that ``read`` returns at each request."""
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
        return []  # without this, registering calls collect to learn the names

    def collect(self) -> Iterator[Metric]:
        status = self._read()
        yield _labelled("flannel_build_info", "The program", {"version": status["version"]})
        yield _gauge("flannel_ready", "Whether containers can rely on the overlay", status["ready"])
        if "stats" not in status:  # it is still starting
            return
        tunnel = {name: str(status[name]) for name in _TUNNEL}
        yield _labelled("flannel_tunnel_info", "What is fixed until the daemon ends", tunnel)
        yield _gauge("flannel_mtu_bytes", "MTU of the tunnel", status["mtu"])
        if not status["reservation"]:  # a reservation never expires
            left = status["lease_seconds_left"]
            yield _gauge("flannel_lease_remaining_seconds", "Time until our lease expires", left)
        changed = "Whether the network config in etcd differs from the one in use"
        yield _gauge("flannel_config_changed", changed, bool(status["config_changed"]))
        conflict = "Whether another daemon uses our PublicIP"
        yield _gauge("flannel_public_ip_conflict", conflict, bool(status["public_ip_conflict"]))
        yield from _etcd(status["etcd"])
        yield from _offloads(status)
        held = "Leases that etcd lost with its data and whose routes are kept"
        yield _gauge("flannel_held_leases", held, len(status["held"]))
        yield from _pump(status["stats"])
        yield _gauge("flannel_peers", "Hosts that have routes", len(status["peers"]))
        yield from _peers(status["peers"])


def _offloads(status: Status) -> Iterator[Metric]:
    used = {name: name in status["offloads"] for name in names(ALL_OFFLOADS)}
    yield _flags("flannel_offload_enabled", "Offloads in use", "offload", used)
    refused = {
        "TSO": "TCP" in status["refused_superpackets"],
        "USO": "UDP" in status["refused_superpackets"],
        "UDP GSO": sum(peer["refuses_gso"] for peer in status["peers"]),
    }
    now = "Uses of offloads that the kernel refuses now; of UDP GSO the number of peers"
    yield _flags("flannel_offload_refused", now, "offload", refused)


def _etcd(etcd: Status) -> Iterator[Metric]:
    states = {each.value: each.value == etcd["state"] for each in FollowState}
    yield _flags("flannel_etcd_state", "State of the watch of all leases", "state", states)
    revision = "Revision of etcd that the routes correspond to"
    yield _gauge("flannel_etcd_revision", revision, etcd["revision"])
    silence = "Time since etcd last answered"
    yield _gauge("flannel_etcd_silence_seconds", silence, etcd["silent_seconds"])
    resyncs = "Times all leases were read again because etcd had compacted or lost its history"
    yield CounterMetricFamily("flannel_etcd_resyncs", resyncs, etcd["resyncs"])
    losses = "Times etcd came back with other data than before"
    yield CounterMetricFamily("flannel_etcd_history_losses", losses, etcd["history_losses"])
    contested = "Whether another host claims our subnet in data that replaced etcd's"
    yield _gauge("flannel_lease_contested", contested, bool(etcd["lease_contested"]))
    removed = "Old leases of ours that restored data brought back and that were removed"
    yield CounterMetricFamily("flannel_stale_leases_removed", removed, etcd["stale_leases_removed"])


def _pump(stats: dict[str, int]) -> Iterator[Metric]:
    """The pump's counters, most under their own names."""
    drops = CounterMetricFamily(
        "flannel_dropped_packets", "Packets dropped", labels=("direction", "reason")
    )
    for name, value in stats.items():
        if name == "routes":
            yield _gauge("flannel_routes", "Routes in the table", value)
        elif name == "cpu_ns":
            cpu = "CPU time of the worker thread"
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
