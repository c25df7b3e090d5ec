"""An invalid entry below ``<prefix>/subnets/`` causes one warning and removes no other route."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from etcd_server import wait_until
from instruments import EtcdWriter, lease_value, log_lines, routes, unreachable, wait_until_seen

from flannel_udp.lab.lab import Host, Lab

ELSEWHERE = "172.30.0.50"  # a PublicIP that is nobody's here


def garbage(lab: Lab) -> dict[str, tuple[str, str]]:
    """Key -> value and what the warning about it must contain.

    Some of it is aimed at the first two hosts of the lab.
    """
    one, other = lab.hosts[:2]
    assert one.subnet
    assert other.subnet
    good = lease_value(ELSEWHERE)
    return {
        # keys that are not subnets
        "hello": (good, '"hello"'),
        "10.1.160.0": (good, '"10.1.160.0"'),
        "10.1.160.0-33": (good, '"10.1.160.0-33"'),
        "10.1.160.7-24": (good, '"10.1.160.7-24"'),
        "10.1.0160.0-24": (good, '"10.1.0160.0-24"'),
        "10.1.161.0-24/x": (good, '"10.1.161.0-24/x"'),
        "10.1.161.0-24&nonsense-64": (good, "nonsense"),
        "\u202e10.1.162.0-24": (good, "202e"),
        "x" * 1000: (good, "xxxx"),
        # values that are not leases
        "10.1.170.0-24": ("", "10.1.170.0-24"),
        "10.1.171.0-24": ("{", "10.1.171.0-24"),
        "10.1.172.0-24": ("[]", "10.1.172.0-24"),
        "10.1.173.0-24": ("null", "10.1.173.0-24"),
        "10.1.174.0-24": ("{}", "10.1.174.0-24"),
        "10.1.175.0-24": ('{"PublicIP":7}', "10.1.175.0-24"),
        "10.1.176.0-24": ('{"PublicIP":"172.30.0.999"}', "172.30.0.999"),
        "10.1.177.0-24": ('{"PublicIP":"fd00::1"}', "fd00::1"),
        "10.1.178.0-24": ("[" * 100_000, "10.1.178.0-24"),
        "10.1.179.0-24": ('{"PublicIP":"172.30.0.50"}' * 2, "10.1.179.0-24"),
        # leases that must get no route
        "0.0.0.0-0": (good, "not inside Network"),
        "10.0.0.0-8": (good, "not inside Network"),
        "192.168.7.0-24": (good, "not inside Network"),
        "10.1.180.0-24": (lease_value("10.1.5.9"), "inside Network"),
        "10.1.181.0-24": (lease_value("127.0.0.1"), "loopback"),
        "10.1.182.0-24": (lease_value("224.0.0.1"), "multicast"),
        "10.1.183.0-24": (lease_value("255.255.255.255"), "not the address of a host"),
        "10.1.184.0-24": (lease_value("0.0.0.0"), "not the address of a host"),
        "10.1.186.0-24": (lease_value("240.0.0.1"), "not the address of a host"),
        "10.1.187.0-24": (lease_value("172.30.0.255"), "a broadcast address"),
        "10.1.185.0-24": (
            '{"PublicIP":"172.30.0.50","BackendType":"vxlan","BackendData":{"VNI":1}}',
            "vxlan",
        ),
        # leases that overlap with those of others
        f"{other.subnet[0]}-25": (good, f"{other.subnet[0]}-25"),
        f"{other.subnet[128]}-25": (good, f"{other.subnet[128]}-25"),
        f"{other.subnet[2]}-32": (good, f"{other.subnet[2]}-32"),
        f"{other.subnet[0]}-24&fd00:0:0:5::-64": (good, "another key leases the same subnet"),
        f"{one.subnet[0]}-26": (good, f"{one.subnet[0]}-26"),
        f"{one.subnet[0]}-24&fd00:0:0:6::-64": (good, f"{one.subnet[0]}-24&"),
    }


# Leases that are odd and harmless: each has its route, or needs none.
ODD = {
    "10.1.0.0-17": lease_value(ELSEWHERE),
    "10.1.190.0-24": '{"PublicIP":"172.30.0.50","BackendType":"UDP","New":{"a":[1]}}',
    "10.1.191.0-24&fd00:0:0:7::-64": lease_value(ELSEWHERE),
    "10.1.192.4-30": lease_value(ELSEWHERE),
}
ODD_ROUTES = {"10.1.0.0/17", "10.1.190.0/24", "10.1.191.0/24", "10.1.192.4/30"}


def true_routes(lab: Lab, host: Host) -> dict[str, str]:
    return {str(other.subnet): str(other.address) for other in lab.hosts if other != host}


@pytest.fixture
def littered(lab: Lab) -> Iterator[EtcdWriter]:
    """The lab with all invalid entries in etcd while its daemons run."""
    writer = EtcdWriter(lab)
    for host in lab.hosts:
        host.log_path.write_text("")
    litter = {name: value for name, (value, _) in garbage(lab).items()} | ODD
    writer.put_many(litter)
    last = writer.put("10.1.199.0-24", lease_value(ELSEWHERE))
    wait_until_seen(lab, last)
    yield writer
    for name in (*litter, "10.1.199.0-24"):
        last = writer.delete(name)
    wait_until_seen(lab, last)


def assert_good_routes_work(lab: Lab) -> None:
    added = dict.fromkeys((*ODD_ROUTES, "10.1.199.0/24"), ELSEWHERE)
    for host in lab.hosts:
        assert routes(host) == true_routes(lab, host) | added
    assert unreachable(lab) == []


def assert_one_warning_each(host: Host, words: dict[str, str]) -> None:
    warnings = log_lines(host, "WARNING")
    for key, word in words.items():
        about = [line for line in warnings if word in line]
        assert about, f"no warning about {key}"
    assert len(warnings) == len(words), "\n".join(line[:200] for line in warnings)
    assert max(map(len, warnings)) < 500


@pytest.mark.usefixtures("littered")
def test_new_invalid_leases_remove_no_route(lab: Lab) -> None:
    assert_good_routes_work(lab)
    # The first two hosts log other reasons for the entries about themselves.
    assert_one_warning_each(lab.hosts[2], {key: word for key, (_, word) in garbage(lab).items()})
    for host in lab.hosts[:2]:
        assert len(log_lines(host, "WARNING")) == len(garbage(lab))


@pytest.mark.usefixtures("littered")
def test_invalid_leases_at_the_start_remove_no_route(lab: Lab) -> None:
    before = [host.subnet for host in lab.hosts]
    for host in lab.hosts:
        assert host.stop_daemon() == 0
        host.log_path.write_text("")
    lab.start_daemons()
    assert [host.subnet for host in lab.hosts] == before
    wait_until(
        lambda: all(host.status()["etcd"]["state"] == "watching" for host in lab.hosts),
        "following the leases",
    )
    assert_good_routes_work(lab)


def test_route_follows_every_change_of_a_public_ip(lab: Lab) -> None:
    writer, host = EtcdWriter(lab), lab.hosts[0]
    for value, expected in (
        (lease_value(ELSEWHERE), ELSEWHERE),
        (lease_value(str(host.address)), None),
        (lease_value("172.30.0.51"), "172.30.0.51"),
        ("broken", None),
        (lease_value(ELSEWHERE), ELSEWHERE),
    ):
        last = writer.put("10.1.195.0-24", value)
        wait_until_seen(lab, last)
        assert routes(host).get("10.1.195.0/24") == expected
    last = writer.delete("10.1.195.0-24")
    wait_until_seen(lab, last)
    assert routes(host) == true_routes(lab, host)
