"""The packaged units, installed as the README describes and run by a real systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from etcd_server import EtcdServer, make_tls_files, wait_until
from instruments import devices, leases
from pings import Pings, longest, lost
from systemd_host import ROOT, SETTINGS, UNIT, UNITS, SystemdHost

from flannel_udp.cli import first_etcd
from flannel_udp.lab.lab import UNDERLAY, Host, Lab

PATIENCE = 30.0  # seconds


@pytest.fixture(scope="module")
def service_lab(network_rights: None) -> Iterator[Lab]:
    """The first host runs systemd, the second a daemon without it."""
    with Lab(hosts=2, containers=0, start_daemons=False) as lab:
        lab.hosts[1].start_daemon()
        yield lab


@pytest.fixture(scope="module")
def booted(service_lab: Lab) -> Iterator[SystemdHost]:
    """Its services use iptables-legacy, which needs more rights than the variant with nft."""
    with SystemdHost(service_lab.hosts[0]) as booted:
        for name in ("iptables", "iptables-save", "iptables-restore"):
            program = shutil.which(name.replace("iptables", "iptables-legacy"))
            booted.run_all(f"ln -s {program} /usr/local/sbin/{name}")
        yield booted
        print(booted.log)


@pytest.fixture(scope="module")
def service(service_lab: Lab, booted: SystemdHost) -> SystemdHost:
    """Installed and started with the commands of the README."""
    output = booted.run_all(*booted.install_service(service_lab, "FLANNELD_IP_MASQ=true"))
    assert "active (running)" in output
    assert "forwarding 10.1." in output
    return booted


def test_booted_host_cannot_change_files_of_this_machine(booted: SystemdHost) -> None:
    """Not even where the tested program is, which may be all of /usr."""
    places = (ROOT, sys.prefix, sys.base_prefix, "/opt", "/opt/flannel-udp", "/etc", "/var/lib")
    probes = [Path(place, f"probe-{os.getpid()}") for place in (*places, "/usr/local/sbin")]
    installed = Path(sys.prefix, probes[0].name)  # what /opt/flannel-udp shows
    for probe in probes:
        booted.run(f"touch {probe}")
    left = [path for path in (*probes, installed) if path.exists()]
    for path in left:
        path.unlink(missing_ok=True)  # one may be below another
    assert not left


def test_booted_host_can_set_no_sysctl_but_those_of_its_network(booted: SystemdHost) -> None:
    writable = booted.run(
        "cd /proc/sys; find fs kernel net vm -maxdepth 1 -type f -writable; "
        "find net/ipv4 -name ip_forward -writable"
    ).stdout
    assert writable == "net/ipv4/ip_forward\n"


def tunnel(host: Host) -> IPv4Address:
    subnet = host.subnet
    assert subnet
    return subnet.network_address


def wait_until_joined(lab: Lab) -> None:
    here, there = lab.hosts
    wait_until(lambda: lab.ping(there, tunnel(here), wait=1), "a ping through the tunnel", PATIENCE)


def test_service_joins_the_network_and_writes_dockers_options(
    service_lab: Lab, service: SystemdHost
) -> None:
    wait_until_joined(service_lab)
    assert service.host.status()["ready"]
    assert service.host.status()["firewall"]["tool"].endswith("(legacy)")
    rules = service.run_all("iptables-save")
    assert "MASQUERADE" in rules
    options = service.run_all("cat /run/flannel/docker")
    subnet = service.host.subnet
    assert subnet
    assert f"--bip={subnet.network_address + 1}/24 --ip-masq=false --mtu=1472" in options
    assert service.run_all("/opt/flannel-udp/bin/flannel-udp status --check").count("\n") > 1


@pytest.mark.parametrize(
    ("fault", "most"), [("systemctl restart", 0), ("systemctl kill --signal=KILL", 2)]
)
def test_restart_loses_no_packet_and_a_crash_only_few(
    service_lab: Lab, service: SystemdHost, fault: str, most: int
) -> None:
    here, there = service_lab.hosts
    wait_until_joined(service_lab)
    before = service.property_of("MainPID")

    def is_up_again() -> bool:
        is_new = service.property_of("MainPID") not in (before, "0")
        return is_new and service.property_of("ActiveState") == "active"

    with Pings(there.netns, tunnel(here)) as pings:
        began = time.monotonic()
        service.run_all(f"{fault} {UNIT}")
        wait_until(is_up_again, "the unit being active", PATIENCE)
        took = time.monotonic() - began
        wait_until_joined(service_lab)
        answered = pings.stop()
    assert len(lost(answered)) <= most
    assert longest(answered) < took, "packets waited for more than the start of the pump"
    assert service.property_of("NFileDescriptorStore") == "3"


# What the unit's processes may do (True), and what they may not although they are root.
ATTEMPTS = {
    "write to /proc/sys/net": ("echo 1 > /proc/sys/net/ipv4/conf/lo/accept_local", True),
    "lock iptables": (": >> /run/xtables.lock", True),
    "write to /run/flannel": (": > /run/flannel/probe", True),
    "open the tunnel device": (": <> /dev/net/tun", True),
    "read another user's key": ("cat /etc/probe/key", True),
    "write another user's key": (": >> /etc/probe/key", False),
    "write to /etc": (": > /etc/probe/new", False),
    "write to /var": (": > /var/probe", False),
    "write to /run": (": > /run/probe", False),
    "see a home": ("ls /home/probe", False),
    "see what others left in /tmp": ("ls /tmp/probe", False),
    "open another device": (": > /run/kmsg", False),
    "see init": ("ls /proc/1", False),
    "make a control group": ("mkdir /sys/fs/cgroup/probe$$", False),
    "make a namespace": ("unshare --user true", False),
    "make a setuid file": (": > /var/tmp/one; chmod u+s /var/tmp/one", False),
    "change its personality": ("setarch i386 true", False),
    "give a file away": (": > /var/tmp/two; chown 4321 /var/tmp/two", False),
}


def test_sandbox_allows_only_what_the_daemon_needs(service: SystemdHost) -> None:
    service.run_all(
        *("mkdir /home/probe /etc/probe /tmp/probe", "mknod /run/kmsg c 1 11"),
        *("echo secret > /etc/probe/key", "chmod 600 /etc/probe/key", "chown 4321 /etc/probe/key"),
    )
    script = "".join(
        f'({attempt}) > /dev/null 2>&1 && echo "{name}"\n'
        for name, (attempt, _) in ATTEMPTS.items()
    )
    service.write("/usr/local/bin/probe", script)
    assert service.run_all("sh /usr/local/bin/probe; true").splitlines() == list(ATTEMPTS)

    text = (ROOT / "packaging" / UNIT).read_text()
    changed = ("Type", "Environment", "Exec", "Restart", "RuntimeDirectory")
    kept = [line for line in text.splitlines() if not line.startswith(changed)]
    at = kept.index("[Service]") + 1
    kept[at:at] = [
        *("Type=oneshot", "StandardOutput=file:/run/probed", "ReadWritePaths=/run/flannel"),
        "ExecStart=-/bin/sh /usr/local/bin/probe",
    ]
    service.write(f"{UNITS}/probe.service", "\n".join(kept))
    service.run_all("systemctl daemon-reload", "systemctl start probe")
    possible = service.path("/run/probed").read_text().splitlines()
    assert possible == [name for name, (_, allowed) in ATTEMPTS.items() if allowed]


def test_settings_of_a_flannel_host_work_unchanged(service_lab: Lab, service: SystemdHost) -> None:
    """The settings file of Red Hat's flannel package."""
    prefix = "/atomic.io/network"
    service_lab.etcdctl("put", f"{prefix}/config", '{"Network":"10.7.0.0/16"}')
    ours = service.path(SETTINGS).read_text()
    service.write(SETTINGS, (ROOT / "packaging/flannel-udp.default").read_text())
    service.write(
        "/etc/sysconfig/flanneld",
        "# Flanneld configuration options\n"
        f'FLANNEL_ETCD_ENDPOINTS="{service_lab.etcd.url}"\n'
        f'FLANNEL_ETCD_PREFIX="{prefix}"\n'
        'FLANNEL_OPTIONS="-iface=eth0 -ip-masq"\n',
    )
    try:
        service.run_all(f"systemctl restart {UNIT}")
        status = service.host.status()
        assert (status["network"], status["etcd"]["prefix"]) == ("10.7.0.0/16", prefix)
        assert (status["interface"], status["firewall"]["masquerade"]) == ("eth0", True)
    finally:
        service.write(SETTINGS, ours)
    # Our file overrides the other one.
    service.write(SETTINGS, ours + "FLANNELD_ETCD_PREFIX=/coreos.com/network\n")
    service.run_all(f"systemctl restart {UNIT}")
    assert service.host.status()["network"] == "10.1.0.0/16"
    service.path("/etc/sysconfig/flanneld").unlink()
    service.write(SETTINGS, ours)


