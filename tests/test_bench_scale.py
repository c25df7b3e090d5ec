"""The measurements by the number of leases, their page, chart and limits."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import programs, scale, scale_report
from bench.scale import Figures, Traffic
from bench.scale_gate import objections
from flannel_udp.lab.lab import Lab

FIGURES = Figures(
    leases=1_000,
    starts=[0.4, 0.3, 0.5],
    memory=60_000_000,
    memory_most=70_000_000,
    changes=30_000,
    changes_per_second=999.6,
    delays=[0.001 * number for number in range(1, 101)],
    writes=[0.002],
    cpu_per_change=0.00005,
    quiet=Traffic(0.0001, 0.0002, 1_000, 0),
    busy=Traffic(0.0003, 0.0004, 5_000, 2),
)


def test_page_shows_every_figure_in_its_unit() -> None:
    row = scale_report.page([FIGURES]).splitlines()[-1]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        *("1,000", "0.40", "60, 70", "1000", "30,000", "51.0", "100.0", "100.0", "50"),
        *("300 (100)", "400 (200)", "2 of 5,000"),
    ]


GOOD = [
    replace(FIGURES, leases=size, delays=[0.001] * 600, busy=Traffic(0.0003, 0.0004, 5_000, 0))
    for size in scale.SIZES
]


def test_figures_within_the_limits_pass() -> None:
    assert list(objections(GOOD)) == []


@pytest.mark.parametrize(
    ("changed", "objection"),
    [
        ({"starts": [7.0, 6.5, 1.0]}, "65,536 leases: a start takes 6.50 s"),
        ({"delays": [0.001] * 590 + [0.021] * 10}, "99 % of the changes are routes after 21.0 ms"),
        ({"changes_per_second": 700.0}, "700 changes a second for 43 s"),
        ({"changes": 10_000}, "1000 changes a second for 10 s"),
        ({"busy": Traffic(0.0003, 0.0004, 5_000, 1)}, "1 of 5,000 pings are lost"),
        ({"cpu_per_change": 0.00011}, "CPU for a change is from 50 to 110 us"),
    ],
)
def test_figure_beyond_its_limit_is_reported(changed: dict[str, Any], objection: str) -> None:
    (found,) = objections([*GOOD[:-1], replace(GOOD[-1], **changed)])
    assert objection in found


def test_missing_figures_are_no_success() -> None:
    assert list(objections(GOOD[1:])) == ["not measured: 10 leases"]


def test_chart_has_a_curve_for_each_cost() -> None:
    picture = ElementTree.fromstring(scale_report.chart([FIGURES, replace(FIGURES, leases=10_000)]))
    texts = {element.text for element in picture.iter() if element.text}
    assert {"Memory, MB", "Start with all routes, ms", "1,000", "10,000"} <= texts


def test_written_results_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "scale.json"
    assert scale.read(path) == {}
    path.write_text(scale.encode([FIGURES]))
    assert [asdict(each) for each in scale.read(path).values()] == [asdict(FIGURES)]


def test_delay_is_from_etcds_answer_to_the_first_packet() -> None:
    one, two, three = scale.TIMED_HOSTS[:3]
    written = [(1.0, one), (1.1, two), (1.2, three)]
    seen = [(0.999, one), (1.103, two), (1.25, three)]
    assert scale.delays_of(written, seen) == pytest.approx([0, 0.003, 0.05])
    assert scale.delays_of(written, seen[1:]) == pytest.approx([0.103, 0.003, 0.05])


def test_scale_measures_real_daemons(network_rights: None, tmp_path: Path) -> None:
    """A short run: changes become routes in time, and other traffic is not disturbed."""
    traffic = programs.build("traffic", tmp_path)
    with Lab(hosts=2, config=scale.CONFIG, start_daemons=False, keeps_descriptors=True) as lab:
        figures = scale.measure(lab, 500, seconds=2, rate=1000, traffic=traffic)
    print(figures.summary())
    assert figures.changes == 2_000
    assert len(figures.delays) == 40
    assert scale.quantile(figures.delays, 0.5) < 0.5  # 20 ms is promised to a machine at rest
    assert figures.busy.unanswered < figures.busy.answered / 10  # late counts as unanswered
