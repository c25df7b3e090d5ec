"""A first cluster with the etcd of ``flannel-udp etcd`` and the commands that it prints."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from etcd_server import wait_until

from flannel_udp.etcd import program as etcd_program
from flannel_udp.lab.etcd import child_environment
from flannel_udp.lab.lab import Host, Lab


@pytest.fixture(scope="module")
def bare_lab(network_rights: None) -> Iterator[Lab]:
    """Two hosts without daemons; the lab's own etcd is not used."""
    with Lab(hosts=2, start_daemons=False) as lab:
        lab.etcd.kill()
        yield lab


def first_etcd(host: Host, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flannel_udp", "etcd", "--iface", "eth0", "--no-systemd"]
    return host.run([*command, f"--data-dir={folder}", *argv], timeout=90, env=child_environment())


@pytest.fixture
def kept(bare_lab: Lab) -> Iterator[ExitStack]:
    """Kills the processes that a test started."""
    with ExitStack() as stack:
        yield stack


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def join(host: Host, command: str, kept: ExitStack) -> subprocess.Popen[bytes]:
    """Runs the printed command, with a subnet.env of the host's own."""
    log = kept.enter_context((host.directory / "joined.log").open("wb"))
    daemon = host.netns.popen(
        [*shlex.split(command), f"--subnet-file={host.subnet_file}"],
        stdout=log,
        stderr=log,
        env=child_environment(),
    )
    kept.callback(daemon.wait, 20)
    kept.callback(daemon.terminate)
    return daemon


def is_ready(host: Host) -> bool:
    with suppress(OSError):
        return bool(host.status()["ready"])
    return False


def test_two_hosts_join_with_the_printed_commands(
    bare_lab: Lab, tmp_path: Path, kept: ExitStack
) -> None:
    first, second = bare_lab.hosts
    folder = tmp_path / "new/data"
    result = first_etcd(first, folder, "--network=10.44.0.0/16")
    started = re.search(r"process (\d+), serving http://172\.30\.0\.1:2379", result.stdout)
    assert started, result.stdout + result.stderr
    kept.callback(kill, int(started[1]))
    assert (result.returncode, result.stderr) == (0, "")
    assert "the network is 10.44.0.0/16" in result.stdout
    assert "no authentication" in result.stdout
    program = etcd_program.find("etcd")
    assert program
    assert (folder / "etcd-version").read_text().strip() == etcd_program.version(program)

    commands = re.findall(r"^  (\S.*)$", result.stdout, re.MULTILINE)
    assert len(commands) == 2
    daemons = [
        join(host, command, kept) for host, command in zip((first, second), commands, strict=True)
    ]
    for host in (first, second):
        wait_until(lambda host=host: is_ready(host), f"{host.name} being ready", 30)  # type: ignore[misc]  # mypy has no type for the default
    answer = second.status()
    assert IPv4Network(answer["subnet"]).subnet_of(IPv4Network("10.44.0.0/16"))
    wait_until(lambda: second.status()["peers"], "the peers")
    peer = IPv4Network(second.status()["peers"][0]["subnets"][0]).network_address
    wait_until(lambda: bare_lab.ping(second, IPv4Address(peer)) is not None, "a ping", 20)

    listening = first.run(["ss", "-Hltn"], check=True).stdout
    addresses = {line.split()[3] for line in listening.splitlines()}
    assert addresses == {"172.30.0.1:2379", "127.0.0.1:2379", "127.0.0.1:2380"}

    # The daemon is restarted; etcd is not affected.
    daemons[0].terminate()
    assert daemons[0].wait(20) == 0
    assert Path(f"/proc/{started[1]}").exists()

    # A second run changes nothing.
    again = first_etcd(first, folder, "--network=10.55.0.0/16")
    assert again.returncode == 0, again.stderr
    assert "etcd serves http://172.30.0.1:2379 already" in again.stdout
    assert "the network is 10.44.0.0/16" in again.stdout
    assert "--network 10.55.0.0/16 notwithstanding" in again.stdout


def test_older_etcd_is_refused_for_existing_data(bare_lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "etcd-version").write_text("99.1.2\n")
    result = first_etcd(bare_lab.hosts[0], tmp_path, "--network=10.44.0.0/16")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"flannel-udp: the data in {tmp_path} was last used by etcd 99.1.2")
    assert not (tmp_path / "etcd").exists()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--network=10.44.0.0/30"], "must be /28 or larger"),
        (["--network=here"], "no network such as 10.44.0.0/16"),
        (["--port=65535"], "is not a whole number from 1 to 65534"),
        (["--iface=eth7"], "eth7"),
    ],
)
def test_wrong_arguments_start_nothing(
    bare_lab: Lab, tmp_path: Path, argv: list[str], sentence: str
) -> None:
    arguments = [f"--data-dir={tmp_path}", "--no-systemd", "--network=10.44.0.0/16", *argv]
    result = bare_lab.hosts[0].run(
        [sys.executable, "-m", "flannel_udp", "etcd", *arguments],
        timeout=60,
        env=child_environment(),
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert sentence in line
    assert os.listdir(tmp_path) == []


def test_etcd_that_cannot_start_is_reported_with_its_reason(bare_lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "etcd").write_text("where its folder should be")
    result = first_etcd(bare_lab.hosts[0], tmp_path, "--network=10.44.0.0/16")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "etcd does not serve http://172.30.0.1:2379" in line
    assert "not a directory" in line


def test_taken_port_is_named_with_its_holder_and_nothing_is_written(
    bare_lab: Lab, tmp_path: Path
) -> None:
    host = bare_lab.hosts[0]
    with host.netns.popen(
        [sys.executable, "-c", "import http.server as h; h.test(port=2380, bind='127.0.0.1')"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as other:
        wait_until(lambda: ":2380" in host.run(["ss", "-Hltn"]).stdout, "the port being taken")
        result = first_etcd(host, tmp_path, "--network=10.44.0.0/16")
        other.kill()
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "etcd cannot listen on 127.0.0.1 port 2380: python" in line
    assert os.listdir(tmp_path) == []
