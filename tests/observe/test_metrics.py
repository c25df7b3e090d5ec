"""/metrics is well formed and complete, and matches the dashboard and the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from flannel_udp.backends.pump.pump import STAT_NAMES
from flannel_udp.observe.metrics import exposition
from flannel_udp.observe.readiness import Status
from flannel_udp.observe.status import QUEUE_DROPS

ROOT = Path(__file__).parents[2]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

STARTING: Status = {"version": "0.1.0", "ready": False, "reason": "starting"}
PEER = {
    "public_ip": "172.30.0.2",
    "subnets": ["10.1.6.0/24"],
    "age_seconds": 5.0,
    "sent_packets": 11,
    "sent_bytes": 12,
    "received_packets": 13,
    "received_bytes": 14,
    "dropped_packets": 15,
    "refuses_gso": True,
}
FORWARDING: Status = {
    **{"version": "0.1.0", "ready": True, "reason": None},
    **{"network": "10.1.0.0/16", "subnet": "10.1.5.0/24", "public_ip": "172.30.0.1", "port": 8285},
    **{"interface": "eth0", "device": "flannel0", "preset": "auto", "mtu": 1472},
    "offloads": ["TSO", "UDP GSO"],
    "refused_superpackets": ["UDP"],
    "config_changed": None,
    "public_ip_conflict": "another daemon uses PublicIP 172.30.0.1 too",
    **{"reservation": False, "lease_seconds_left": 86_000.5},
    "etcd": {"state": "watching", "revision": 77, "resyncs": 2, "silent_seconds": 0.0}
    | {"history_losses": 1, "lease_contested": "another host claims it"}
    | {"stale_leases_removed": 3},
    "held": [{"subnet": "10.1.7.0/24", "public_ip": "172.30.0.9", "seconds_left": 50.0}],
    "stats": {name: number for number, name in enumerate([*STAT_NAMES, QUEUE_DROPS], 1000)},
    "peers": [PEER, PEER | {"public_ip": "172.30.0.3", "sent_packets": 21, "refuses_gso": False}],
}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(status: Status) -> Samples:
    body, content_type = exposition(lambda: status)("")
    assert content_type.startswith("text/plain")
    families = parser.text_string_to_metric_families(body.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def names(found: Samples) -> set[str]:
    return {name for name, _ in found}


def test_every_counter_of_the_pump_is_exported_with_its_value() -> None:
    found = samples(FORWARDING)
    for name, expected in FORWARDING["stats"].items():
        if name == "routes":
            assert value(found, "flannel_routes") == expected
        elif name == "cpu_ns":
            assert value(found, "flannel_worker_cpu_seconds_total") == expected / 1e9
        elif name.startswith("drop_"):
            _, direction, reason = name.split("_", 2)
            labels = {"direction": direction, "reason": reason}
            assert value(found, "flannel_dropped_packets_total", **labels) == expected
        else:
            assert value(found, f"flannel_{name}_total") == expected


def test_the_rest_of_the_status_is_exported() -> None:
    found = samples(FORWARDING)
    assert value(found, "flannel_ready") == 1
    assert value(found, "flannel_build_info", version="0.1.0") == 1
    assert value(found, "flannel_mtu_bytes") == 1472
    assert value(found, "flannel_public_ip_conflict") == 1
    assert value(found, "flannel_lease_remaining_seconds") == 86_000.5
    assert value(found, "flannel_etcd_state", state="watching") == 1
    assert value(found, "flannel_etcd_state", state="resync") == 0
    assert value(found, "flannel_etcd_revision") == 77
    assert value(found, "flannel_etcd_resyncs_total") == 2
    assert value(found, "flannel_etcd_history_losses_total") == 1
    assert value(found, "flannel_lease_contested") == 1
    assert value(found, "flannel_stale_leases_removed_total") == 3
    assert value(found, "flannel_held_leases") == 1
    assert value(found, "flannel_offload_enabled", offload="UDP GSO") == 1
    assert value(found, "flannel_offload_enabled", offload="UDP GRO") == 0
    refused = {
        offload: value(found, "flannel_offload_refused", offload=offload)
        for offload in ("TSO", "USO", "UDP GSO")
    }
    assert refused == {"TSO": 0, "USO": 1, "UDP GSO": 1}
    assert value(found, "flannel_peers") == 2
    assert value(found, "flannel_peer_sent_packets_total", peer="172.30.0.2") == 11
    assert value(found, "flannel_peer_sent_packets_total", peer="172.30.0.3") == 21
    assert value(found, "flannel_peer_dropped_packets_total", peer="172.30.0.3") == 15
    assert value(found, "process_resident_memory_bytes") > 1_000_000


def test_a_reservation_has_no_remaining_time() -> None:
    found = samples(FORWARDING | {"reservation": True, "lease_seconds_left": None})
    assert "flannel_lease_remaining_seconds" not in names(found)


def test_a_starting_daemon_shows_only_that_it_is_not_ready() -> None:
    found = samples(STARTING)
    assert {name for name in names(found) if name.startswith("flannel_")} == {
        "flannel_build_info",
        "flannel_ready",
    }
    assert value(found, "flannel_ready") == 0


@pytest.mark.parametrize("status", [STARTING, FORWARDING], ids=["starting", "forwarding"])
def test_the_strict_parser_of_openmetrics_accepts_it(status: Status) -> None:
    body, content_type = exposition(lambda: status)(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    strict: Any = openmetrics  # which has no type hints
    families = list(strict.text_string_to_metric_families(body.decode()))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation for family in families)


def test_every_metric_has_a_help_text_of_its_own() -> None:
    body, _ = exposition(lambda: FORWARDING)("")
    helps = [line.split(" ", 3)[2:] for line in body.decode().splitlines() if "# HELP" in line]
    texts = dict(each for each in helps if each[0].startswith("flannel_"))
    assert len(set(texts.values())) == len(texts), "two metrics have the same text"
    for name, text in texts.items():
        assert len(text.split()) > 1, name
        assert "docs/" not in text
        assert name.removesuffix("_total").removeprefix("flannel_") not in text


def test_the_dashboard_queries_only_metrics_and_labels_that_exist() -> None:
    found = samples(FORWARDING)
    labels = {label for _, pairs in found for label, _ in pairs} | {"instance"}
    dashboard = json.loads((ROOT / "packaging/grafana-dashboard.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(targets) > 10
    queries = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    (instance,) = (re.fullmatch(r"label_values\((\w+), (\w+)\)", each["query"]) for each in queries)
    assert instance
    assert instance[1] in names(found)
    assert instance[2] in labels
    for target in targets:
        asked = set(re.findall(r"\b(?:flannel|process)_\w+", target["expr"]))
        assert asked
        assert asked <= names(found)
        selectors = " ".join(re.findall(r"\{(.*?)\}", target["expr"]))
        assert set(re.findall(r"(\w+)=", selectors)) <= labels
        variables = set(re.findall(r"\$(\w+)", selectors))
        assert variables <= {each["name"] for each in dashboard["templating"]["list"]}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels


def test_operations_explains_exactly_the_metrics_that_exist() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    explained = set(re.findall(r"`(flannel_\w+)`", text)) - {"flannel_"}
    counters = {f"flannel_{name}_total" for name in STAT_NAMES}  # under their names in the status
    actual = {name for name in names(samples(FORWARDING)) if name.startswith("flannel_")}
    assert explained == actual - counters
