"""The page and the chart that make bench writes to docs/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import report
from bench.plan import DATAPATHS, PLANS, UNDERLAYS
from bench.report import Digest, page

PARTS = {  # and their yardsticks
    "parts/lookup/65536 routes": "parts/lookup/array of 65536",
    "parts/lookup/array of 65536": None,
    "parts/event/10 routes": "parts/event/10 routes",
    "parts/event/65536 routes": "parts/event/10 routes",
}


def benchmark(group: str, name: str, seconds: list[float], beside: str | None = None) -> Any:
    return {
        "group": group,
        "extra_info": {"name": name, "beside": beside},
        "stats": {"data": seconds},
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """Results of pytest-benchmark; the second of three rounds was disturbed."""
    plan = PLANS["full"]
    overlay = [
        benchmark("", f"{underlay}/{figure}/{datapath}", [2e-6 * (1 + at), 9.0, 2e-6 * (1 + at)])
        for underlay in UNDERLAYS
        for at, datapath in enumerate(DATAPATHS)
        for figure in plan.figures(datapath)
    ]
    parts = [benchmark("Parts", name, [3e-9, 1.0, 3e-9], to) for name, to in PARTS.items()]
    return {
        "benchmarks": overlay + parts,
        "command": "pytest bench",
        "datetime": "2026-01-02T03:04:05",
        "machine_info": {
            "cpu": {"count": 2, "brand_raw": "A processor"},
            "machine": "x86_64",
            "system": "Linux",
            "release": "6.1",
            "python_version": "3.11",
        },
    }


def row(text: str, start: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_page_shows_medians_and_ratios_to_vxlan(results: dict[str, Any]) -> None:
    text = page(Digest.of(results))
    _, direct = text.split("## Underlay direct")
    direct, _ = direct.split("## Underlay wire")
    heads, round_trips = row(direct, ""), row(direct, "Round trip, median, us")
    assert heads == list(DATAPATHS.values())
    at = list(DATAPATHS).index
    assert round_trips[at("vxlan")] == "4"
    assert round_trips[at("auto")] == "6 (1.50)"
    assert row(direct, "UDP, 64 bytes, received, 1000/s")[at("auto")] == "167 (0.67)"
    assert row(direct, "CPU of both pumps, TCP, s/GB")[at("vxlan")] == ""


def test_page_shows_machine_and_grades(results: dict[str, Any]) -> None:
    text = page(Digest.of(results))
    assert row(text, "kernel") == ["Linux 6.1"]
    assert row(text, "rounds") == ["3"]
    of_vxlan = row(text, "TCP, 1 stream, direct, to kernel VXLAN")
    assert of_vxlan == ["0.67", "0.65", "0.5", "", "aim reached"]


def test_missed_aim_is_explained(results: dict[str, Any]) -> None:
    digest = Digest.of(results)
    for verdict in digest.verdicts:
        assert (f"Missed aim: {verdict['title']}" in page(digest)) == (
            verdict["grade"] != "aim reached" and bool(verdict["why"])
        )


def test_nothing_is_written_if_a_figure_is_missing(
    results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results["benchmarks"] = [
        each for each in results["benchmarks"] if each["extra_info"]["name"] != "wire/rtt_p50/vxlan"
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    docs = tmp_path / "docs"
    docs.mkdir()
    assert report.main([str(tmp_path / "results.json"), "--to", str(docs)]) == 2
    assert "Round trip, median, wire, to kernel VXLAN" in capsys.readouterr().err
    assert list(docs.iterdir()) == []


def test_page_and_chart_can_be_regenerated_from_the_json(
    results: dict[str, Any], tmp_path: Path
) -> None:
    for directory in (tmp_path / "first", tmp_path / "second"):
        directory.mkdir()
    report.write(Digest.of(results), tmp_path / "first")
    kept = Digest(**json.loads((tmp_path / "first/benchmarks.json").read_text()))
    report.write(kept, tmp_path / "second")
    for name in ("benchmarks.json", "benchmarks.md", "benchmarks.svg"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_chart_names_every_datapath_and_loads_nothing(
    results: dict[str, Any], tmp_path: Path
) -> None:
    report.write(Digest.of(results), tmp_path)
    text = (tmp_path / "benchmarks.svg").read_text()
    shown = " ".join(ElementTree.fromstring(text).itertext())
    assert all(title in shown for title in DATAPATHS.values())
    assert not re.search(r"<script[^>]*href|<image|@import", text)