def test_daemon_reads_a_key_readable_for_etcds_user_only(
    service_lab: Lab, service: SystemdHost, tmp_path: Path
) -> None:
    files = make_tls_files(tmp_path / "tls", f"IP:{UNDERLAY.ip}")
    names = {"ca.pem": files.ca, "host.pem": files.client_cert, "host.key": files.client_key}
    for name, file in names.items():
        service.write(f"/etc/etcd/{name}", file.read_text())
    service.run_all("chmod 600 /etc/etcd/*", "chown 4321:4321 /etc/etcd/*")
    example = (ROOT / "packaging/flannel-udp.default").read_text()
    paths = re.findall(r"FLANNELD_ETCD_\w+FILE=\S+", example)
    assert len(paths) == 3
    ours = service.path(SETTINGS).read_text()
    with EtcdServer(
        tmp_path / "etcd",
        tls=files,
        client_cert_auth=True,
        netns=service_lab.switch,
        address=str(UNDERLAY.ip),
    ) as etcd:
        etcd.put("/coreos.com/network/config", '{"Network":"10.8.0.0/16"}')
        lines = [ours, f"FLANNELD_ETCD_ENDPOINTS={etcd.url}", *paths]
        service.write(SETTINGS, "\n".join(lines) + "\n")
        service.run_all(f"systemctl stop {UNIT}", f"systemctl start {UNIT}")
        assert service.host.status()["network"] == "10.8.0.0/16"
        service.run_all(f"systemctl stop {UNIT}")
    service.write(SETTINGS, ours)
    service.run_all(f"systemctl start {UNIT}")


