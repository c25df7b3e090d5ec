"""Helpers of the fault tests: cut a host off from etcd, and wait until all hosts agree with it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from ipaddress import IPv4Network
from itertools import pairwise

from etcd_server import wait_until
from instruments import lease_value, routes
from streams import Stream, streams_both_ways

from flannel_udp.errors import DeviceError, LabError
from flannel_udp.lab.lab import Host, Lab

Ctl = Callable[..., str]  # etcdctl

# The daemons lease subnets of the lower half; the tests write leases of the upper half.
CONFIG = {"Network": "10.1.0.0/16", "SubnetMax": "10.1.127.0", "Backend": {"Type": "udp"}}
NEW_LEASE, UNKNOWN_HOST = "10.1.251.0-24", "172.30.0.50"
DROP, RESET = "drop", "reject with tcp reset"

# Seconds to wait on a busy machine; fault_timer.py checks the shorter limits that the daemon keeps.
NOTICE_WITHIN, RECOVER_WITHIN = 40.0, 30.0


@contextmanager
def fault_lab() -> Iterator[Lab]:
    """Three hosts, whose daemons must still run after the tests."""
    with Lab(hosts=3, config=CONFIG) as lab:
        yield lab
        for host in lab.hosts:
            print(f"--- daemon log of {host.name}\n{host.log_path.read_text()}")
        for host in lab.hosts:
            assert host.daemon
            assert host.daemon.poll() is None
            assert "Traceback" not in host.log_path.read_text()


@contextmanager
def cut_off(host: Host, how: str) -> Iterator[None]:
    """During the block no packet of the host reaches etcd; its other traffic flows."""
    chain = "{ type filter hook output priority 0; }"
    host.run(["nft", f"add table inet fault; add chain inet fault out {chain}"], check=True)
    change_cut(host, how)
    try:
        yield
    finally:
        host.run(["nft", "delete table inet fault"], check=True)


def change_cut(host: Host, how: str) -> None:
    """Changes at once how a host that is cut off already is cut off."""
    rule = f"inet fault out ip daddr 172.30.0.254 ip protocol tcp {how}"
    host.run(["nft", f"flush chain inet fault out; add rule {rule}"], check=True)


@contextmanager
def no_packet_lost(hosts: Sequence[Host], interval: float = 0.005) -> Iterator[list[Stream]]:
    """Containers of neighbouring hosts send packets during the block, of which none may be lost."""
    ends = [host.containers[0] for host in hosts]
    with streams_both_ways(*pairwise(ends), interval=interval) as streams:
        yield streams
    assert min(stream.sent for stream in streams) > 50


def delete_device_until_exit(host: Host) -> None:
    """Deletes the tunnel device again and again; the daemon must give up and exit with code 1."""
    assert host.daemon
    deadline = time.monotonic() + 60
    while host.daemon.poll() is None and time.monotonic() < deadline:
        with suppress(DeviceError):
            host.netns.delete_link("flannel0")
    assert host.daemon.wait(1) == 1


def state(host: Host) -> str:
    answer: str = host.status()["etcd"]["state"]
    return answer


def await_loss(*hosts: Host) -> None:
    """Waits until the daemons have noticed that etcd does not answer."""
    wait_until(lambda: all(state(each) != "watching" for each in hosts), "noticing", NOTICE_WITHIN)


def leases_in(ctl: Ctl, prefix: str) -> dict[IPv4Network, str]:
    """Subnet -> PublicIP of all leases in etcd."""
    folder = f"{prefix}/subnets/"
    lines = ctl("get", "--prefix", folder).splitlines()
    return {
        IPv4Network(key.removeprefix(folder).replace("-", "/")): json.loads(value)["PublicIP"]
        for key, value in zip(lines[::2], lines[1::2], strict=True)
    }


def agrees(host: Host, leases: dict[IPv4Network, str]) -> bool:
    """Whether the host's lease is in etcd and it has a route for each lease of another host."""
    others = {str(net): peer for net, peer in leases.items() if peer != str(host.address)}
    return bool(
        host.subnet and leases.get(host.subnet) == str(host.address) and routes(host) == others
    )


def await_agreement(hosts: Sequence[Host], ctl: Ctl, prefix: str) -> None:
    def all_agree() -> bool:
        leases = leases_in(ctl, prefix)
        return all(agrees(host, leases) for host in hosts)

    wait_until(all_agree, "routes that agree with etcd", RECOVER_WITHIN)


def has_new_lease(host: Host) -> bool:
    return routes(host).get(NEW_LEASE.replace("-", "/")) == UNKNOWN_HOST


def await_new_lease(hosts: Sequence[Host], ctl: Ctl, prefix: str) -> None:
    """Writes a lease, waits until every host has a route for it, deletes it, and waits again."""
    key = f"{prefix}/subnets/{NEW_LEASE}"
    wait_until(
        partial(succeeds, ctl, "put", key, lease_value(UNKNOWN_HOST)), "a put", RECOVER_WITHIN
    )
    wait_until(lambda: all(map(has_new_lease, hosts)), "the new lease", RECOVER_WITHIN)
    ctl("del", key)
    await_agreement(hosts, ctl, prefix)


def succeeds(ctl: Ctl, *arguments: str) -> bool:
    """Whether the command succeeds; during an election etcd refuses it."""
    try:
        ctl(*arguments)
    except (AssertionError, LabError):
        return False
    return True
