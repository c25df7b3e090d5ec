"""Measures the control plane by the number of leases: ``python -m bench.scale``.

For each number of leases it measures the start of a daemon with all routes, then lease changes (by
default a thousand a second, in transactions of fifty) while traffic of another peer flows. The
lab has a real etcd and real daemons. scale_report.py makes page and chart from the JSON results.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import urlsplit

from bench import programs
from flannel_udp.lab.lab import Host, Lab

SIZES = (10, 100, 1_000, 10_000, 65_536)
STARTS = 3
BATCH = 50  # changes in one transaction, or all leases if fewer
FILL_BATCH = 128  # etcd's default limit
CONFIG = '{"Network":"10.0.0.0/7","SubnetLen":24,"Backend":{"Type":"udp"}}'  # 131,072 subnets
FIRST_SUBNET, FIRST_HOST = IPv4Address("10.8.0.0"), IPv4Address("198.18.0.0")

# The timed subnet moves through these addresses in turn, so that each move can be recognised.
TIMED_SUBNET = IPv4Address("11.255.0.0")
TIMED_HOSTS = [IPv4Address("203.0.113.0") + number for number in range(250)]
PROBE_SECONDS = 0.001  # between two packets to it: the resolution of the timing

PING_GAP_US = 5_000
TMPFS = Path("/dev/shm")
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; not in the socket module
ETH_P_IP = 0x0800


@dataclass(frozen=True, slots=True)
class Traffic:
    """Round trips, in seconds."""

    median: float
    p99: float
    answered: int
    unanswered: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures for one number of leases. Times in seconds, memory in bytes."""

    leases: int
    starts: list[float]  # from the start of the process to READY=1, with all routes
    memory: int  # resident after the start
    memory_most: int  # resident, ever
    changes: int
    changes_per_second: float
    delays: list[float]  # from etcd's answer to the write to the first packet on the new route
    writes: list[float]  # from the request to etcd's answer
    cpu_per_change: float  # of the daemon, without its pump
    quiet: Traffic  # of another peer
    busy: Traffic  # the same while leases change

    def summary(self) -> str:
        """One line for the terminal."""
        return (
            f"start {min(self.starts):.2f} s, {self.memory / 1e6:.0f} MB,"
            f" {self.changes_per_second:.0f} changes/s, 99 % are routes after"
            f" {quantile(self.delays, 0.99) * 1e3:.1f} ms, {self.cpu_per_change * 1e6:.0f} us of"
            f" CPU each; other traffic {self.busy.median * 1e6:.0f} us (quiet"
            f" {self.quiet.median * 1e6:.0f}), {self.busy.unanswered} lost"
        )


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Writer:
    """Writes through etcd's JSON gateway over one open connection."""

    def __init__(self, lab: Lab) -> None:
        url = urlsplit(lab.etcd.url)
        self._connection = HTTPConnection(url.hostname or "", url.port, timeout=30)
        lab.switch.call(self._connection.connect)
        self._folder = f"{lab.prefix}/subnets/"

    def put(self, leases: Mapping[IPv4Address, IPv4Address]) -> None:
        """Writes leases in one transaction: subnet (of length 24) -> PublicIP."""
        puts = [
            {
                "requestPut": {
                    "key": _base64(f"{self._folder}{subnet}-24"),
                    "value": _base64(f'{{"PublicIP":"{host}","PublicIPv6":null}}'),
                }
            }
            for subnet, host in leases.items()
        ]
        self._connection.request("POST", "/v3/kv/txn", json.dumps({"success": puts}))
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"etcd refused a write: {answer.read().decode()}")
        answer.read()


