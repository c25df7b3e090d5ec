"""The CNI project's own plugins, configured from subnet.env, on the overlay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Interface
from typing import Any

import pytest
from dockerd import UNPACKED
from instruments import same_to_both, seen_by_both

from flannel_udp.lab import Container, Host, Lab
from flannel_udp.lab_host import BRIDGE
from flannel_udp.netns import Namespace

PLUGINS = UNPACKED / "usr/lib/cni"


@pytest.fixture(scope="module", params=[True, False], ids=["ip-masq", "no ip-masq"])
def cni_lab(request: pytest.FixtureRequest, network_rights: None) -> Iterator[Lab]:
    flag = f"--ip-masq={str(request.param).lower()}"
    with Lab(hosts=2, containers=0, daemon_args=[flag]) as lab:
        for host in lab.hosts:
            host.netns.delete_link(BRIDGE)
        yield lab


def network(host: Host) -> dict[str, Any]:
    """What flannel's own CNI plugin hands to ``bridge`` and ``host-local``."""
    env = host.env
    assert env
    return {
        "cniVersion": "0.4.0",
        "name": "overlay",
        "type": "bridge",
        "bridge": "cni0",
        "mtu": env.mtu,
        "isDefaultGateway": True,
        "ipMasq": not env.ip_masq,
        "ipam": {
            "type": "host-local",
            "subnet": str(env.subnet_with_gateway.network),
            "routes": [{"dst": str(env.network)}],
            "dataDir": str(host.directory / "cni"),
        },
    }


def call_plugin(host: Host, command: str, namespace: Namespace) -> dict[str, Any]:
    variables = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": namespace.name,
        "CNI_NETNS": str(namespace.path),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGINS),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    plugin = str(PLUGINS / "bridge")
    result = host.run([plugin], input=json.dumps(network(host)), env=variables)
    assert result.returncode == 0, result.stdout + result.stderr
    answer: dict[str, Any] = json.loads(result.stdout or "{}")
    return answer


def plug(host: Host) -> Container:
    namespace = Namespace(f"{host.netns.name}-cni")
    namespace.create()
    answer = call_plugin(host, "ADD", namespace)
    address = IPv4Interface(answer["ips"][0]["address"])
    return Container(f"{host.name}-cni", namespace, address.ip)


def test_plugins_make_containers_that_reach_each_other(cni_lab: Lab) -> None:
    here, there = containers = [plug(host) for host in cni_lab.hosts]
    for host, container in zip(cni_lab.hosts, containers, strict=True):
        assert host.subnet
        assert container.address in host.subnet
        assert " mtu 1472 " in container.run(["ip", "link", "show", "eth0"]).stdout
    assert cni_lab.ping(here, there) is not None
    assert cni_lab.ping(there, here) is not None
    seen = seen_by_both(here, there, there.address)
    if cni_lab.hosts[0].env.ip_masq:  # type: ignore[union-attr]  # it has one
        assert seen == same_to_both(here.address, there.address)
    for host, container in zip(cni_lab.hosts, containers, strict=True):
        call_plugin(host, "DEL", container.netns)
        assert "eth0" not in container.run(["ip", "link"]).stdout
