"""``flannel-udp lab``: build a lab, ping between all nodes, measure, clean up."""

import argparse
import itertools
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from flannel_udp.errors import LabError
from flannel_udp.lab.lab import Lab, require_machine

REFRESH = 1.0  # seconds between two refreshes of the counters


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if every ping was answered, else 1; ``arguments`` as commands.py declares them.

    Raises LabError; KeyboardInterrupt on a signal.
    """
    # SIGINT too: a shell starts its background jobs with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    return _run(arguments, Console())


def _run(arguments: argparse.Namespace, console: Console) -> int:
    require_machine()
    config = {"Network": str(arguments.network), "Backend": {"Type": "udp"}}
    console.print(
        f"Building {arguments.hosts} hosts with {arguments.containers} container(s) each,"
        f" underlay {arguments.underlay}, overlay {arguments.network}",
        highlight=False,
        soft_wrap=True,
    )
    with Lab(arguments.hosts, arguments.containers, arguments.underlay, config) as lab:
        console.print(_topology(lab))
        matrix = lab.ping_matrix()
        console.print("Ping from row to column, round trip in ms:", _matrix_table(matrix))
        lost = [pair for pair, round_trip in matrix.items() if round_trip is None]
        for source, target in lost:
            console.print(f"[red]{source} does not reach {target}[/red]")
        if not arguments.no_iperf:
            _measure(lab, console)
        if arguments.keep:
            _explain(lab, console)
            _watch(lab, console)
        else:
            console.print(f"To look inside: {_program()} lab --keep", soft_wrap=True)
    return 1 if lost else 0


def _topology(lab: Lab) -> Table:
    table = Table(box=box.SIMPLE)
    for heading in ("", "namespace", "underlay", "leased subnet"):
        table.add_column(heading)
    table.add_row("etcd", lab.switch.name, lab.etcd.url.removeprefix("http://"))
    for host in lab.hosts:
        table.add_row(host.name, host.netns.name, str(host.address), str(host.subnet))
        for container in host.containers:
            table.add_row(container.name, container.netns.name, "", str(container.address))
    return table


def _matrix_table(matrix: Mapping[tuple[str, str], float | None]) -> Table:
    names = list(dict.fromkeys(source for source, _ in matrix))
    table = Table(box=box.SIMPLE, padding=0, pad_edge=False)
    table.add_column(no_wrap=True)
    for name in names:
        table.add_column(name.replace("-", "\n"), justify="right")
    for source in names:
        table.add_row(source, *(_cell(matrix, source, target) for target in names))
    return table


def _cell(matrix: Mapping[tuple[str, str], float | None], source: str, target: str) -> str:
    if source == target:
        return ""
    round_trip = matrix[source, target]
    return "[red]✗[/red]" if round_trip is None else f"{round_trip:.2f}"


def _measure(lab: Lab, console: Console) -> None:
    if shutil.which("iperf3") is None:
        console.print("No throughput: iperf3 is not installed (apt-get install iperf3).")
        return
    for source, target in itertools.combinations(lab.hosts, 2):
        ends = source.containers[0], target.containers[0]
        try:
            figure = f"{lab.throughput(*ends):.2f} Gbit/s"
        except LabError as error:
            figure = str(error)
        console.print(f"TCP from {ends[0].name} to {ends[1].name}: {figure}", highlight=False)


def _explain(lab: Lab, console: Console) -> None:
    first, last = lab.hosts[0], lab.hosts[-1]
    lines = (
        "To look inside, in another terminal:",
        f"  ip netns exec {first.netns.name} ip route",
        f"  ip netns exec {first.netns.name} tcpdump -n -i flannel0",
        f"  ip netns exec {first.containers[0].netns.name} ping {last.containers[0].address}",
        f"  ip netns exec {lab.switch.name} {_program()} lease"
        f" --etcd-endpoints {lab.etcd.url} list",
        f"  tail -f {first.log_path}",
    )
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _program() -> str:
    """The command of this program, relative to the current directory."""
    program = Path(sys.executable).with_name("flannel-udp")
    here = Path.cwd()
    return str(program.relative_to(here) if program.is_relative_to(here) else program)


def _watch(lab: Lab, console: Console) -> None:
    """Show the counters of each peer until Ctrl-C or SIGTERM."""
    console.print("The lab stays up until Ctrl-C.")
    with Live(_counters(lab), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(REFRESH)
                live.update(_counters(lab), refresh=True)
        except KeyboardInterrupt:
            live.update(_counters(lab), refresh=True)


def _counters(lab: Lab) -> Group:
    return Group(*(_counter_table(host.name, host.peer_counters()) for host in lab.hosts))


def _counter_table(host: str, peers: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=f"{host}: traffic per peer", title_justify="left", box=box.SIMPLE)
    traffic = itertools.product(("sent", "received"), ("packets", "bytes"))
    columns = (*map("_".join, traffic), "dropped_packets")
    table.add_column("peer")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for peer in peers:
        table.add_row(peer["public_ip"], *(f"{peer[column]:,}" for column in columns))
    return table
