"""Who listens on a TCP port of this host, as proc(5) shows it."""

import re
import socket
from collections.abc import Iterator
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
    """The program that listens on the port: "etcd, process 123, of etcd.service"."""
    inodes = set(_listening_inodes(port))
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # the process has just ended
            if any(each.readlink().name in inodes for each in (folder / "fd").iterdir()):
                name = (folder / "comm").read_text().strip()
                unit = re.search(r"/([^/\n]+\.service)", (folder / "cgroup").read_text())
                return f"{name}, process {folder.name}" + (f", of {unit[1]}" if unit else "")
    return "another program"


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):  # a kernel without IPv6
            for line in (_PROC / "self/net" / table).read_text().splitlines()[1:]:
                _, local, _, state, *more = line.split()
                if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                    yield f"socket:[{more[5]}]"
