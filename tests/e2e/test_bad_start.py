"""A start that cannot succeed logs one sentence, changes nothing, and ends or waits."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from etcd_server import EtcdServer, TlsFiles, make_tls_files, wait_until
from instruments import HEALTH_FLAGS, devices, etcd_state, health, lease_value, leases, log_lines

from flannel_udp.lab.etcd import child_environment
from flannel_udp.lab.lab import Host, Lab

EXIT_WITHIN = 10.0  # seconds
GOOD = '{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}'


@pytest.fixture(scope="module")
def bare_lab(network_rights: None) -> Iterator[Lab]:
    """Two hosts without a daemon, and the lease of a third host outside the lab."""
    with Lab(hosts=2, start_daemons=False) as lab:
        lab.etcdctl("put", f"{lab.prefix}/subnets/10.1.150.0-24", lease_value("172.30.0.50"))
        lab.hosts[0].netns.add_bridge("bare0")
        yield lab


@pytest.fixture
def host(bare_lab: Lab) -> Iterator[Host]:
    """The host on which the daemon starts; afterwards no device may be left."""
    host = bare_lab.hosts[0]
    host.log_path.unlink(missing_ok=True)
    yield host
    assert devices(host) == []
    host.subnet_file.unlink(missing_ok=True)


def daemon_command(lab: Lab, host: Host, *flags: str, iface: str = "eth0") -> list[str]:
    command = [sys.executable, "-m", "flannel_udp", f"-iface={iface}"]
    command += [f"-etcd-endpoints={lab.etcd.url}", f"-etcd-prefix={lab.prefix}"]
    return [*command, f"-subnet-file={host.subnet_file}", *flags]


# --- faults that no waiting cures: exit code 1


def assert_refused(
    lab: Lab, host: Host, command: Sequence[str], *words: str, wrapper: Sequence[str] = ()
) -> None:
    """The command must exit with 1 and one sentence with these words, and change nothing."""
    before = etcd_state(lab)
    result = host.run([*wrapper, *command], timeout=EXIT_WITHIN, env=child_environment())
    lines = result.stderr.splitlines()
    sentences = [line for line in lines if line.startswith("flannel-udp: ")]
    assert result.returncode == 1, result.stderr
    assert sentences == lines[-1:], result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in sentences[0]
    assert result.stdout == ""
    assert etcd_state(lab) == before
    assert devices(host) == []
    assert not host.subnet_file.exists()


FLAGS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "renew margin 0": (["-subnet-lease-renew-margin=0"], ("margin", "1 to 1439")),
    "unknown flag": (["-etcd-endpoint=x"], ("--etcd-endpoint;", "--etcd-endpoints?")),
    "flag without value": (["--public-ip"], ("--public-ip", "value")),
    "public IP": (["-public-ip=999.1.1.1"], ("public-ip", "999.1.1.1")),
    "public IP of nobody": (["-public-ip=0.0.0.0"], ("0.0.0.0", "not the address of a host")),
    "loopback public IP": (["-public-ip=127.0.0.1"], ("127.0.0.1", "a loopback address")),
    "public IP inside Network": (
        ["-public-ip=10.1.5.9"],
        ("10.1.5.9", "inside Network 10.1.0.0/16", "--public-ip", "another Network"),
    ),
    "Kubernetes": (["-kube-subnet-mgr"], ("--kube-subnet-mgr",)),
    "endpoint": (["-etcd-endpoints=ftp://127.0.0.1:1"], ("--etcd-endpoints", "ftp")),
    "CA file": (["-etcd-cafile=/nowhere/ca.pem"], ("/nowhere/ca.pem", "No such file")),
    "key without certificate": (["-etcd-keyfile=/nowhere/key.pem"], ("--etcd-certfile",)),
    "health address": (["-healthz-ip=192.0.2.1", "-healthz-port=80"], ("192.0.2.1", "80")),
}


@pytest.mark.parametrize("fault", FLAGS)
def test_bad_flag_ends_the_start_with_one_sentence(bare_lab: Lab, host: Host, fault: str) -> None:
    flags, words = FLAGS[fault]
    assert_refused(bare_lab, host, daemon_command(bare_lab, host, *flags), *words)


@pytest.mark.parametrize(
    ("iface", "words"),
    [
        ("nope0", ("nope0", "no such interface", "eth0 (172.30.0.1)")),
        ("bare0", ("bare0", "no usable IPv4 address")),
        ("172.30.0.99", ("172.30.0.99", "no interface has this address")),
    ],
)
def test_bad_interface_error_lists_tried_and_existing_interfaces(
    bare_lab: Lab, host: Host, iface: str, words: tuple[str, ...]
) -> None:
    assert_refused(bare_lab, host, daemon_command(bare_lab, host, iface=iface), *words)


def test_start_without_rights_is_refused_with_a_sentence(bare_lab: Lab, host: Host) -> None:
    no_rights = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    command = daemon_command(bare_lab, host)
    assert_refused(bare_lab, host, command, "/dev/net/tun", "root", wrapper=no_rights)


def test_masquerading_without_its_tool_names_what_to_install(bare_lab: Lab, host: Host) -> None:
    no_tools = ("sh", "-e", "-c", 'mount -t tmpfs tmpfs /usr/sbin; exec "$@"', "sh")
    command = daemon_command(bare_lab, host, "--ip-masq")
    words = ("iptables-restore", "apt-get install iptables", "--ip-masq")
    assert_refused(bare_lab, host, command, *words, wrapper=no_tools)


def test_start_without_tun_names_the_remedy(bare_lab: Lab, host: Host) -> None:
    no_tun = ("sh", "-e", "-c", 'mount -t tmpfs tmpfs /dev/net; exec "$@"', "sh")
    command = daemon_command(bare_lab, host)
    assert_refused(bare_lab, host, command, "/dev/net/tun", "tun module", wrapper=no_tun)


def test_port_used_by_another_program_ends_the_start(bare_lab: Lab, host: Host) -> None:
    other = host.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with other:
        other.bind((str(host.address), 8285))
        assert_refused(bare_lab, host, daemon_command(bare_lab, host), "8285", "another program")


def test_taken_health_port_ends_the_start_and_names_who_has_it(bare_lab: Lab, host: Host) -> None:
    with host.netns.call(socket.create_server, ("127.0.0.1", 8080)):
        words = ("127.0.0.1", "8080", "in use by", f"process {os.getpid()}", "--healthz-port")
        assert_refused(bare_lab, host, daemon_command(bare_lab, host, *HEALTH_FLAGS), *words)


def test_second_daemon_does_not_disturb_the_first(bare_lab: Lab, host: Host) -> None:
    """Neither for the same network nor on the same port for another one."""
    host.start_daemon()
    bare_lab.etcdctl("put", "/twin/network/config", GOOD)
    before = etcd_state(bare_lab)
    for prefix, words in (
        (bare_lab.prefix, f"already runs here for {bare_lab.prefix}"),
        ("/twin/network", "already runs here on port 8285"),
    ):
        command = daemon_command(bare_lab, host, f"-etcd-prefix={prefix}")
        result = host.run(command, timeout=EXIT_WITHIN, env=child_environment())
        assert result.returncode == 1
        assert words in result.stderr.splitlines()[-1]
    assert etcd_state(bare_lab) == before
    assert devices(host) == ["flannel0"]
    assert host.status()["ready"], "the first one's status is gone"
    assert host.stop_daemon() == 0


def test_second_daemon_is_refused_even_without_etcd(bare_lab: Lab, host: Host) -> None:
    host.start_daemon(HEALTH_FLAGS)
    bare_lab.etcd.kill()
    try:
        command = daemon_command(bare_lab, host, *HEALTH_FLAGS)
        result = host.run(command, timeout=EXIT_WITHIN, env=child_environment())
    finally:
        bare_lab.etcd.start()
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "another flannel-udp already runs here" in line
    assert "stop it first" in line
    assert health(host, "/healthz") == (200, "flanneld is running")
    assert host.stop_daemon() == 0


def config_prefix(lab: Lab, name: str, config: str) -> str:
    """A new prefix with this config."""
    prefix = f"/{name}/network"
    lab.etcdctl("put", f"{prefix}/config", config)
    return prefix


def test_other_backend_type_ends_the_start(bare_lab: Lab, host: Host) -> None:
    prefix = config_prefix(
        bare_lab, "vxlan", '{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}'
    )
    command = daemon_command(bare_lab, host, f"-etcd-prefix={prefix}")
    assert_refused(bare_lab, host, command, "vxlan", "udp")


def test_exhausted_network_ends_the_start(bare_lab: Lab, host: Host) -> None:
    prefix = config_prefix(bare_lab, "full", '{"Network":"10.3.0.0/28","Backend":{"Type":"udp"}}')
    for number, start in enumerate((4, 8, 12)):
        key = f"{prefix}/subnets/10.3.0.{start}-30"
        bare_lab.etcdctl("put", key, lease_value(f"172.30.0.{50 + number}"))
    command = daemon_command(bare_lab, host, f"-etcd-prefix={prefix}")
    assert_refused(bare_lab, host, command, "10.3.0.4", "10.3.0.12")


def test_reservation_that_does_not_fit_ends_the_start(bare_lab: Lab, host: Host) -> None:
    prefix = config_prefix(
        bare_lab, "reserved", '{"Network":"10.4.0.0/16","Backend":{"Type":"udp"}}'
    )
    bare_lab.etcdctl("put", f"{prefix}/subnets/10.9.1.0-24", lease_value(str(host.address)))
    command = daemon_command(bare_lab, host, f"-etcd-prefix={prefix}")
    assert_refused(bare_lab, host, command, "10.9.1.0/24", "reserved")


def test_existing_route_to_the_network_ends_the_start(bare_lab: Lab, host: Host) -> None:
    host.netns.add_route(IPv4Network("10.1.0.0/16"), device="eth0")
    try:
        command = daemon_command(bare_lab, host)
        assert_refused(bare_lab, host, command, "10.1.0.0/16 dev eth0", "remove it")
    finally:
        host.run(["ip", "route", "del", "10.1.0.0/16"], check=True)


# --- faults that can go away: wait, say why, go on


@contextmanager
def waiting_daemon(
    lab: Lab, host: Host, *flags: str, because: str, tools: Path | None = None
) -> Iterator[subprocess.Popen[Any]]:
    """A daemon that waits; the block removes the cause, and then it must become ready by itself.

    ``because`` is in its one line about the fault and in the answer of /readyz. ``tools`` is
    where it finds other programs first.
    """
    command = daemon_command(lab, host, *HEALTH_FLAGS, *flags)
    environment = child_environment()
    if tools:
        environment["PATH"] = f"{tools}:{environment['PATH']}"
    with host.log_path.open("wb") as log:
        daemon = host.netns.popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: log_lines(host, because) or daemon.poll() is not None, because, 15)
        assert daemon.poll() is None, host.log_path.read_text()
        wait_until(lambda: because in health(host, "/readyz")[1], "/readyz telling the reason")
        assert health(host, "/readyz")[0] == 503
        assert health(host, "/healthz") == (200, "flanneld is running")
        yield daemon
        wait_until(lambda: health(host, "/readyz")[0] == 200, "getting ready", 15)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(10) == 0
    finally:
        daemon.kill()
        daemon.wait()
        print(host.log_path.read_text())
    assert "Traceback" not in host.log_path.read_text()
    assert len(log_lines(host, because)) == 1


CONFIGS: dict[str, tuple[str, str]] = {
    "no JSON": ("Network = 10.1.0.0/16", "the network config cannot be read"),
    "a list": ("[]", "the network config cannot be read"),
    "no Network": ('{"Backend":{"Type":"udp"}}', "Network is missing"),
    "no network": ('{"Network":"10.1.0.0"}', 'Network is "10.1.0.0"'),
    "small Network": ('{"Network":"10.1.0.0/29"}', 'Network is "10.1.0.0/29"'),
    "SubnetLen": ('{"Network":"10.1.0.0/16","SubnetLen":31}', "SubnetLen is 31"),
    "SubnetMin outside": (
        '{"Network":"10.1.0.0/16","SubnetMin":"10.2.0.0"}',
        "SubnetMin is 10.2.0.0",
    ),
    "SubnetMin unaligned": (
        '{"Network":"10.1.0.0/16","SubnetMin":"10.1.1.128"}',
        "SubnetMin is 10.1.1.128",
    ),
    "Port": (
        '{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":70000}}',
        "Backend.Port is 70000",
    ),
    "no Type": ('{"Network":"10.1.0.0/16","Backend":{}}', "Backend.Type is missing"),
    "IPv6": ('{"Network":"10.1.0.0/16","EnableIPv6":true}', "EnableIPv6 is true"),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_daemon_waits_until_a_bad_config_is_corrected(
    bare_lab: Lab, host: Host, fault: str
) -> None:
    config, because = CONFIGS[fault]
    key = f"{bare_lab.prefix}/config"
    bare_lab.etcdctl("put", key, config)
    before = etcd_state(bare_lab)
    try:
        with waiting_daemon(bare_lab, host, because=because):
            assert etcd_state(bare_lab) == before
            assert devices(host) == []
            bare_lab.etcdctl("put", key, GOOD)
    finally:
        bare_lab.etcdctl("put", key, GOOD)


def test_daemon_waits_until_a_config_is_written(bare_lab: Lab, host: Host) -> None:
    key = "/none/yet/config"
    with waiting_daemon(
        bare_lab,
        host,
        "-etcd-prefix=/none/yet",
        because=f"there is no network config in etcd at {key}",
    ):
        bare_lab.etcdctl("put", key, GOOD)


def test_daemon_waits_for_an_etcd_that_refuses_connections(bare_lab: Lab, host: Host) -> None:
    bare_lab.etcd.kill()
    try:
        with waiting_daemon(bare_lab, host, because="connection refused"):
            bare_lab.etcd.start()
    finally:
        if bare_lab.etcd.process is None:
            bare_lab.etcd.start()


def test_daemon_waits_for_an_etcd_that_does_not_answer(bare_lab: Lab, host: Host) -> None:
    bare_lab.etcd.pause()
    try:
        with waiting_daemon(bare_lab, host, because="no answer"):
            bare_lab.etcd.resume()
    finally:
        bare_lab.etcd.resume()


# The hosts reach only what is on the underlay, so these servers run in the host itself.


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[TlsFiles, TlsFiles]:
    """Certificates of the authority that the daemon trusts, and of another one."""
    folder = tmp_path_factory.mktemp("tls")
    return make_tls_files(folder / "trusted"), make_tls_files(folder / "other")


@contextmanager
def local_etcd(
    host: Host, folder: Path, port: int | None = None, **how: Any
) -> Iterator[EtcdServer]:
    """An etcd with a valid config on the host's own loopback."""
    server = host.netns.call(lambda: EtcdServer(folder, **how))
    if port is not None:
        server.url = server.url.replace(f":{server.port}", f":{port}")
        server.port = port
    host.netns.call(server.start)
    try:
        host.netns.call(server.put, "/coreos.com/network/config", GOOD)
        yield server
    finally:
        server.close()


