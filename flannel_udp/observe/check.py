"""``flannel-udp status --check``: gathers the facts of host, leases and peers, and judges them."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from flannel_udp.cluster.registry import Registry
from flannel_udp.errors import FlannelError
from flannel_udp.etcd.client import Etcd
from flannel_udp.host import interfaces, sysctl
from flannel_udp.observe import check_rules
from flannel_udp.observe.check_peers import check_peers
from flannel_udp.observe.check_rules import Finding, bad
from flannel_udp.observe.readiness import Status
from flannel_udp.options import Options


def check(status: Status, read: Callable[[], Status]) -> Iterator[Finding]:
    """``read`` returns the status of a later moment. Needs root."""
    yield from check_rules.daemon_findings(status)
    if "stats" not in status:  # it is still starting
        return
    yield from check_rules.host_findings(
        status,
        ip_forward=sysctl.ip_forward_enabled(),
        bridge_rules=sysctl.bridged_packets_meet_iptables(),
        bridges=interfaces.bridges(),
    )
    yield from _check_leases(status)
    yield from check_peers(status, read)


def _check_leases(status: Status) -> Iterator[Finding]:
    try:
        with closing(Etcd.connect(_options(status))) as etcd:
            snapshot = Registry(etcd, status["etcd"]["prefix"]).snapshot()
    except FlannelError as error:
        yield bad("etcd-unusable", "etcd", f"the leases cannot be compared: {error}")
        return
    yield from check_rules.lease_findings(status, snapshot.leases)


def _options(status: Status) -> Options:
    """How the daemon connects to etcd; user and password come from our own environment."""
    etcd = status["etcd"]
    files = {
        name: Path(etcd[name]) if etcd[name] else None for name in ("cafile", "certfile", "keyfile")
    }
    return Options(
        etcd_endpoints=tuple(etcd["endpoints"]),
        etcd_username=os.environ.get("FLANNELD_ETCD_USERNAME", ""),
        etcd_password=os.environ.get("FLANNELD_ETCD_PASSWORD", ""),
        etcd_cafile=files["cafile"],
        etcd_certfile=files["certfile"],
        etcd_keyfile=files["keyfile"],
    )
