"""Converts results to docs/benchmarks.json, and that to a page and a chart.

``python -m bench.report RESULTS`` reads the JSON of pytest-benchmark.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

from bench import chart
from bench.gate import ResultsError, Verdict, judge, read_limits, read_results, read_samples
from bench.plan import BUSY_POLL_US, DATAPATHS, FIGURES, UNDERLAYS

DOCS = Path(__file__).parent.parent / "docs"
BASELINE = "vxlan"

_HEAD = f"""\
# Benchmarks

Written by `make bench`, from [benchmarks.json](benchmarks.json); do not edit it by hand.

Two hosts in network namespaces, joined by a bridge, with a container on each; iperf3, pings and
floods of UDP go from one container to the other. All datapaths exist at the same time. A round
measures one figure of each datapath, then the next figure, so that compared samples are seconds
apart. Figures are medians of the rounds. In brackets: the median over the rounds of the ratio to
kernel VXLAN, of rates or of durations.

Underlay `direct` passes superpackets whole from host to host. Underlay `wire` has frames of at most
1500 bytes, merged on receive, as with real network cards. Both hosts share the machine's
processors.

| datapath | |
| --- | --- |
| no overlay | the hosts route to each other's containers |
| kernel VXLAN | set up as by flannel's vxlan backend |
| auto | flannel-udp with default flags |
| busy poll {BUSY_POLL_US} us | with `--busy-poll-us` |
| tso, none | with `--offload tso` and `--offload none` |
| one read, one send | a loop in C (`bench/simple_loop.c`), one system call per packet and side |
| copies alone | the same loop with superpackets: four copies of each byte, and nothing else |

Preset `full` has no column: it is `auto` that refuses to start if an offload is missing.

![Throughput and round trips relative to kernel VXLAN](benchmarks.svg)
"""


@dataclass(frozen=True, slots=True)
class Digest:
    """The content of docs/benchmarks.json. Names are those of limits.toml."""

    command: str
    date: str
    machine: Mapping[str, str]
    groups: Mapping[str, Sequence[str]]  # names by title
    beside: Mapping[str, str]  # baseline of each part
    samples: Mapping[str, Sequence[float]]  # by name: seconds of every round
    verdicts: Sequence[Mapping[str, Any]]  # Limit, with ratio and grade

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> Self:
        """From pytest-benchmark's JSON, parsed. Raises ResultsError if figures are missing."""
        groups: dict[str, list[str]] = {}
        beside: dict[str, str] = {}
        for each in results["benchmarks"]:
            name = each["extra_info"]["name"]
            groups.setdefault(each["group"], []).append(name)
            if baseline := each["extra_info"].get("beside"):
                beside[name] = baseline
        samples = read_samples(results)
        verdicts = judge(read_limits(), samples)
        if missing := [each.limit.title for each in verdicts if each.ratio is None]:
            raise ResultsError(f"no report, because not measured: {'; '.join(missing)}")
        return cls(
            command=results["command"],
            date=results["datetime"][:10],
            machine=_machine(results["machine_info"]),
            groups=groups,
            beside=beside,
            samples={name: [_short(s) for s in seconds] for name, seconds in samples.items()},
            verdicts=[_flat(verdict) for verdict in verdicts],
        )

    def seconds(self, name: str) -> float:
        return median(self.samples[name])

    def ratio(self, name: str, to: str) -> float:
        """Of seconds: the median over the rounds."""
        return median(a / b for a, b in zip(self.samples[name], self.samples[to], strict=True))


def _machine(info: Mapping[str, Any]) -> dict[str, str]:
    cpu = info["cpu"]
    return {
        "processor": f"{cpu['count']} x {cpu['brand_raw']}",
        "architecture": info["machine"],
        "kernel": f"{info['system']} {info['release']}",
        "Python": info["python_version"],
    }