TLS: dict[str, tuple[str, str]] = {
    "plain server": ("https", "broke off the TLS handshake"),
    "TLS server": ("http", "https://"),
    "other authority": ("https", "not from an authority that is trusted here"),
    "client certificate wanted": ("https", "without a client certificate it trusts"),
}


@pytest.mark.parametrize("fault", TLS)
def test_daemon_waits_until_the_tls_settings_match(
    bare_lab: Lab, host: Host, tmp_path: Path, tls_files: tuple[TlsFiles, TlsFiles], fault: str
) -> None:
    scheme, because = TLS[fault]
    trusted, other = tls_files
    how: dict[str, dict[str, Any]] = {
        "plain server": {},
        "TLS server": {"tls": trusted},
        "other authority": {"tls": other},
        "client certificate wanted": {"tls": trusted, "client_cert_auth": True},
    }
    flags = [f"-etcd-cafile={trusted.ca}"] if scheme == "https" else []
    with ExitStack() as servers:
        wrong = servers.enter_context(local_etcd(host, tmp_path / "wrong", **how[fault]))
        flags.append(f"-etcd-endpoints={scheme}://127.0.0.1:{wrong.port}")
        with waiting_daemon(bare_lab, host, *flags, because=because):
            wrong.kill()
            good = {"tls": trusted} if scheme == "https" else {}
            right = servers.enter_context(local_etcd(host, tmp_path / "right", wrong.port, **good))
        assert len(lease_names(host, right)) == 1


