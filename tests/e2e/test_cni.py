"""The CNI project's plugins on the overlay, with the config in the README."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest
from dockerd import UNPACKED
from etcd_server import wait_until
from instruments import same_to_both, seen_by_both

from flannel_udp.host.netns import Namespace
from flannel_udp.lab.host import BRIDGE
from flannel_udp.lab.lab import UNDERLAY, Container, Host, Lab

PLUGINS = UNPACKED / "usr/lib/cni"


README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module", params=[True, False], ids=["ip-masq", "no ip-masq"])
def cni_lab(request: pytest.FixtureRequest, network_rights: None) -> Iterator[Lab]:
    flags = [f"--ip-masq={str(request.param).lower()}", "--iptables-resync=1"]
    with Lab(hosts=2, containers=0, daemon_args=flags) as lab:
        for host in lab.hosts:
            host.netns.delete_link(BRIDGE)
        yield lab


def documented() -> dict[str, Any]:
    """The config in the README, which is for its example host."""
    (text,) = re.findall(r"```json\n(\{\n  \"cniVersion.*?)```", README.read_text(), re.DOTALL)
    config: dict[str, Any] = json.loads(text)
    return config


def network(host: Host, *, ip_masq: bool) -> dict[str, Any]:
    """The input of the first plugin: the documented config with this host's values."""
    env, config = host.env, documented()
    assert env
    (plugin,) = config.pop("plugins")
    assert (plugin["ipam"]["subnet"], plugin["mtu"], plugin["ipMasq"]) == (
        "10.1.5.0/24",
        1472,
        False,
    )
    plugin |= {"mtu": env.mtu, "ipMasq": ip_masq}
    ipam = {"subnet": str(env.subnet_with_gateway.network), "dataDir": str(host.directory / "cni")}
    return {**config, **plugin, "ipam": plugin["ipam"] | ipam}


def call_plugin(
    host: Host, command: str, namespace: Namespace, *, ip_masq: bool = False
) -> dict[str, Any]:
    variables = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": namespace.name,
        "CNI_NETNS": str(namespace.path),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGINS),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    plugin = str(PLUGINS / "bridge")
    text = json.dumps(network(host, ip_masq=ip_masq))
    result = host.run([plugin], input=text, env=variables)
    assert result.returncode == 0, result.stdout + result.stderr
    answer: dict[str, Any] = json.loads(result.stdout or "{}")
    return answer


def plug(host: Host, *, ip_masq: bool = False) -> Container:
    namespace = Namespace(f"{host.netns.name}-cni")
    namespace.create()
    answer = call_plugin(host, "ADD", namespace, ip_masq=ip_masq)
    address = IPv4Interface(answer["ips"][0]["address"])
    return Container(f"{host.name}-cni", namespace, address.ip)


@contextmanager
def plugged(lab: Lab, *, ip_masq: bool = False) -> Iterator[tuple[Container, Container]]:
    """A container on each host."""
    here, there = (plug(host, ip_masq=ip_masq) for host in lab.hosts)
    yield here, there
    for host, container in zip(lab.hosts, (here, there), strict=True):
        call_plugin(host, "DEL", container.netns, ip_masq=ip_masq)
        assert "eth0" not in container.run(["ip", "link"]).stdout
        container.netns.delete()


def test_containers_with_the_documented_config_see_each_others_addresses(cni_lab: Lab) -> None:
    """They reach hosts outside the overlay only with --ip-masq."""
    with plugged(cni_lab) as (here, there):
        for host, container in zip(cni_lab.hosts, (here, there), strict=True):
            assert host.subnet
            assert container.address in host.subnet
            assert " mtu 1472 " in container.run(["ip", "link", "show", "eth0"]).stdout
            assert host.status()["firewall"]["problems"] == []
        for client, server in ((here, there), (there, here)):
            seen = seen_by_both(client, server, server.address)
            assert seen == same_to_both(client.address, server.address)
        host = cni_lab.hosts[0]
        outside = cni_lab.ping(here, UNDERLAY.ip, wait=1)
        assert (outside is not None) == host.status()["firewall"]["masquerade"]


def test_masquerading_plugin_hides_containers_and_is_reported(cni_lab: Lab) -> None:
    """Also with flannel's rules, because the plugin's rules come after them."""
    with plugged(cni_lab, ip_masq=True) as (here, there):
        host = cni_lab.hosts[0]
        assert host.subnet
        seen = seen_by_both(here, there, there.address)
        assert seen["client to server"] == str(host.subnet.network_address)
        wait_until(lambda: host.status()["firewall"]["problems"], "the plugin's rule being named")
        (problem,) = host.status()["firewall"]["problems"]
        assert problem.startswith(f"a CNI plugin masquerades containers of {host.subnet}")
    wait_until(lambda: not host.status()["firewall"]["problems"], "its end being seen")
