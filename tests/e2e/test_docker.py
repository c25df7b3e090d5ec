"""Real docker on the overlay, with the packaged unit, drop-in and options file."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from dockerd import OPTIONS, Dockerd
from etcd_server import wait_until
from instruments import connect, log_lines, same_to_both, seen_by_both
from systemd_host import SETTINGS, UNIT, UNITS, SystemdHost

from flannel_udp.lab.lab import UNDERLAY, Container, Lab

README = Path(__file__).parents[2] / "README.md"
NAME = "idle"


@pytest.fixture(scope="module")
def docker_lab(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=2, containers=0, start_daemons=False) as lab:
        for host in lab.hosts:
            # Docker then enables it and sets the FORWARD chain to DROP.
            host.netns.sysctl("ipv4/ip_forward", 0)
        yield lab


@pytest.fixture(scope="module")
def dockers(docker_lab: Lab) -> Iterator[list[Dockerd]]:
    """Docker's start also starts flannel-udp."""
    with ExitStack() as running:
        booted = [running.enter_context(SystemdHost(host)) for host in docker_lab.hosts]
        for each in booted:
            each.install_service(docker_lab, "FLANNELD_IPTABLES_RESYNC=1", "FLANNELD_IP_MASQ=true")
        yield [running.enter_context(Dockerd(each)) for each in booted]
        for each in booted:
            print(each.log)


@pytest.fixture(scope="module")
def containers(dockers: list[Dockerd]) -> list[Container]:
    """One container on each host."""
    return [docker.run_container(NAME) for docker in dockers]


def checked(docker: Dockerd) -> dict[str, str]:
    """The bad findings of status --check on the host, by subject."""
    result = docker.booted.run("/opt/flannel-udp/bin/flannel-udp status --check --json")
    found = json.loads(result.stdout)
    return {each["subject"]: each["text"] for each in found if not each["is_good"]}


def test_docker_uses_the_hosts_subnet_and_mtu(
    dockers: list[Dockerd], containers: list[Container]
) -> None:
    for docker, container in zip(dockers, containers, strict=True):
        assert docker.host.subnet
        assert container.address in docker.host.subnet
        assert " mtu 1472 " in docker.inside(NAME, "ip", "link", "show", "eth0")
        assert checked(docker) == {}


def test_containers_reach_each_other_although_docker_drops_forwarded_packets(
    docker_lab: Lab, dockers: list[Dockerd], containers: list[Container]
) -> None:
    for docker in dockers:
        assert "-P FORWARD DROP" in docker.host.run(["iptables", "-S", "FORWARD"]).stdout
        assert docker.host.status()["firewall"]["problems"] == []
    here, there = containers
    output = dockers[0].inside(NAME, "ping", "-c", "3", "-W", "5", str(there.address))
    assert "ttl=62" in output
    assert " 0% packet loss" in output
    full = ["ping", "-c", "1", "-W", "5", "-M", "do", "-s", "1444", str(here.address)]
    assert there.run(full).returncode == 0


def test_three_rules_of_kubernetes_hold(
    docker_lab: Lab, dockers: list[Dockerd], containers: list[Container]
) -> None:
    here, there = containers
    for client, server in ((here, there), (there, here)):
        addresses = (client.address, server.address)
        assert seen_by_both(client, server, server.address) == same_to_both(*addresses)
    host = docker_lab.hosts[0]
    assert host.subnet
    tunnel = host.subnet.network_address
    assert seen_by_both(host, there, there.address) == same_to_both(tunnel, there.address)
    assert seen_by_both(there, host, tunnel) == same_to_both(there.address, tunnel)


def test_start_of_docker_is_no_reason_for_a_warning(dockers: list[Dockerd]) -> None:
    host = dockers[0].host
    assert log_lines(host, "INFO docker put its chains before flannel's in FORWARD")
    warnings = log_lines(host, "WARNING")
    assert [line for line in warnings if "ip_forward is 0" not in line] == []  # before docker