def lease_names(host: Host, server: EtcdServer) -> list[str]:
    keys = host.netns.call(server.etcdctl, "get", "--prefix", "--keys-only", "/coreos.com/")
    return re.findall(r"subnets/(\S+)", keys)


def test_daemon_waits_until_the_password_is_right(
    bare_lab: Lab, host: Host, tmp_path: Path
) -> None:
    secret = "correct-horse-battery"
    with local_etcd(host, tmp_path) as server:
        host.netns.call(server.enable_auth, "carol", "another", "/coreos.com/network/")
        flags = (
            f"-etcd-endpoints={server.url}",
            "-etcd-username=carol",
            f"-etcd-password={secret}",
        )
        because = "the user name or the password is wrong"
        with waiting_daemon(bare_lab, host, *flags, because=because):
            passwd = ("user", "passwd", "--interactive=false", "carol")
            host.netns.call(lambda: server.etcdctl(*passwd, stdin=secret))
        assert len(lease_names(host, server)) == 1
    assert secret not in host.log_path.read_text()


# --- a host that is not prepared


def test_ip_forward_off_is_warned_about_at_each_start(bare_lab: Lab, host: Host) -> None:
    for forwards, lines in ((0, 1), (1, 1), (0, 2)):
        host.netns.sysctl("ipv4/ip_forward", forwards)
        try:
            host.start_daemon()
        finally:
            host.netns.sysctl("ipv4/ip_forward", 1)
        assert host.stop_daemon() == 0
        warning = "WARNING net.ipv4.ip_forward is 0: this host drops its"
        assert len(log_lines(host, warning, "sysctl -w net.ipv4.ip_forward=1")) == lines