def _short(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def _flat(verdict: Verdict) -> dict[str, Any]:
    assert verdict.ratio is not None
    return asdict(verdict.limit) | {"ratio": round(verdict.ratio, 3), "grade": verdict.grade}


def page(digest: Digest) -> str:
    """docs/benchmarks.md."""
    parts = [_HEAD, _table(("", ""), [[key, text] for key, text in _facts(digest).items()])]
    parts += ["## Limits\n", _limits(digest)]
    parts += [f"Missed aim: {each['title']}. {each['why']}\n" for each in _missed(digest)]
    for underlay in UNDERLAYS:
        parts += [f"## Underlay {underlay}\n", _overlay(digest, underlay)]
    parts += ["## The parts\n", _parts(digest)]
    return "\n".join(parts)


def _facts(digest: Digest) -> dict[str, str]:
    rounds = len(digest.samples[f"{UNDERLAYS[0]}/tcp1/{BASELINE}"])
    further = {"date": digest.date, "rounds": str(rounds), "command": "`make bench`"}
    return {**digest.machine, **further}


def _missed(digest: Digest) -> list[Mapping[str, Any]]:
    return [each for each in digest.verdicts if each["grade"] != "aim reached" and each["why"]]


def _limits(digest: Digest) -> str:
    rows = []
    for each in digest.verdicts:
        bounds = ["" if each[key] is None else f"{each[key]:g}" for key in ("aim", "least", "gate")]
        rows.append([each["title"], f"{each['ratio']:.2f}", *bounds, each["grade"]])
    return _table(("", "ratio", "aim", "least", "gate", ""), rows)


def _overlay(digest: Digest, underlay: str) -> str:
    rows = []
    for key, figure in FIGURES.items():
        cells = []
        for datapath in DATAPATHS:
            name, baseline = f"{underlay}/{key}/{datapath}", f"{underlay}/{key}/{BASELINE}"
            if name not in digest.samples:
                cells.append("")
                continue
            cell = _number(figure.shown(digest.seconds(name)))
            if baseline in digest.samples and datapath != BASELINE:
                ratio = digest.ratio(name, baseline)
                cell += f" ({1 / ratio if figure.is_rate else ratio:.2f})"
            cells.append(cell)
        rows.append([f"{figure.title}, {figure.unit}", *cells])
    return _table(("", *DATAPATHS.values()), rows)


def _parts(digest: Digest) -> str:
    rows = []
    for title, names in digest.groups.items():
        for name in names:
            _, kind, what = (*name.split("/", 2), "")[:3]
            if not name.startswith("parts/"):
                continue
            cells = [title, what or kind, _time(digest.seconds(name))]
            baseline = digest.beside.get(name, name)
            if baseline != name:
                cells += [f"{digest.ratio(name, baseline):.2f}", baseline.split("/", 2)[2]]
            rows.append([*cells, "", ""][:5])
    return _table(("", "part", "time", "ratio", "to"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time(seconds: float) -> str:
    for unit, scale in (("ns", 1e9), ("us", 1e6)):
        if seconds * scale < 1000:
            return f"{_number(seconds * scale)} {unit}"
    return f"{_number(seconds * 1e3)} ms"


def write(digest: Digest, directory: Path) -> None:
    """benchmarks.json, benchmarks.md and benchmarks.svg."""
    text = json.dumps(asdict(digest), indent=1)
    (directory / "benchmarks.json").write_text(text + "\n")
    (directory / "benchmarks.md").write_text(page(digest))
    (directory / "benchmarks.svg").write_bytes(chart.draw(digest.ratio, digest.samples))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("results", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--to", type=Path, default=DOCS, help="directory to write to")
    arguments = parser.parse_args(argv)
    try:
        digest = Digest.of(read_results(arguments.results))
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 2
    write(digest, arguments.to)
    for each in digest.verdicts:
        print(f"{each['grade']:>13}  {each['title']}: {each['ratio']:.2f}")
    print(f"wrote benchmarks.md, benchmarks.json and benchmarks.svg in {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
