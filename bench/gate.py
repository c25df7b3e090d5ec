"""Judges measured figures by their limits.

``python -m bench.gate RESULTS ..`` reads the JSON of pytest-benchmark, pools the rounds of several
runs, and exits with 1 if a figure is beyond its gate, or was not measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LIMITS = Path(__file__).with_name("limits.toml")

Samples = Mapping[str, list[float]]  # by name, as underlay/figure/datapath: seconds of every round


class ResultsError(Exception):
    """The results cannot be judged; the message says why."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The allowed ratio of two samples; see limits.toml."""

    title: str
    of: str
    to: str
    better: Literal["higher", "lower"]
    gate: float | None = None
    least: float | None = None
    aim: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``ratio`` is None if one of the two was not measured."""

    limit: Limit
    ratio: float | None

    def reaches(self, value: float | None) -> bool:
        """Whether the ratio is at least as good as ``value``; None is always reached."""
        if value is None:
            return True
        if self.ratio is None:
            return False
        return self.ratio >= value if self.limit.better == "higher" else self.ratio <= value

    @property
    def grade(self) -> str:
        """The result in one or two words, for the tables."""
        if self.ratio is None:
            return "not measured"
        if not self.reaches(self.limit.gate):
            return "FAILS"
        if not self.reaches(self.limit.least):
            return "not reached"
        return "aim reached" if self.reaches(self.limit.aim) else "least reached"


def read_limits(path: Path = LIMITS) -> list[Limit]:
    return [Limit(**table) for table in tomllib.loads(path.read_text())["limit"]]


def read_results(path: Path) -> Mapping[str, Any]:
    """pytest-benchmark's JSON, parsed. Raises ResultsError."""
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise ResultsError(f"cannot read results from {path}: {error.strerror}") from None
    except ValueError:
        raise ResultsError(f"cannot read results from {path}: it holds no JSON") from None
    if not isinstance(results, dict) or not results.get("benchmarks"):
        raise ResultsError(f"cannot read results from {path}: pytest-benchmark did not write it")
    return results


def read_samples(results: Mapping[str, Any]) -> Samples:
    """From pytest-benchmark's JSON, parsed."""
    return {each["extra_info"]["name"]: each["stats"]["data"] for each in results["benchmarks"]}


def pool(runs: Iterable[Samples]) -> Samples:
    """The rounds of all runs together, of the names that every run has measured."""
    first, *others = runs
    names = set(first).intersection(*others)
    return {name: sum((run[name] for run in others), first[name]) for name in names}


def judge(limits: Iterable[Limit], samples: Samples) -> list[Verdict]:
    return [Verdict(limit, _ratio(limit, samples)) for limit in limits]


def _ratio(limit: Limit, samples: Samples) -> float | None:
    """The median over the rounds. Samples are durations, so the ratio of rates is the inverse."""
    if limit.of not in samples or limit.to not in samples:
        return None
    pairs = zip(samples[limit.of], samples[limit.to], strict=True)
    if limit.better == "higher":
        return statistics.median(to / of for of, to in pairs)
    return statistics.median(of / to for of, to in pairs)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="what --benchmark-json wrote")
    parser.add_argument("--only", default="", help="judge only names that start with this")
    arguments = parser.parse_args(argv)
    try:
        samples = pool(read_samples(read_results(path)) for path in arguments.results)
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 2
    limits = [
        limit
        for limit in read_limits()
        if limit.gate is not None and limit.of.startswith(arguments.only)
    ]
    verdicts = judge(limits, samples)
    for verdict in verdicts:
        sign = ">=" if verdict.limit.better == "higher" else "<="
        found = "not measured" if verdict.ratio is None else f"{verdict.ratio:.2f}"
        word = "ok   " if verdict.reaches(verdict.limit.gate) else "FAILS"
        print(f"{word} {verdict.limit.title}: {found} ({sign} {verdict.limit.gate:g})")
    return 0 if all(verdict.reaches(verdict.limit.gate) for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
