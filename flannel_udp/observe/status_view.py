"""``flannel-udp status``: prints the status and the findings, as text or JSON."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from ipaddress import IPv4Address
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flannel_udp.backends.pump.fallbacks import kernel_fault, listed
from flannel_udp.observe.check_rules import Finding
from flannel_udp.units import scaled, span

Status = Mapping[str, Any]

_MOST_SUBNETS = 2  # shown of one peer
_MOST_HELD = 5  # shown of the leases that etcd lost


def show_json(status: Status) -> None:
    print(json.dumps(status, indent=1))


def show(status: Status) -> None:
    console = Console(highlight=False)
    for line in _head(status):
        console.print(line, soft_wrap=True)
    if "peers" in status:
        console.print(_peers(status["peers"]))
    for note in _notes(status):
        console.print(Text(note, "yellow"), soft_wrap=True)


def show_findings(findings: Iterable[Finding]) -> bool:
    """Print a line for each as it arrives; returns whether all are good."""
    console, good = Console(highlight=False), True
    for finding in findings:
        console.print(_mark(finding) + Text(f"{finding.subject}: {finding.text}"), soft_wrap=True)
        good = good and finding.is_good
    return good


def _mark(finding: Finding) -> Text:
    if not finding.is_good:
        return Text("bad  ", "red")
    return Text("ok   ", "green") if finding.code == "ok" else Text("note ", "yellow")


def show_json_findings(findings: Iterable[Finding]) -> bool:
    """Print all as one list; returns whether all are good."""
    found = list(findings)
    print(json.dumps([asdict(finding) for finding in found], indent=1))
    return all(finding.is_good for finding in found)


def _head(status: Status) -> Iterator[Text]:
    """All but the peers, line by line."""
    ready = "ready" if status["ready"] else f"not ready: {status['reason']}"
    yield Text(f"flannel-udp {status['version']}, {ready}", "green" if status["ready"] else "red")
    if "stats" not in status:
        return
    stats, etcd = status["stats"], status["etcd"]
    lease = "a reservation" if status["reservation"] else _lease(status["lease_seconds_left"])
    offloads = ", ".join(status["offloads"]) or "none"
    yield _line("subnet", f"{status['subnet']} of {status['network']}, {lease}")
    yield _line(
        "outside", f"{status['interface']} {status['public_ip']}, UDP port {status['port']}"
    )
    yield _line("tunnel", f"{status['device']}, MTU {status['mtu']}")
    yield _line("offloads", f"{offloads} (--offload {status['preset']})")
    silent = "" if etcd["state"] == "watching" else f", silent for {span(etcd['silent_seconds'])}"
    yield _line("etcd", f"{etcd['state']}, revision {etcd['revision']}{silent}")
    for direction, name in (("sent", "udp_sent"), ("received", "udp_received")):
        packets, size = stats[f"{name}_packets"], scaled(stats[f"{name}_bytes"], "B")
        yield _line(direction, f"{packets:,} packets, {size}")
    yield _line("drops", ", ".join(drops(stats)) or "none")


def drops(stats: Mapping[str, int]) -> list[str]:
    """The drop counters that are not zero: ``tun_no_route 3``."""
    return [
        f"{name.removeprefix('drop_')} {value:,}"
        for name, value in stats.items()
        if name.startswith("drop_") and value
    ]


def _subnets(peer: Status) -> str:
    """The first subnets of a peer, and the number of the others."""
    shown = peer["subnets"][:_MOST_SUBNETS]
    more = len(peer["subnets"]) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _notes(status: Status) -> Iterator[str]:
    if status.get("config_changed"):
        yield (
            f"the network config in etcd changed: {status['config_changed']}; start the daemon"
            " again to follow it"
        )
    if status.get("public_ip_conflict"):
        yield status["public_ip_conflict"]
    if "kernel" in status and (fault := kernel_fault(status["kernel"], status["offloads"])):
        yield fault
    for protocol in status.get("refused_superpackets", ()):
        yield (
            f"the tunnel device refuses {protocol} superpackets: its packets are written one by one"
        )
    refusing = [
        IPv4Address(peer["public_ip"]) for peer in status.get("peers", ()) if peer["refuses_gso"]
    ]
    if refusing:
        yield (
            f"UDP GSO is refused on the way to {len(refusing)} of {len(status['peers'])} peers"
            f" ({listed(refusing)}): packets for them are sent one by one"
        )
    if "firewall" in status:
        yield from status["firewall"]["problems"]
    if contest := status.get("etcd", {}).get("lease_contested"):
        yield contest
    held = status.get("held", ())
    for lease in held[:_MOST_HELD]:
        yield (
            f"etcd lost the lease of {lease['public_ip']} on {lease['subnet']} with its data: its"
            f" route stays for {span(lease['seconds_left'])}, or until a host leases it"
        )
    if len(held) > _MOST_HELD:
        yield f"and those of {len(held) - _MOST_HELD} more"


def _peers(peers: list[Status]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("peer", no_wrap=True)
    table.add_column("subnet")
    for heading in ("age", "sent", "received", "dropped"):
        table.add_column(heading, justify="right", no_wrap=True)
    for peer in peers:
        table.add_row(
            peer["public_ip"],
            _subnets(peer),
            span(peer["age_seconds"]),
            scaled(peer["sent_bytes"], "B"),
            scaled(peer["received_bytes"], "B"),
            f"{peer['dropped_packets']:,}",
        )
    return table


def _line(name: str, text: str) -> Text:
    return Text(f"  {name:<9} {text}")


def _lease(seconds: float) -> str:
    return f"leased for {span(seconds)}" if seconds > 0 else "whose lease has run out"
