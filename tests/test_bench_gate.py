"""The gate judges every limit and fails when the pump is slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bench import gate
from bench.bench_parts import BESIDE as PARTS
from bench.bench_routes import NAMES as ROUTES
from bench.gate import Limit, judge
from bench.plan import PLANS, UNDERLAYS

ROOT = Path(__file__).parent.parent
RATE = Limit("a rate", "direct/tcp1/auto", "direct/tcp1/vxlan", "higher", 0.4, 0.5, 0.65)
DURATION = Limit("a duration", "direct/rtt_p50/auto", "direct/rtt_p50/vxlan", "lower", 6, 4, 3)


def names(plan: str) -> set[str]:
    """The names in limits.toml of what a plan measures."""
    overlay = {
        f"{underlay}/{figure}/{datapath}"
        for underlay in UNDERLAYS
        for datapath in PLANS[plan].datapaths
        for figure in PLANS[plan].figures(datapath)
    }
    return overlay | {f"parts/{name}" for name in (*PARTS, *ROUTES)}


def samples(limit: Limit, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, list[float]]:
    return {limit.of: list(ours), limit.to: list(theirs)}


def write_results(path: Path, found: Mapping[str, list[float]]) -> Path:
    """Writes results in the form of pytest-benchmark."""
    benchmarks = [
        {"extra_info": {"name": name}, "stats": {"data": data}} for name, data in found.items()
    ]
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    return path


def every_limit_at(factor: float) -> dict[str, list[float]]:
    """Samples whose ratios are ``factor`` times better than each gate."""
    found: dict[str, list[float]] = {}
    for limit in gate.read_limits():
        if limit.gate is not None:
            baseline = found.setdefault(limit.to, [1.0])[0]
            worst = baseline / limit.gate if limit.better == "higher" else baseline * limit.gate
            found[limit.of] = [worst / factor]
    return found


def test_every_limit_compares_measured_figures() -> None:
    for limit in gate.read_limits():
        assert {limit.of, limit.to} <= names("full"), limit.title
        if limit.gate is not None:
            assert {limit.of, limit.to} <= names("gate"), limit.title


@pytest.mark.parametrize(
    ("seconds", "grade"),
    [(1.5, "aim reached"), (1.9, "least reached"), (2.4, "not reached"), (2.6, "FAILS")],
)
def test_rate_with_fewer_seconds_is_better(seconds: float, grade: str) -> None:
    (verdict,) = judge([RATE], samples(RATE, [seconds], [1.0]))
    assert verdict.ratio == pytest.approx(1 / seconds)
    assert verdict.grade == grade


@pytest.mark.parametrize(
    ("seconds", "grade"),
    [(2.9, "aim reached"), (3.9, "least reached"), (5.9, "not reached"), (6.1, "FAILS")],
)
def test_shorter_duration_is_better(seconds: float, grade: str) -> None:
    (verdict,) = judge([DURATION], samples(DURATION, [seconds], [1.0]))
    assert verdict.ratio == pytest.approx(seconds)
    assert verdict.grade == grade


def test_one_disturbed_round_does_not_change_the_verdict() -> None:
    (verdict,) = judge([RATE], samples(RATE, [2.0, 90.0, 2.2], [1.0, 1.0, 1.0]))
    assert verdict.ratio == pytest.approx(1 / 2.2)


def test_missing_figure_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = every_limit_at(1.01)
    del found["wire/udp64/vxlan"]
    assert gate.main([str(write_results(tmp_path / "results.json", found))]) == 1
    failures = [line for line in capsys.readouterr().out.splitlines() if "FAILS" in line]
    assert len(failures) == 1
    assert "wire" in failures[0]
    assert "not measured" in failures[0]


@pytest.mark.parametrize(("factor", "exit_code"), [(1.01, 0), (0.99, 1)])
def test_exit_code_is_1_beyond_the_gate(tmp_path: Path, factor: float, exit_code: int) -> None:
    results = write_results(tmp_path / "results.json", every_limit_at(factor))
    assert gate.main([str(results)]) == exit_code


@pytest.mark.parametrize(("second", "exit_code"), [([1.0] * 4, 0), ([9.0] * 4, 1)])
def test_rounds_of_two_runs_are_judged_together(
    tmp_path: Path, second: list[float], exit_code: int
) -> None:
    others = every_limit_at(1.01)
    limit = next(each for each in gate.read_limits() if each.gate is not None)
    runs = []
    for number, seconds in enumerate(([9.0] * 3, second)):
        found = {name: data * len(seconds) for name, data in others.items()}
        found |= samples(limit, seconds, [1.0] * len(seconds))
        runs.append(str(write_results(tmp_path / f"{number}.json", found)))
    assert gate.main(runs) == exit_code
    assert gate.main(runs[:1]) == 1


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_unreadable_results_are_an_error(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    if content is not None:
        results.write_text(content)
    assert gate.main([str(results)]) == 2
    assert "cannot read results" in capsys.readouterr().err


def test_slow_pump_fails_the_gate(network_rights: None, tmp_path: Path) -> None:
    """A short run of make bench-gate, without offloads."""
    results = tmp_path / "results.json"
    slow = ["--plan=gate", "--rounds=1", "--daemon-args=--offload none", "-k", "direct"]
    measure = ["pytest", "-q", "bench/bench_overlay.py", *slow, f"--benchmark-json={results}"]
    run(measure)
    judged = run(["bench.gate", str(results), "--only=direct/tcp1"], exit_code=1)
    assert "FAILS TCP, 1 stream, direct, to copies alone" in judged


def run(arguments: list[str], exit_code: int = 0) -> str:
    # pytest-benchmark measures nothing where it finds itself in a worker of pytest-xdist.
    outside = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=outside,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == exit_code, result.stdout + result.stderr
    return result.stdout
