"""A member of the cluster that shares no code with this project.

It uses flannel's etcd keys and lease JSON through etcdctl and carries one inner IP packet in each
UDP datagram. Usage: ``python foreign_daemon.py ETCDCTL ENDPOINT PREFIX PUBLIC_IP SUBNET``.
It prints ``ready``, then each change of a lease; after SIGTERM it revokes its lease and ends.
"""

import fcntl
import ipaddress
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001


def open_tun(name: str, address: str, network: str) -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
    for command in (
        f"ip address add {address}/32 dev {name}",
        f"ip link set {name} mtu 1472 up",
        f"ip route add {network} dev {name} src {address}",
    ):
        subprocess.check_call(command.split())
    return tun


class Peers:
    """The PublicIP for each leased subnet, from the values in etcd."""

    def __init__(self) -> None:
        self._holders: dict[str, tuple[ipaddress.IPv4Network, str]] = {}

    def learn(self, key: str, value: str) -> None:
        name = key.rpartition("/")[2]
        holder = json.loads(value)["PublicIP"]
        self._holders[name] = ipaddress.IPv4Network(name.replace("-", "/")), holder
        print("learned", name, holder, flush=True)

    def forget(self, key: str) -> None:
        name = key.rpartition("/")[2]
        self._holders.pop(name, None)
        print("forgot", name, flush=True)

    def holder_of(self, address: bytes) -> str | None:
        target = ipaddress.IPv4Address(address)
        return next((ip for subnet, ip in self._holders.values() if target in subnet), None)


def apply_events(printed: str, peers: Peers) -> str:
    """Applies what ``etcdctl watch`` printed, three lines an event; returns an incomplete rest."""
    *lines, rest = printed.split("\n")
    while len(lines) >= 3:
        kind, key, value, *lines = lines
        if kind == "PUT":
            peers.learn(key, value)
        else:
            peers.forget(key)
    return "\n".join([*lines, rest])


def main(etcdctl: str, endpoint: str, prefix: str, public_ip: str, subnet: str) -> None:
    folder = f"{prefix}/subnets/"
    client = (etcdctl, f"--endpoints={endpoint}")

    def ask(*arguments: str) -> str:
        return subprocess.check_output([*client, *arguments], text=True)

    config = json.loads(ask("get", "--print-value-only", f"{prefix}/config"))
    port = config["Backend"].get("Port", 8285)
    lease = ask("lease", "grant", "86400").split()[1]
    value = {"PublicIP": public_ip, "PublicIPv6": None, "BackendType": "udp", "Since": [1, {}]}
    ask("put", folder + subnet.replace("/", "-"), json.dumps(value), f"--lease={lease}")

    tun = open_tun("foreign0", subnet.partition("/")[0], config["Network"])
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((public_ip, port))

    def leave(number: int, frame: object) -> None:
        watch.kill()
        ask("lease", "revoke", lease)
        sys.exit(0)

    # From revision 1 on: the watch begins with all past changes.
    command = [*client, "watch", "--prefix", folder, "--rev=1"]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert watch.stdout
    events = watch.stdout.fileno()
    signal.signal(signal.SIGTERM, leave)
    print("ready", flush=True)

    peers, printed = Peers(), ""
    while True:
        readable, _, _ = select.select([tun, udp.fileno(), events], [], [])
        if events in readable:
            printed = apply_events(printed + os.read(events, 65536).decode(), peers)
        if tun in readable:
            packet = os.read(tun, 65536)
            holder = peers.holder_of(packet[16:20]) if packet[0] >> 4 == 4 else None
            if holder and holder != public_ip:
                udp.sendto(packet, (holder, port))
        if udp.fileno() in readable:
            os.write(tun, udp.recv(65536))


if __name__ == "__main__":
    main(*sys.argv[1:])