class Timer:
    """Records when packets first went to each address on the underlay, by the kernel's clock."""

    def __init__(self, lab: Lab) -> None:
        def open_there() -> socket.socket:
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
            sniffer.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sniffer.bind(("underlay", ETH_P_IP))
            sniffer.settimeout(0.2)
            return sniffer

        self._socket = lab.switch.call(open_there)
        self._arrivals: list[tuple[float, bytes]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> list[tuple[float, IPv4Address]]:
        """Time and address of every change of the destination."""
        self._stop.set()
        self._thread.join()
        self._socket.close()
        return [(at, IPv4Address(address)) for at, address in self._arrivals]

    def _run(self) -> None:
        wanted = {host.packed for host in TIMED_HOSTS}
        last = b""
        while not self._stop.is_set():
            try:
                packet, extra, _, _ = self._socket.recvmsg(64, 64)
            except TimeoutError:
                continue
            address = packet[16:20]
            if address in wanted and address != last:
                last = address
                seconds, nanoseconds = struct.unpack("=qq", extra[0][2])
                self._arrivals.append((seconds + nanoseconds * 1e-9, address))


def measure(lab: Lab, count: int, seconds: float, rate: float, traffic: Path) -> Figures:
    """``lab`` has two hosts without daemons and etcd no leases."""
    one, other = lab.hosts
    writer = Writer(lab)
    _fill(writer, count)
    starts = [_start(one)]
    for _ in range(STARTS - 1):
        one.stop_daemon()
        one.manager.drop_descriptors()  # else it would go on with the old routes
        starts.append(_start(one))
    other.start_daemon()
    memory = _memory(one, "VmRSS")
    with _pinging(one, other, traffic, min(seconds, 5.0)) as quiet:
        pass
    before = _control_seconds(one)
    with _pinging(one, other, traffic, seconds) as busy:
        changes, took, delays, writes = _change(lab, writer, count, seconds, rate)
    cpu = _control_seconds(one) - before
    return Figures(
        leases=count,
        starts=_short(starts),
        memory=memory,
        memory_most=_memory(one, "VmHWM"),
        changes=changes,
        changes_per_second=changes / took,
        delays=_short(delays),
        writes=_short(writes),
        cpu_per_change=cpu / changes,
        quiet=quiet[0],
        busy=busy[0],
    )


def _short(seconds: Sequence[float]) -> list[float]:
    return [float(f"{each:.3g}") for each in seconds]


def _fill(writer: Writer, count: int) -> None:
    numbers = range(count - 1)
    for start in range(0, len(numbers), FILL_BATCH):
        part = numbers[start : start + FILL_BATCH]
        writer.put({FIRST_SUBNET + 256 * n: FIRST_HOST + n for n in part})
    writer.put({TIMED_SUBNET: TIMED_HOSTS[-1]})


def _start(host: Host) -> float:
    began = time.monotonic()
    host.start_daemon()
    return time.monotonic() - began


def _memory(host: Host, field: str) -> int:
    """In bytes (proc(5))."""
    assert host.daemon
    for line in Path(f"/proc/{host.daemon.pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field}")


def _control_seconds(host: Host) -> float:
    """CPU time of the daemon without its pump's."""
    assert host.daemon
    fields = Path(f"/proc/{host.daemon.pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    tasks = Path(f"/proc/{host.daemon.pid}/task").iterdir()
    for task in tasks:
        if (task / "comm").read_text().strip() == "flannel-pump":
            mine = (task / "stat").read_text().rpartition(")")[2].split()
            ticks -= int(mine[11]) + int(mine[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _change(
    lab: Lab, writer: Writer, count: int, seconds: float, rate: float
) -> tuple[int, float, list[float], list[float]]:
    """Returns the number of changed leases, their duration, the seconds until each timed move was a
    route, and the seconds that etcd took for each write."""
    chance = random.Random(count)
    size = min(BATCH, count)
    transactions = int(seconds * rate / size)
    written: list[tuple[float, IPv4Address]] = []
    writes: list[float] = []
    probe = ["ping", "-n", "-q", "-i", str(PROBE_SECONDS), str(TIMED_SUBNET + 2)]
    with lab.hosts[0].netns.popen(probe, stdout=subprocess.DEVNULL) as probing:
        try:
            timer = Timer(lab)
            time.sleep(0.5)  # the probes must have begun
            began = time.monotonic()
            for number in range(transactions):
                time.sleep(max(0.0, began + number * size / rate - time.monotonic()))
                target = TIMED_HOSTS[number % len(TIMED_HOSTS)]
                others = chance.sample(range(count - 1), size - 1)
                batch = {
                    FIRST_SUBNET + 256 * n: FIRST_HOST + (1 << 16) * (number % 2) + n
                    for n in others
                }
                asked = time.time()
                writer.put(batch | {TIMED_SUBNET: target})
                written.append((time.time(), target))
                writes.append(written[-1][0] - asked)
            took = time.monotonic() - began
            time.sleep(0.5)  # for the last move
            seen = timer.stop()
        finally:
            probing.kill()
    return transactions * size, took, delays_of(written, seen), writes


def delays_of(
    written: Sequence[tuple[float, IPv4Address]], seen: Sequence[tuple[float, IPv4Address]]
) -> list[float]:
    """Seconds from each move until a packet went to its address, or to that of a later move.

    etcd answers the watcher and the writer at the same time: a route that exists before the writer
    has its answer counts as 0.
    """
    delays = []
    for number, (at, _) in enumerate(written):
        reached = {target for _, target in written[number : number + len(TIMED_HOSTS) // 3]}
        arrivals = [when for when, address in seen if when > at - 1 and address in reached]
        delays.append(max(0.0, min(arrivals, default=at + 5) - at))
    return delays


@contextmanager
def _pinging(one: Host, other: Host, traffic: Path, seconds: float) -> Iterator[list[Traffic]]:
    """Pings between two containers for so many seconds; the yielded list gets the result after the
    block."""
    target = str(other.containers[0].address)
    command = [str(traffic), "ping", target, str(PING_GAP_US), str(seconds)]
    results: list[Traffic] = []
    with one.containers[0].netns.popen(command, stdout=subprocess.PIPE, text=True) as pinger:
        yield results
        text, _ = pinger.communicate(timeout=seconds + 30)
    try:
        median, p99, answered, unanswered = map(float, text.split())
    except ValueError:
        raise RuntimeError(f"ping: {text.strip()}") from None
    results.append(Traffic(median * 1e-6, p99 * 1e-6, int(answered), int(unanswered)))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def encode(results: Iterable[Figures]) -> str:
    """Writes JSON with one line for each number of leases."""
    lines = ",\n".join(json.dumps(asdict(each)) for each in results)
    return f"[\n{lines}\n]\n"


def read(path: Path) -> dict[int, Figures]:
    """The results by number of leases; empty if there is no such file."""
    if not path.exists():
        return {}
    found = [
        Figures(**each | {name: Traffic(**each[name]) for name in ("quiet", "busy")})
        for each in json.loads(path.read_text())
    ]
    return {each.leases: each for each in sorted(found, key=lambda each: each.leases)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON, added to")
    parser.add_argument("--leases", type=int, nargs="*", default=SIZES, help="numbers to measure")
    parser.add_argument("--seconds", type=float, default=30, help="of lease changes, for each")
    parser.add_argument("--rate", type=float, default=1000, help="lease changes a second")
    arguments = parser.parse_args(argv)
    results = read(arguments.results)
    # etcd's data is on tmpfs, so that the disk's fsync is not measured.
    with tempfile.TemporaryDirectory(dir=TMPFS) as directory:
        traffic = programs.build("traffic", Path(directory))
        for count in arguments.leases:
            data = Path(directory, str(count))
            # As under systemd, the state is recorded for the next process.
            lab = Lab(
                hosts=2, config=CONFIG, start_daemons=False, keeps_descriptors=True, etcd_data=data
            )
            with lab:
                figures = measure(lab, count, arguments.seconds, arguments.rate, traffic)
            results[count] = figures
            print(f"{count} leases: {figures.summary()}", flush=True)
            arguments.results.write_text(encode(results.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
