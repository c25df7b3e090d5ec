"""Reads the state of hosts, daemons and etcd, opens sockets in hosts, and writes leases to etcd."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from etcd_server import wait_until
from prometheus_client import parser

from flannel_udp.lab.lab import Host, Lab, Node
from flannel_udp.observe.status import QUEUE_DROPS

_PIDFD_GETFD = 438  # the system call's number, the same on every architecture
_MOST_OPERATIONS = 128  # in one transaction, etcd's default


class EtcdWriter:
    """Writes through etcd's JSON gateway over one open connection: a write takes a millisecond."""

    def __init__(self, lab: Lab) -> None:
        url = urlsplit(lab.etcd.url)
        self._connection = HTTPConnection(url.hostname or "", url.port, timeout=10)
        lab.switch.call(self._connection.connect)
        self.folder = f"{lab.prefix}/subnets/"

    def put(self, name: str, value: str) -> int:
        """Write the lease key ``name``, without an etcd lease; returns the revision."""
        return self._write("kv/put", self._pair(name, value))

    def delete(self, name: str) -> int:
        return self._write("kv/deleterange", {"key": _base64(self.folder + name)})

    def put_many(self, values: Mapping[str, str]) -> None:
        pairs = [{"requestPut": self._pair(*item)} for item in values.items()]
        for start in range(0, len(pairs), _MOST_OPERATIONS):
            self._write("kv/txn", {"success": pairs[start : start + _MOST_OPERATIONS]})

    def _pair(self, name: str, value: str) -> dict[str, str]:
        return {"key": _base64(self.folder + name), "value": _base64(value)}

    def _write(self, method: str, request: Mapping[str, Any]) -> int:
        self._connection.request("POST", f"/v3/{method}", json.dumps(request))
        answer = json.loads(self._connection.getresponse().read())
        return int(answer["header"]["revision"])


def lease_value(public_ip: str) -> str:
    return json.dumps({"PublicIP": public_ip, "PublicIPv6": None})


def drops(host: Host) -> dict[str, int]:
    """The daemon's drop counters that are not 0, without ``drop_`` in their names.

    Without the drops of the full tunnel queue, which the pump never reads.
    """
    stats: dict[str, int] = host.status()["stats"]
    return {
        name.removeprefix("drop_"): value
        for name, value in stats.items()
        if name.startswith("drop_") and value and name != QUEUE_DROPS
    }


def routes(host: Host) -> dict[str, str]:
    """Subnet -> PublicIP of all routes in the daemon's table."""
    return {
        subnet: peer["public_ip"] for peer in host.status()["peers"] for subnet in peer["subnets"]
    }


def wait_until_seen(lab: Lab, revision: int) -> None:
    """Waits until every daemon has processed the revision, which must have written a lease."""
    wait_until(
        lambda: all(host.status()["etcd"]["revision"] >= revision for host in lab.hosts),
        f"all daemons seeing revision {revision}",
    )


def log_lines(host: Host, *words: str) -> list[str]:
    """The lines of the daemon's log that contain all the words."""
    lines = host.log_path.read_text().splitlines()
    return [line for line in lines if all(word in line for word in words)]


def devices(host: Host) -> list[str]:
    """The names of the host's tunnel devices."""
    links = host.run(["ip", "-o", "link"], check=True).stdout
    return re.findall(r"^\d+: (flannel\d+):", links, re.MULTILINE)


def control_seconds(host: Host) -> float:
    """CPU time of the daemon without its pump's (proc(5))."""
    assert host.daemon
    process = Path(f"/proc/{host.daemon.pid}")
    ticks = _ticks(process)
    for task in (process / "task").iterdir():
        if (task / "comm").read_text().strip() == "flannel-pump":
            ticks -= _ticks(task)
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(process: Path) -> int:
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def unreachable(lab: Lab, patience: float = 5.0) -> list[tuple[str, str]]:
    """The pairs of containers and hosts between which no ping comes back."""
    return [pair for pair, rtt in lab.ping_matrix(patience).items() if rtt is None]


def leases(lab: Lab) -> dict[str, str]:
    """Everything below ``<prefix>/subnets/``: name -> value."""
    folder = f"{lab.prefix}/subnets/"
    lines = lab.etcdctl("get", "--prefix", folder).splitlines()
    return {
        key.removeprefix(folder): value for key, value in zip(lines[::2], lines[1::2], strict=True)
    }


def delete_leases(lab: Lab) -> None:
    lab.etcdctl("del", "--prefix", f"{lab.prefix}/subnets/")


def etcd_state(lab: Lab) -> tuple[int, str]:
    """The revision, which grows with every write, and the etcd leases; equal if nothing changed."""
    answer = json.loads(lab.etcdctl("get", "--write-out=json", lab.prefix))
    return int(answer["header"]["revision"]), lab.etcdctl("lease", "list")


def listen(node: Node, kind: socket.SocketKind) -> socket.socket:
    """A socket in the node, bound to all its addresses and a free port."""

    def open_there() -> socket.socket:
        server = socket.socket(socket.AF_INET, kind)
        server.bind(("", 0))
        if kind is socket.SOCK_STREAM:
            server.listen()
        server.settimeout(10)
        return server

    return node.netns.call(open_there)


def connect(node: Node, address: IPv4Address, port: int) -> socket.socket:
    """A TCP connection from the node."""
    target = (str(address), port)
    return node.netns.call(lambda: socket.create_connection(target, timeout=10))


def seen_by_both(client: Node, server: Node, at: IPv4Address) -> dict[str, str]:
    """The addresses that client and server see of themselves and of each other over TCP."""
    with listen(server, socket.SOCK_STREAM) as listener:
        ours = connect(client, at, listener.getsockname()[1])
        theirs, _ = listener.accept()
        with ours, theirs:
            return {
                "client to itself": ours.getsockname()[0],
                "client to server": theirs.getpeername()[0],
                "server to itself": theirs.getsockname()[0],
                "server to client": ours.getpeername()[0],
            }


def same_to_both(client: IPv4Address, server: IPv4Address) -> dict[str, str]:
    return {
        "client to itself": str(client),
        "client to server": str(client),
        "server to itself": str(server),
        "server to client": str(server),
    }


HEALTH_FLAGS = ("--healthz-ip", "127.0.0.1", "--healthz-port", "8080")


def health(host: Host, path: str) -> tuple[int, str]:
    """Status and body that a daemon with HEALTH_FLAGS answers; (0, "") if it does not listen."""

    def fetch() -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", 8080, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except ConnectionRefusedError:
            return 0, ""
        finally:
            connection.close()

    return host.netns.call(fetch)


def metrics(host: Host) -> dict[str, float]:
    """/metrics by name and label values, as in ``flannel_dropped_packets_total tun ipv6``."""
    code, text = health(host, "/metrics")
    assert code == 200
    lines: Any = parser  # which has no type hints
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in lines.text_string_to_metric_families(text)
        for sample in family.samples
    }


def udp_socket_of(host: Host) -> socket.socket:
    """A duplicate of the daemon's socket."""
    assert host.daemon
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    with open(os.pidfd_open(host.daemon.pid)) as daemon:
        for name in os.listdir(f"/proc/{host.daemon.pid}/fd"):
            fd = system_call(_PIDFD_GETFD, daemon.fileno(), int(name), 0)
            with suppress(OSError):
                found = socket.socket(fileno=fd)
                if (found.type, found.getsockname()) == (
                    socket.SOCK_DGRAM,
                    (str(host.address), 8285),
                ):
                    return found
                found.detach()
            os.close(fd)
    raise AssertionError("the daemon has no such socket")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
