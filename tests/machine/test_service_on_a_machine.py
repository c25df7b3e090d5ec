"""The README's sections "As a service" and "With docker" in a virtual machine with a systemd of its
own; the other host is a namespace of the lab."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network

import pytest
from etcd_server import wait_until
from instruments import connect, listen
from machine.image import installed_image
from machine.qemu import Machine
from machine.stopwatch import timed
from systemd_host import SETTINGS, documented

from flannel_udp.lab.lab import Container, Lab

# An image of busybox alone. Its web server shows a client the address that it sees.
_IMAGE = """\
set -e
mkdir -p image/bin image/www/cgi-bin
cp /bin/busybox image/bin
for each in hostname httpd nc ping sh sleep; do ln -s busybox image/bin/$each; done
printf '#!/bin/sh\\necho\\necho $REMOTE_ADDR\\n' > image/www/cgi-bin/client
chmod +x image/www/cgi-bin/client
tar -C image -c . | docker import - busybox
"""
_NAME = "always"
_SETUP = ("install ", "systemctl ")  # what sets docker up begins with this
_SUBNET = "sed -n s/^FLANNEL_SUBNET=//p /run/flannel/subnet.env"


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=1) as lab:
        yield lab


@pytest.fixture(scope="module")
def there(lab: Lab) -> Container:
    """The container of the other host."""
    (container,) = lab.containers
    return container


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Machine]:
    """Everything is installed and started as the README says, and docker runs one container."""
    with installed_image() as folder, Machine(lab, folder) as machine:
        with timed("install and start the service"):
            _start_service(machine, lab)
        with timed("restart docker with the service's options"):
            commands = [each for each in documented("With docker") if each.startswith(_SETUP)]
            machine.run_all(*commands)
        with timed("start a container"):
            machine.run_all(_IMAGE)
            options = f"--detach --restart=always --stop-timeout 1 --name {_NAME}"
            machine.run_all(f"docker run {options} busybox httpd -f -p 0.0.0.0:80 -h /www")
        yield machine


def _start_service(machine: Machine, lab: Lab) -> None:
    commands = documented("As a service")
    begin = commands.index("systemctl daemon-reload")
    machine.run_all(*commands[:begin])
    settings = {"ETCD_ENDPOINTS": lab.etcd.url, "IFACE": "eth0", "IP_MASQ": "true"}
    for name, value in settings.items():
        machine.run_all(f"sed -i 's|^# FLANNELD_{name}=.*|FLANNELD_{name}={value}|' {SETTINGS}")
    machine.run_all(*commands[begin:])


def assert_containers_meet(machine: Machine, there: Container) -> None:
    """Each of the two containers connects to the other, which sees the connecting one's address."""
    own = IPv4Address(machine.run_all(f"docker exec {_NAME} hostname -i").strip())
    assert own in IPv4Network(machine.run_all(_SUBNET).strip(), strict=False)
    wait_until(lambda: _client_seen_by(there, own), "an answer", 30)
    assert _client_seen_by(there, own) == str(there.address)
    with listen(there, socket.SOCK_STREAM) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        machine.run_all(f"docker exec --detach {_NAME} nc {there.address} {port}")
        connection, client = server.accept()
        connection.close()
    assert client[0] == str(own)


def _client_seen_by(client: Container, server: IPv4Address) -> str:
    """The client's address as the web server in the machine's container sees it, or ""."""
    with suppress(OSError), connect(client, server, 80) as connection:
        connection.sendall(b"GET /cgi-bin/client HTTP/1.0\r\n\r\n")
        connection.settimeout(30)
        answer = connection.makefile().read()
        return answer.rpartition("\n\n")[2].strip()
    return ""


def assert_quiet(machine: Machine, *units: str) -> None:
    """None of the units has logged a warning of ours since the machine booted."""
    log = machine.run_all(f"journalctl --boot --output=cat {' '.join(f'-u {x}' for x in units)}")
    assert "INFO forwarding: " in log
    assert "WARNING" not in log
    assert "unset environment variable" not in log


def test_containers_of_machine_and_host_see_each_others_own_addresses(
    machine: Machine, there: Container
) -> None:
    assert machine.run("modprobe vxlan").returncode == 1
    with timed("connect both ways"):
        assert_containers_meet(machine, there)
    with timed("docker commands of the README"):
        run, tell, ping = (x for x in documented("With docker") if x.startswith("docker "))
        output = machine.run_all(run, tell, ping.replace("10.1.6.2", str(there.address)))
        machine.run_all("docker rm --force pinged")
        assert " 0% packet loss" in output
    with timed("status --check"):
        machine.run_all("/opt/flannel-udp/bin/flannel-udp status --check")
    assert_quiet(machine, "flannel-udp")  # docker was first started without our options


def test_reboot_brings_service_docker_and_container_back(
    machine: Machine, there: Container
) -> None:
    subnet = machine.run_all(_SUBNET)
    with timed("reboot"):
        machine.reboot()
    with timed("connect both ways"):
        assert_containers_meet(machine, there)
    assert machine.run_all(_SUBNET) == subnet
    assert_quiet(machine, "flannel-udp", "docker")


def test_own_etcd_beside_that_of_the_package_is_refused_and_leaves_nothing(
    machine: Machine,
) -> None:
    with timed("flannel-udp etcd beside Debian's"):
        machine.run_all("systemctl start etcd")
        command = "/opt/flannel-udp/bin/flannel-udp etcd --iface eth0 --network 10.1.0.0/16"
        result = machine.run(command)
        machine.run_all("systemctl stop etcd")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "port 2379" in line
    assert "of etcd.service" in line
    assert machine.run("systemctl cat flannel-udp-etcd").returncode == 1
