"""Compares datapaths, also two builds of the pump, in interleaved rounds in one lab.

    python -m bench.compare --ways auto,vxlan --figures tcp1,udp64,rtt --rounds 5
    python -m bench.compare --way 'old=PYTHONPATH=/checkout' --way 'new=--busy-poll-us 20'

A row shows the median of every datapath, and in brackets the median over the rounds of its ratio to
the datapath of --to, of two rates or of two durations.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from itertools import takewhile
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from bench import overlay_rounds
from bench.datapaths import DatapathError
from bench.measure import MeasurementError
from bench.plan import DAEMONS, DATAPATHS, FIGURES, MEASUREMENTS, UNDERLAYS, Daemons, Plan
from flannel_udp.errors import FlannelError


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    own = dict(arguments.datapath)
    names = (*arguments.datapaths, *(name for name in own if name not in arguments.datapaths))
    baseline = arguments.to or ("vxlan" if "vxlan" in names else next(iter(names), ""))
    if baseline not in names:
        parser().error(f"--to is none of the datapaths: {', '.join(names) or 'give some'}")
    plan = Plan(
        rounds=arguments.rounds,
        part_rounds=0,
        datapaths=names,
        seconds=dict.fromkeys(arguments.figures, arguments.seconds),
        daemons=DAEMONS | own,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for underlay in UNDERLAYS if arguments.underlay == "both" else (arguments.underlay,):
        try:
            with tempfile.TemporaryDirectory() as scratch:
                results = overlay_rounds.run(plan, underlay, Path(scratch))
        except (FlannelError, MeasurementError, DatapathError) as error:
            print(error, file=sys.stderr)
            return 1
        title = f"underlay {underlay}, {plan.rounds} rounds, ratios to {baseline}"
        console = Console(width=42 + 18 * len(names))
        console.print(_table(title, results, names, baseline))
    return 0


def _table(
    title: str, results: overlay_rounds.Results, names: Sequence[str], baseline: str
) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for figure, rounds in results.items():
        meaning = FIGURES[figure]
        cells = []
        for name in names:
            if name not in rounds:
                cells.append("")
                continue
            ratio = ""
            if baseline in rounds:
                pairs = zip(rounds[name], rounds[baseline], strict=True)
                found = statistics.median(datapath / to for datapath, to in pairs)
                ratio = f" ({1 / found if meaning.is_rate else found:.2f})"
            cells.append(f"{meaning.shown(statistics.median(rounds[name])):.4g}{ratio}")
        table.add_row(f"{meaning.title}, {meaning.unit}", *cells)
    return table


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    datapaths = f"some of {','.join(DATAPATHS)}"
    parser.add_argument(
        "--ways", type=_some_of(DATAPATHS), default=(), dest="datapaths", help=datapaths
    )
    parser.add_argument(
        "--way",
        type=_own_datapath,
        action="append",
        default=[],
        dest="datapath",
        metavar="NAME=[VARIABLE=VALUE ...] [FLAG ...]",
        help="a pair of daemons with this environment and these flags",
    )
    parser.add_argument(
        "--figures",
        type=_some_of(MEASUREMENTS),
        default=("tcp1", "udp64", "rtt"),
        help=f"some of {','.join(MEASUREMENTS)} (default tcp1,udp64,rtt)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1, help="of each measurement (default 1)")
    parser.add_argument("--underlay", choices=(*UNDERLAYS, "both"), default="direct")
    parser.add_argument("--to", help="the datapath of the ratios (default vxlan, else the first)")
    return parser


def _some_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(word: str) -> tuple[str, ...]:
        names = tuple(word.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is none of {','.join(known)}")
        return names

    return parse


def _own_datapath(word: str) -> tuple[str, Daemons]:
    name, is_there, rest = word.partition("=")
    if not is_there or not name.isalnum():
        raise argparse.ArgumentTypeError(f"{word} does not begin with a NAME= of letters, digits")
    words = shlex.split(rest)
    assignments = list(takewhile(lambda each: not each.startswith("-"), words))
    for each in assignments:
        if "=" not in each:
            raise argparse.ArgumentTypeError(f"{each} is neither VARIABLE=VALUE nor a flag")
    environment = dict(each.split("=", 1) for each in assignments)
    return name, Daemons(tuple(words[len(assignments) :]), environment)


if __name__ == "__main__":
    sys.exit(main())