def test_failed_mk_docker_opts_leaves_the_overlay_up(
    service_lab: Lab, service: SystemdHost
) -> None:
    service.run_all("rm /run/flannel/docker", "mkdir /run/flannel/docker")
    service.run_all(f"systemctl restart {UNIT}")
    assert "mk-docker-opts: cannot write /run/flannel/docker: Is a directory" in service.log
    wait_until_joined(service_lab)
    assert service.property_of("ActiveState") == "active"
    service.run_all("rmdir /run/flannel/docker")


def test_start_after_a_wrong_flag_waits_five_seconds(service: SystemdHost) -> None:
    def rests() -> bool:
        """Whether its last process is the sleep, and not the shell that executes it."""
        shown = service.run(f"systemctl status {UNIT}").stdout
        return bool(re.search(r"\d sleep 5$", shown, re.MULTILINE))

    ours = service.path(SETTINGS).read_text()
    service.write(SETTINGS, ours + "FLANNEL_UDP_OPTIONS=--bogus\n")
    service.run_all(f"systemctl restart --no-block {UNIT}")
    wait_until(rests, "a rest before the next start", PATIENCE)
    assert service.property_of("SubState") == "stop-post"
    assert service.log.count("there is no flag --bogus") == 1
    service.write(SETTINGS, ours)
    service.run(f"systemctl kill --kill-whom=control {UNIT}")  # end the sleep
    wait_until(lambda: service.property_of("ActiveState") == "active", "the next start", PATIENCE)


def test_stop_keeps_the_lease_and_dockers_options(service_lab: Lab, service: SystemdHost) -> None:
    subnet = service.host.subnet
    service.run_all(f"systemctl stop {UNIT}")
    assert devices(service.host) == []
    assert str(subnet).replace("/", "-") in leases(service_lab)
    assert service.host.subnet == subnet
    assert "--bip=" in service.run_all("cat /run/flannel/docker")
    service.run_all(f"systemctl start {UNIT}")
    assert service.host.subnet == subnet


FIRST_ETCD = "/opt/flannel-udp/bin/flannel-udp etcd --iface eth0 --network 10.9.0.0/16"
NOTE = "/var/lib/flannel-udp/etcd-version"


def test_unit_of_the_first_etcd_refuses_an_older_etcd(booted: SystemdHost) -> None:
    etcd = first_etcd.UNIT.name
    booted.allow_the_checkout(etcd)
    with booted.host.netns.popen(
        [sys.executable, "-c", "import http.server as h; h.test(port=2379, bind='127.0.0.1')"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as other:
        wait_until(lambda: ":2379" in booted.run_all("ss -Hltn"), "the port being taken")
        result = booted.run(FIRST_ETCD)
        other.kill()
    (line,) = result.stderr.splitlines()
    assert line.startswith("flannel-udp: etcd cannot listen on 127.0.0.1 port 2379: ")
    assert line.endswith(" has it; stop that, or choose another --port")
    assert result.returncode == 1
    assert not booted.path(str(first_etcd.UNIT)).exists()

    booted.write(f"{first_etcd.UNIT}.d/broken.conf", "[Service]\nExecStartPre=/bin/false\n")
    result = booted.run(FIRST_ETCD)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"flannel-udp: systemctl restart {etcd} failed: Job for {etcd} failed")
    assert line.endswith("; journalctl -u flannel-udp-etcd says more")
    assert result.returncode == 1
    assert booted.property_of("ActiveState", etcd) in ("inactive", "failed")
    assert booted.property_of("UnitFileState", etcd) == "disabled"
    booted.run_all(f"rm {first_etcd.UNIT}.d/broken.conf")

    output = booted.run_all(FIRST_ETCD)
    assert f"etcd runs as {etcd}, serving http://172.30.0.1:2379" in output
    assert "wrote /coreos.com/network/config" in output
    assert booted.property_of("UnitFileState", etcd) == "enabled"
    version = booted.path(NOTE).read_text()

    # An upgrade: the newer version is recorded at each start.
    booted.write(NOTE, "3.0.0\n")
    booted.run_all(f"systemctl restart {etcd}")
    assert booted.path(NOTE).read_text() == version
    assert "etcd serves http://172.30.0.1:2379 already" in booted.run_all(FIRST_ETCD)

    # A downgrade.
    booted.write(NOTE, "99.1.2\n")
    assert booted.run(f"systemctl restart {etcd}").returncode == 1
    assert "the data in /var/lib/flannel-udp was last used by etcd 99.1.2 and" in booted.log
    assert booted.path(NOTE).read_text() == "99.1.2\n"
    assert ":2379" not in booted.run_all("ss -Hltn")
    booted.run_all(f"systemctl stop {etcd}")
