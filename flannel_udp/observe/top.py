"""``flannel-udp top``: the traffic with each peer, live."""

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flannel_udp.errors import StatusError
from flannel_udp.observe.rates import History, Traffic
from flannel_udp.observe.status_view import drops
from flannel_udp.units import scaled, sparkline

_WIDTH = 80  # columns of the narrowest terminal
# The columns of the table and the spaces between them add up to _WIDTH.
_ADDRESS = 15  # columns for 255.255.255.255
_SUBNETS = 21  # columns for 255.255.255.252/30 +9
_RATE = 7  # columns for 12.3 MB
_BARS = 8  # columns for a sparkline
_HEAD = 9  # lines that are not peers


def run(ask: Callable[[], dict[str, Any]], interval: float) -> None:
    """Show rates until q or Ctrl-C, then restore the terminal; ``interval`` in seconds.

    Raises StatusError if no daemon answers the first time, or if this is no terminal. If a daemon
    stops answering later, wait for the next one.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise StatusError("top needs a terminal: use flannel-udp status, which prints once")
    history, console = History(), Console(highlight=False)
    status, trouble = ask(), ""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        _single_keys(),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            history.observe(status, time.monotonic())
            live.update(picture(status, history, trouble, console.size.height), refresh=True)
            if _quit_within(interval):
                return
            try:
                status, trouble = ask(), ""
            except StatusError as error:
                trouble = str(error)


def picture(status: dict[str, Any], history: History, trouble: str, lines: int) -> Group:
    """What fits into ``lines``: the totals, then the peers with the most traffic."""
    ready = "ready" if status["ready"] else f"not ready: {status['reason']}"
    title = Text(f"flannel-udp {status['version']}  {ready}   q quits", "bold")
    title.truncate(_WIDTH)
    if trouble or "stats" not in status:
        return Group(title, Text(trouble, "red"))
    etcd, stats = status["etcd"], status["stats"]
    summary = Text(
        f"{status['device']} {status['subnet']}  on {status['interface']} {status['public_ip']}\n"
        f"etcd {etcd['state']}  {stats['routes']} routes  {len(status['peers'])} peers"
        f"  cpu {history.cpu:.0%}  {', '.join(status['offloads']) or 'no offloads'}\n"
        + _drops(f"drops {scaled(history.whole.dropped_packets)}/s  all ", drops(stats)),
        no_wrap=True,
    )
    table = Table(box=box.SIMPLE, padding=0, show_edge=False)
    table.add_column("peer", no_wrap=True, width=_ADDRESS)
    table.add_column("subnet", no_wrap=True, overflow="ellipsis", width=_SUBNETS)
    for heading, style in (("sent/s", "cyan"), ("recv/s", "green")):
        table.add_column(heading, justify="right", no_wrap=True, width=_RATE)
        table.add_column("", no_wrap=True, width=_BARS, style=style)
    table.add_column("drops/s", justify="right", no_wrap=True, width=_RATE)
    table.add_row("all", "", *_rate_cells(history.whole))
    for peer in _busiest(status["peers"], history)[: max(0, lines - _HEAD)]:
        traffic = history.peers.get(peer["public_ip"], Traffic())
        table.add_row(peer["public_ip"], _subnets(peer), *_rate_cells(traffic))
    return Group(title, summary, "", table)


def _drops(heading: str, reasons: list[str]) -> str:
    """A line with as many reasons as fit."""
    line = heading + (", ".join(reasons) or "none")
    for shown in range(len(reasons) - 1, 0, -1):
        if len(line) <= _WIDTH:
            break
        line = f"{heading}{', '.join(reasons[:shown])} and {len(reasons) - shown} more"
    return line


def _subnets(peer: dict[str, Any]) -> str:
    first, *more = peer["subnets"] or ("",)
    return f"{first} +{len(more)}" if more else first


def _busiest(peers: list[dict[str, Any]], history: History) -> list[dict[str, Any]]:
    def rate(peer: dict[str, Any]) -> float:
        traffic = history.peers.get(peer["public_ip"])
        return traffic.sent[-1] + traffic.received[-1] if traffic else 0.0

    return sorted(peers, key=rate, reverse=True)


def _rate_cells(traffic: Traffic) -> tuple[str, ...]:
    """The cells of a row after address and subnet."""
    sent, received = [*traffic.sent], [*traffic.received]
    return (
        scaled(sent[-1], "B") if sent else "",
        sparkline(sent, _BARS),
        scaled(received[-1], "B") if received else "",
        sparkline(received, _BARS),
        scaled(traffic.dropped_packets),
    )


@contextmanager
def _single_keys() -> Iterator[None]:
    """While entered, keys arrive one by one and are not echoed."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quit_within(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select((sys.stdin,), (), (), left)[0]:
            keys = os.read(sys.stdin.fileno(), 64)
            if not keys or b"q" in keys:  # end of input, or q
                return True
    return False
