"""Options of the benchmarks, and the fixture that passes samples to pytest-benchmark."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import pytest

from bench import clock
from bench.plan import PLANS, Daemons, Plan


class Replay(Protocol):
    def __call__(
        self, group: str, name: str, seconds: Sequence[float], beside: str | None = None
    ) -> None: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("flannel_udp benchmarks")
    group.addoption("--plan", choices=PLANS, default="full", help="how much to measure")
    group.addoption("--rounds", type=int, help="instead of the plan's")
    group.addoption("--daemon-args", default="", help="flags of the daemons of the datapath auto")


def plan_of(config: pytest.Config) -> Plan:
    plan = PLANS[config.getoption("--plan")]
    rounds = config.getoption("--rounds")
    arguments = tuple(shlex.split(config.getoption("--daemon-args")))
    return replace(
        plan, rounds=rounds or plan.rounds, daemons={**plan.daemons, "auto": Daemons(arguments)}
    )


@pytest.fixture(scope="session")
def plan(pytestconfig: pytest.Config) -> Plan:
    return plan_of(pytestconfig)


@pytest.fixture
def replay(benchmark: Any) -> Replay:
    """Passes samples, in seconds, to pytest-benchmark as its rounds.

    They were measured before, interleaved with the other benchmarks. The name is that of
    limits.toml; ``beside`` is the name of the baseline.
    """

    def record(group: str, name: str, seconds: Sequence[float], beside: str | None = None) -> None:
        waiting = iter(seconds)
        benchmark.group = group
        benchmark.extra_info.update(name=name, beside=beside)
        benchmark.pedantic(lambda: clock.advance(next(waiting)), rounds=len(seconds))

    return record


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock.now))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)
    machine_info.get("cpu", {}).pop("flags", None)


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    output_json["command"] = shlex.join(["pytest", *sys.argv[1:]])
