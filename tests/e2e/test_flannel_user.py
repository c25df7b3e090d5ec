"""A host that ran flannel keeps its command line and files, and its containers' addresses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from instruments import leases, same_to_both, seen_by_both

from flannel_udp.lab.lab import Host, Lab

CONFIG = (
    '{"Network":"192.168.0.0/16","SubnetLen":24,"SubnetMin":"192.168.1.0",'
    '"SubnetMax":"192.168.100.0","Backend":{"Type":"udp"}}'
)
PREFIX = "/flannel/network"

# Each host gets its own /run, in which /run/flannel is the directory that the lab reads.
OWN_RUN = 'mount -t tmpfs tmpfs /run; mkdir /run/flannel; mount --bind "$0" /run/flannel; exec "$@"'


def in_own_run(host: Host, *command: str) -> list[str]:
    return ["sh", "-e", "-c", OWN_RUN, str(host.directory), *command]


def flannel_command(lab: Lab, host: Host) -> list[str]:
    flags = [f"-etcd-endpoints={lab.etcd.url}", f"-etcd-prefix={PREFIX}", "-iface=eth0"]
    return in_own_run(host, sys.executable, "-m", "flannel_udp", *flags)


@pytest.fixture(scope="module")
def user_lab(network_rights: None) -> Iterator[Lab]:
    with (
        Lab(hosts=2, config=CONFIG, prefix=PREFIX, start_daemons=False) as lab,
        pytest.MonkeyPatch.context() as patch,
    ):
        for host in lab.hosts:
            command = flannel_command(lab, host)
            patch.setattr(host, "daemon_command", lambda _, command=command: command)
        lab.start_daemons()
        assert None not in lab.ping_matrix().values()
        yield lab


def test_subnets_come_from_the_configured_range(user_lab: Lab) -> None:
    for host in user_lab.hosts:
        assert host.subnet
        assert host.subnet.prefixlen == 24
        first = IPv4Address("192.168.1.0"), IPv4Address("192.168.100.0")
        assert first[0] <= host.subnet.network_address <= first[1]


def test_lease_in_etcd_is_byte_for_byte_what_flannel_writes(user_lab: Lab) -> None:
    assert leases(user_lab) == {
        str(host.subnet).replace("/", "-"): f'{{"PublicIP":"{host.address}","PublicIPv6":null}}'
        for host in user_lab.hosts
    }
    for host in user_lab.hosts:
        key = f"{PREFIX}/subnets/{str(host.subnet).replace('/', '-')}"
        answer = json.loads(user_lab.etcdctl("get", "--write-out=json", key))
        lease = f"{answer['kvs'][0]['lease']:x}"
        left = json.loads(user_lab.etcdctl("lease", "timetolive", lease, "--write-out=json"))
        assert left["granted-ttl"] == 86_400
        assert 86_000 < left["ttl"] <= 86_400


def test_subnet_env_has_flannels_path_and_content(user_lab: Lab) -> None:
    for host in user_lab.hosts:
        assert host.subnet
        assert host.subnet_file.read_text() == (
            "FLANNEL_NETWORK=192.168.0.0/16\n"
            f"FLANNEL_SUBNET={host.subnet[1]}/24\n"
            "FLANNEL_MTU=1472\n"
            "FLANNEL_IPMASQ=false\n"
        )


def test_docker_options_are_the_four_lines_that_flannel_writes(user_lab: Lab) -> None:
    host = user_lab.hosts[0]
    script = Path(sys.executable).with_name("mk-docker-opts")
    options = ("-k", "DOCKER_NETWORK_OPTIONS", "-d", "/run/flannel/docker")
    host.run(in_own_run(host, str(script), *options), check=True)
    assert host.subnet
    gateway = f"{host.subnet[1]}/24"
    assert (host.directory / "docker").read_text() == (
        f'DOCKER_OPT_BIP="--bip={gateway}"\n'
        'DOCKER_OPT_IPMASQ="--ip-masq=true"\n'
        'DOCKER_OPT_MTU="--mtu=1472"\n'
        f'DOCKER_NETWORK_OPTIONS=" --bip={gateway} --ip-masq=true --mtu=1472"\n'
    )


def test_device_has_one_address_one_route_and_the_mtu(user_lab: Lab) -> None:
    host = user_lab.hosts[0]
    assert host.subnet
    first = str(host.subnet.network_address)
    shown = json.loads(host.run(["ip", "-j", "address", "show", "flannel0"], check=True).stdout)[0]
    assert shown["mtu"] == 1472
    addresses = [(at["local"], at["prefixlen"]) for at in shown["addr_info"]]
    assert addresses == [(first, 32)]
    routes = json.loads(host.run(["ip", "-j", "route", "show", "dev", "flannel0"]).stdout)
    assert [route["dst"] for route in routes] == ["192.168.0.0/16"]


def test_ping_between_containers_shows_ttl_62(user_lab: Lab) -> None:
    one, other = user_lab.containers
    answer = one.run(["ping", "-c", "1", "-W", "2", str(other.address)])
    assert "ttl=62" in answer.stdout


def test_containers_reach_each_other_without_nat(user_lab: Lab) -> None:
    one, other = user_lab.containers
    for client, server in ((one, other), (other, one)):
        seen = seen_by_both(client, server, server.address)
        assert seen == same_to_both(client.address, server.address)


def test_hosts_and_containers_reach_each_other_without_nat(user_lab: Lab) -> None:
    for host in user_lab.hosts:
        assert host.subnet
        tunnel_address = host.subnet.network_address
        far = next(
            container for container in user_lab.containers if container.address not in host.subnet
        )
        seen = seen_by_both(host, far, far.address)
        assert seen == same_to_both(tunnel_address, far.address)
        seen = seen_by_both(far, host, tunnel_address)
        assert seen == same_to_both(far.address, tunnel_address)
        near = host.containers[0]
        bridge = host.subnet[1]
        assert seen_by_both(host, near, near.address) == same_to_both(bridge, near.address)
        assert seen_by_both(near, host, bridge) == same_to_both(near.address, bridge)


def test_address_a_container_has_is_the_address_others_see(user_lab: Lab) -> None:
    one, other = user_lab.containers
    links = json.loads(one.run(["ip", "-4", "-j", "address", "show", "eth0"], check=True).stdout)
    own = links[0]["addr_info"][0]["local"]
    assert seen_by_both(one, other, other.address)["client to server"] == own
    assert seen_by_both(other, one, one.address)["server to client"] == own