def test_containers_of_the_readme_ping_each_other(dockers: list[Dockerd]) -> None:
    lines = re.findall(r"^docker (.*)", README.read_text(), re.MULTILINE)
    start, tell, ping = map(shlex.split, lines)
    dockers[1].docker(*start)
    ping[-1] = dockers[1].docker(*tell)
    try:
        assert " 0% packet loss" in dockers[0].docker(*ping)
    finally:
        dockers[1].docker("rm", "--force", "pinged")


def test_container_connects_to_a_host_outside_the_overlay(
    docker_lab: Lab, containers: list[Container]
) -> None:
    def listen_outside() -> socket.socket:
        return socket.create_server((str(UNDERLAY.ip), 0))

    with docker_lab.switch.call(listen_outside) as server:
        server.settimeout(10)
        with connect(containers[0], UNDERLAY.ip, server.getsockname()[1]):
            accepted, peer = server.accept()
            accepted.close()
    assert peer[0] == str(docker_lab.hosts[0].address)


def test_restart_of_docker_loses_no_packet_of_the_host(
    docker_lab: Lab, dockers: list[Dockerd], containers: list[Container]
) -> None:
    docker, (_, there) = dockers[0], containers
    host = docker.host
    assert host.subnet
    tunnel = str(host.subnet.network_address)
    # While docker is stopped, the other host's containers must reach this host itself.
    ping = ["ping", "-n", "-q", "-i", "0.02", "-c", "200", "-W", "5", tunnel]
    with there.netns.popen(ping, stdout=subprocess.PIPE, text=True) as pinging:
        docker.booted.run_all("systemctl restart docker")
        containers[0] = again = docker.start_container(NAME)
        summary, _ = pinging.communicate(timeout=60)
    assert "200 packets transmitted, 200 received" in summary
    wait_until(lambda: docker_lab.ping(there, again, wait=1), "the container being reached again")
    assert seen_by_both(again, there, there.address) == same_to_both(again.address, there.address)
    assert host.status()["firewall"]["problems"] == []


def test_status_reports_that_docker_masquerades_without_ip_masq(
    docker_lab: Lab, dockers: list[Dockerd], containers: list[Container]
) -> None:
    docker, (_, there) = dockers[0], containers
    host = docker.host
    assert host.subnet
    docker.booted.run_all("systemctl stop docker docker.socket", f"rm {OPTIONS}")
    refused = docker.booted.run("systemctl start docker")
    assert refused.returncode == 1, "docker came up with a subnet of its own choice"
    docker.booted.run_all(
        f"sed -i s/IP_MASQ=true/IP_MASQ=false/ {SETTINGS}",
        *(f"systemctl restart {UNIT}", "systemctl reset-failed", "systemctl start docker"),
    )
    assert "--ip-masq=true" in docker.options["DOCKER_NETWORK_OPTIONS"]
    containers[0] = again = docker.start_container(NAME)

    output = docker.inside(NAME, "ping", "-c", "3", "-W", "5", str(there.address))
    assert " 0% packet loss" in output
    assert docker_lab.ping(there, again) is not None
    seen = seen_by_both(again, there, there.address)
    assert seen["client to server"] == str(host.subnet.network_address)
    wait_until(lambda: host.status()["firewall"]["problems"], "docker's rule being named")
    (problem,) = host.status()["firewall"]["problems"]
    assert problem.startswith(f"docker masquerades {host.subnet}")
    assert re.search("--ip-masq, and docker", problem)
    assert len(log_lines(host, "WARNING docker masquerades")) == 1
    assert checked(docker) == {"firewall": problem}


def test_check_reports_docker_that_does_not_use_our_options(dockers: list[Dockerd]) -> None:
    """Without the drop-in docker uses its default subnet."""
    docker = dockers[1]
    docker.booted.run_all(
        *("systemctl stop docker docker.socket", f"rm -r {UNITS}/docker.service.d"),
        *("systemctl daemon-reload", "rm -r /var/lib/docker/network", "ip link del docker0"),
        "systemctl start docker",
    )
    sentence = checked(docker)["docker0"]
    assert sentence.startswith(f"172.17.0.1 is not in our subnet {docker.host.subnet}: docker did")
    assert "mk-docker-opts and restart docker" in sentence
