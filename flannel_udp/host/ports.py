"""Who has a TCP or UDP port of this host, as proc(5) shows it."""

import os
import re
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

_PROC = Path("/proc")
_LISTENING = "0A"


def is_free(address: IPv4Address, port: int) -> bool:
    """Whether a server can listen there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(address), port))
            probe.listen()
        except OSError:
            return False
    return True


def listener(port: int) -> str:
    """The program that listens on the TCP port: "etcd, process 123, of etcd.service"."""
    return _program({inode for inode, state in _sockets("tcp", port) if state == _LISTENING})


def udp_holder(port: int, ours: Collection[int]) -> str:
    """A program with a socket on the UDP port that is not among our descriptors; "" if none."""
    known = {str(os.fstat(descriptor).st_ino) for descriptor in ours}
    inodes = {inode for inode, _ in _sockets("udp", port)} - known
    return _program(inodes) if inodes else ""


def _program(inodes: Collection[str]) -> str:
    links = {f"socket:[{inode}]" for inode in inodes}
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # the process has just ended
            if any(each.readlink().name in links for each in (folder / "fd").iterdir()):
                name = (folder / "comm").read_text().strip()
                unit = re.search(r"/([^/\n]+\.service)", (folder / "cgroup").read_text())
                return f"{name}, process {folder.name}" + (f", of {unit[1]}" if unit else "")
    return "another program"


def _sockets(protocol: str, port: int) -> Iterator[tuple[str, str]]:
    """Inode and state of each socket with this local port."""
    for table in (protocol, f"{protocol}6"):
        with suppress(FileNotFoundError):  # a kernel without IPv6
            for line in (_PROC / "thread-self/net" / table).read_text().splitlines()[1:]:
                _, local, _, state, *more = line.split()
                if int(local.rpartition(":")[2], 16) == port:
                    yield more[5], state