# --- subnet.env


def test_subnet_env_of_another_network_is_ignored_with_a_line(bare_lab: Lab, host: Host) -> None:
    host.subnet_file.write_text(
        "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.5.1/24\nFLANNEL_MTU=1472\n"
        "FLANNEL_IPMASQ=false\n"
    )
    host.start_daemon()
    assert host.stop_daemon() == 0
    assert len(log_lines(host, "ignoring", "10.77.0.0/16", "10.1.0.0/16")) == 1
    assert host.subnet
    assert host.subnet.subnet_of(IPv4Network("10.1.0.0/16"))
    assert str(host.subnet).replace("/", "-") in leases(bare_lab)


def test_subnet_env_with_only_the_subnet_is_used(bare_lab: Lab, host: Host) -> None:
    """As with flannel, the network config determines whether it fits."""
    prefix = config_prefix(bare_lab, "alone", GOOD)
    host.subnet_file.write_text("FLANNEL_SUBNET=10.1.77.1/24\n")
    host.start_daemon([f"-etcd-prefix={prefix}"])
    assert host.stop_daemon() == 0
    assert host.subnet == IPv4Network("10.1.77.0/24")
    assert not log_lines(host, str(host.subnet_file))


def test_unwritable_subnet_env_means_forwarding_but_not_ready(bare_lab: Lab, host: Host) -> None:
    bare_lab.hosts[1].start_daemon()
    host.subnet_file.mkdir()
    with waiting_daemon(bare_lab, host, because=f"cannot write {host.subnet_file}"):
        assert devices(host) == ["flannel0"]
        assert bare_lab.ping(host, bare_lab.hosts[1].containers[0]) is not None
        check = [sys.executable, "-m", "flannel_udp", "status", "--check"]
        checked = host.run([*check, f"--subnet-file={host.subnet_file}"], env=child_environment())
        assert checked.returncode == 1
        assert f"bad  daemon: it is not ready: cannot write {host.subnet_file}" in checked.stdout
        host.subnet_file.rmdir()
    assert host.subnet


# --- traffic rules


def test_rules_that_cannot_be_written_mean_forwarding_but_not_ready(
    bare_lab: Lab, host: Host, tmp_path: Path
) -> None:
    """This happens while another program holds the lock of iptables."""
    for name in ("iptables-save", "iptables-restore"):
        tool = tmp_path / name
        tool.write_text(
            f'#!/bin/sh\n[ -e {tmp_path}/free ] || [ "$1" = --version ] || '
            "{ echo 'another app holds the lock' >&2; exit 4; }\n"
            f'exec {shutil.which(name)} "$@"\n'
        )
        tool.chmod(0o755)
    because = "iptables-save says 'another app holds the lock'"
    with waiting_daemon(bare_lab, host, "--iptables-resync=1", because=because, tools=tmp_path):
        wait_until(host.subnet_file.exists, "subnet.env")
        assert devices(host) == ["flannel0"]
        assert host.status()["ready"] is False
        assert "FLANNEL" not in host.run(["iptables-save"], check=True).stdout
        (tmp_path / "free").touch()
        wait_until(lambda: host.status()["ready"], "getting ready")
        assert "FLANNEL-FWD" in host.run(["iptables-save"], check=True).stdout
    assert not log_lines(host, "changed by another program")
