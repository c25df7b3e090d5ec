"""The lab itself: what it builds is real, it says what is missing, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flannel_udp.errors import LabError
from flannel_udp.host import netns
from flannel_udp.lab import record as lab_record
from flannel_udp.lab.lab import Lab

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("network_rights")


def wait_until(condition: Callable[[], object], within: float = 10) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def leftovers(lab: Lab) -> list[object]:
    record = lab.record
    paths = [path for path in (record.path, Path(record.directory)) if path.exists()]
    return [*paths, *netns.named(record.prefix)]


@pytest.fixture(scope="module")
def bare_lab() -> Iterator[Lab]:
    """Two hosts and an etcd, no daemons."""
    with Lab(hosts=2, start_daemons=False) as lab:
        yield lab


# --- what it builds


@pytest.mark.parametrize("underlay", ["direct", "wire"])
def test_hosts_reach_each_other_and_etcd_on_the_underlay(underlay: str) -> None:
    with Lab(hosts=2, underlay=underlay, start_daemons=False) as lab:  # type: ignore[arg-type]  # one of its two words
        assert all(lab.ping_matrix(patience=0).values())
        host = lab.hosts[0]
        assert [str(host.address), host.subnet, host.containers] == ["172.30.0.1", None, []]
        health = lab.etcd.url + "/health"
        fetch = f"import urllib.request as u; print(u.urlopen({health!r}).status)"
        assert host.run([sys.executable, "-c", fetch]).stdout == "200\n"
    assert leftovers(lab) == []


def test_wire_segments_on_sending_and_merges_on_receiving() -> None:
    with Lab(hosts=1, underlay="wire", start_daemons=False) as lab:
        host = lab.hosts[0].run(["ethtool", "-k", "eth0"]).stdout
        port = lab.switch.run(["ethtool", "-k", "host1"]).stdout
    for features in (host, port):
        assert "tcp-segmentation-offload: off" in features
        assert "generic-segmentation-offload: off" in features
        assert "tx-udp-segmentation: off" in features
    assert "generic-receive-offload: on" in host


def test_config_is_in_etcd_under_the_prefix() -> None:
    config = {"Network": "192.168.0.0/16", "SubnetLen": 24, "Backend": {"Type": "udp"}}
    with Lab(hosts=1, start_daemons=False, prefix="/flannel/network", config=config) as lab:
        stored = lab.etcdctl("get", "--print-value-only", "/flannel/network/config")
    assert stored == (
        '{"Network": "192.168.0.0/16", "SubnetLen": 24, "Backend": {"Type": "udp"}}\n'
    )


def test_etcd_keeps_its_data_over_a_crash(bare_lab: Lab) -> None:
    bare_lab.etcdctl("put", "/test", "kept")
    bare_lab.etcd.restart()
    assert bare_lab.etcdctl("get", "--print-value-only", "/test") == "kept\n"


def test_etcd_needs_little_space(lab: Lab) -> None:
    """/tmp may be memory; etcd reserves 128 MB for its log."""
    files = [path.stat() for path in Path(lab.record.directory, "etcd").rglob("*")]
    assert sum(file.st_blocks * 512 for file in files) < 24 << 20
    assert sum(file.st_size for file in files) > 100 << 20


def test_paused_etcd_answers_nothing_until_it_is_resumed(bare_lab: Lab) -> None:
    bare_lab.etcd.pause()
    try:
        with pytest.raises(LabError, match="etcdctl"):
            bare_lab.etcdctl("--command-timeout=300ms", "get", "/test")
    finally:
        bare_lab.etcd.resume()
    bare_lab.etcdctl("get", "/test")


def test_throughput_is_measured_between_two_nodes(bare_lab: Lab) -> None:
    source, target = bare_lab.hosts
    assert bare_lab.throughput(source, target) > 0.1


def test_unreachable_node_is_none_in_the_matrix(bare_lab: Lab) -> None:
    first, second = bare_lab.hosts
    bare_lab.switch.set_link("host2", state="down")
    try:
        assert bare_lab.ping(first, second, wait=1) is None
    finally:
        bare_lab.switch.set_link("host2", state="up")
    wait_until(lambda: bare_lab.ping(first, second, wait=1))


# --- faults of a daemon


@pytest.fixture
def daemon_script(tmp_path: Path) -> Callable[[str], str]:
    """A program to be started where the daemon would be, from its shell code."""

    def write(code: str) -> str:
        path = tmp_path / "daemon"
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_daemon_that_ends_early_is_reported_with_its_log(
    daemon_script: Callable[[str], str],
) -> None:
    lab = Lab(hosts=1, python=daemon_script("echo no luck today >&2; exit 3"))
    with pytest.raises(LabError, match=r"host1 ended with exit code 3; (.|\n)*no luck today"):
        lab.__enter__()
    assert leftovers(lab) == []


def test_daemon_that_is_never_ready_is_reported_with_its_log(
    daemon_script: Callable[[str], str],
) -> None:
    script = daemon_script("echo still thinking; exec sleep 60")
    with Lab(hosts=1, python=script, start_daemons=False) as lab:
        lab.hosts[0].start_daemon(wait=False)
        with pytest.raises(LabError, match=r"not ready after 0.5 s(.|\n)*still thinking"):
            lab.hosts[0].wait_until_ready(within=0.5)


def test_stop_daemon_returns_the_exit_code(daemon_script: Callable[[str], str]) -> None:
    script = daemon_script("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done")
    with Lab(hosts=1, python=script, start_daemons=False) as lab:
        (host,) = lab.hosts
        host.start_daemon(wait=False)
        wait_until(lambda: "ready" in host.log_path.read_text())
        assert host.stop_daemon() == 7


@pytest.fixture(scope="module")
def running_lab() -> Iterator[Lab]:
    """Two hosts with two containers each, and their daemons."""
    with Lab(hosts=2, containers=2) as lab:
        yield lab


def test_all_hosts_and_containers_reach_each_other(running_lab: Lab) -> None:
    matrix = running_lab.ping_matrix()
    assert len(matrix) == 6 * 5
    assert None not in matrix.values()


def test_containers_are_connected_as_subnet_env_says(running_lab: Lab) -> None:
    for host in running_lab.hosts:
        env = host.env
        assert env is not None
        addresses = [env.subnet_with_gateway.ip + 1, env.subnet_with_gateway.ip + 2]
        assert [container.address for container in host.containers] == addresses
        link = host.containers[0].run(["ip", "link", "show", "eth0"]).stdout
        assert f"mtu {env.mtu} " in link


def test_peer_counters_come_from_the_daemon(running_lab: Lab) -> None:
    first, second = running_lab.hosts
    assert running_lab.ping(first.containers[0], second.containers[0])
    (peer,) = first.peer_counters()
    assert peer["public_ip"] == str(second.address)
    assert peer["sent_packets"] > 0


def test_killed_daemon_leaves_containers_that_the_next_one_serves(running_lab: Lab) -> None:
    first, second = running_lab.hosts
    containers = list(first.containers)
    first.kill_daemon()
    assert first.peer_counters() == []
    assert running_lab.ping(containers[0], second.containers[0], wait=1) is None
    first.start_daemon()
    assert first.containers == containers
    assert running_lab.ping(containers[0], second.containers[0])
    assert first.stop_daemon() == 0
    first.start_daemon()


def test_containers_get_new_addresses_when_the_daemon_gets_another_subnet() -> None:
    with Lab(hosts=2) as lab:
        first, second = lab.hosts
        first.stop_daemon()
        first.subnet_file.unlink()
        old_key = str(first.containers[0].address - 2) + "-24"
        lab.etcdctl("del", f"{lab.prefix}/subnets/{old_key}")
        lab.etcdctl("put", f"{lab.prefix}/subnets/10.1.200.0-24", '{"PublicIP":"172.30.0.1"}')
        first.start_daemon()
        assert str(first.subnet) == "10.1.200.0/24"
        assert [str(container.address) for container in first.containers] == ["10.1.200.2"]
        wait_until(lambda: lab.ping(second.containers[0], first.containers[0]))
    assert leftovers(lab) == []


def test_second_daemon_on_a_host_is_refused(running_lab: Lab) -> None:
    with pytest.raises(LabError, match="a daemon runs on host1 already"):
        running_lab.hosts[0].start_daemon()


# --- cleaning up


def test_two_labs_side_by_side_do_not_disturb_each_other(bare_lab: Lab) -> None:
    with Lab(hosts=2, start_daemons=False) as other:
        assert other.record.prefix != bare_lab.record.prefix
        other.etcdctl("put", "/test", "other")
        bare_lab.etcdctl("put", "/test", "bare")
        assert other.etcdctl("get", "--print-value-only", "/test") == "other\n"
        assert all(other.ping_matrix(patience=0).values())
    assert leftovers(other) == []
    assert bare_lab.etcdctl("get", "--print-value-only", "/test") == "bare\n"
    assert all(bare_lab.ping_matrix(patience=0).values())


def test_error_inside_the_lab_cleans_up() -> None:
    lab = Lab(hosts=1, start_daemons=False)
    with pytest.raises(ZeroDivisionError), lab:
        raise ZeroDivisionError
    assert leftovers(lab) == []


def start_lab_process() -> tuple[subprocess.Popen[str], lab_record.LabRecord]:
    """A lab in another process, which has left a process of its own in a namespace."""
    program = (
        "import subprocess, sys\n"
        "from flannel_udp.lab.lab import Lab\n"
        "with Lab(hosts=1, start_daemons=False) as lab:\n"
        "    name = lab.hosts[0].netns.name\n"
        "    sleep = ['ip', 'netns', 'exec', name, 'sh', '-c', 'echo inside; exec sleep 1000']\n"
        "    subprocess.Popen(sleep, stdout=subprocess.PIPE).stdout.readline()\n"
        "    print(lab.record.name, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    (record,) = (record for record in lab_record.read_all() if record.name == name)
    return process, record


def test_killed_lab_is_removed_by_the_next_start(bare_lab: Lab) -> None:
    process, record = start_lab_process()
    switch, host = f"{record.prefix}switch", f"{record.prefix}host1"
    assert list(netns.Namespace(switch).pids())
    (survivor,) = netns.Namespace(host).pids()
    process.kill()
    process.communicate()
    wait_until(lambda: not list(netns.Namespace(switch).pids()))
    assert {namespace.name for namespace in netns.named(record.prefix)} == {switch, host}

    with Lab(hosts=0, start_daemons=False):
        assert netns.named(record.prefix) == []
        assert not record.path.exists()
        assert not Path(record.directory).exists()
        wait_until(lambda: not Path(f"/proc/{survivor}").exists())
    assert all(bare_lab.ping_matrix(patience=0).values())


def test_living_lab_of_another_process_is_kept() -> None:
    process, record = start_lab_process()
    assert record not in lab_record.remove_dead()
    assert list(netns.Namespace(f"{record.prefix}switch").pids())
    process.communicate("")
    assert not record.path.exists()


def test_reused_pid_of_the_owner_does_not_keep_a_dead_lab() -> None:
    record = lab_record.LabRecord("x", os.getpid(), owner_start=1, directory="/nowhere")
    assert not record.is_alive()


def test_a_lab_is_recorded_where_tmp_is_another_file_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = Path("/dev/shm", f"fltest-{os.getpid()}")
    assert shared.parent.stat().st_dev != Path(tempfile.gettempdir()).stat().st_dev
    monkeypatch.setattr(lab_record, "RUN_DIR", shared)
    record = lab_record.claim()
    try:
        assert lab_record.read_all() == [record]
        assert os.listdir(shared) == [record.path.name]
    finally:
        lab_record.remove(record)
        shared.rmdir()


def test_name_in_use_and_bad_name_are_refused(bare_lab: Lab) -> None:
    with pytest.raises(LabError, match="is running already"):
        Lab(name=bare_lab.record.name).__enter__()
    with pytest.raises(LabError, match="cannot be called 'a/b'"):
        Lab(name="a/b").__enter__()
    bare_lab.etcdctl("get", "/test")


# --- what is missing


def run_lab(*wrapper: str, **environment: str) -> tuple[int, str]:
    """Exit code and standard error of the demo."""
    command = (*wrapper, sys.executable, "-m", "flannel_udp", "lab")
    environment = os.environ | environment
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True)
    return result.returncode, result.stderr.decode()


def test_missing_root_is_reported_in_one_sentence() -> None:
    # Imported first: the nobody user may not be able to read where Python is installed.
    program = (
        "import os; from flannel_udp.lab import demo; from flannel_udp.cli.main import main;"
        " os.setuid(65534); main(['lab'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.stderr == (
        "flannel-udp: the lab makes network namespaces and TUN devices: run it as root\n"
    )


def test_missing_right_to_make_namespaces_is_reported_in_one_sentence() -> None:
    drop = ("setpriv", "--inh-caps=-sys_admin", "--bounding-set=-sys_admin")
    code, errors = run_lab(*drop)
    assert code == 1
    assert errors.startswith("flannel-udp: the lab could not be built (")
    assert errors.count("\n") == 1


def test_missing_program_is_named_with_its_package(tmp_path: Path) -> None:
    code, errors = run_lab(PATH=str(tmp_path))
    assert code == 1
    assert errors == "flannel-udp: the lab needs ip: apt-get install iproute2\n"


def test_demo_shows_every_pair_and_how_to_look_inside() -> None:
    command = (sys.executable, "-m", "flannel_udp", "lab", "--hosts", "2")
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "host2-c1" in result.stdout
    assert "✗" not in result.stdout
    assert re.search(r"TCP from host1-c1 to host2-c1: [0-9.]+ Gbit/s", result.stdout)
    assert result.stdout.splitlines()[-1].endswith("bin/flannel-udp lab --keep")


@pytest.mark.parametrize(
    ("sig", "shell"),
    [
        (signal.SIGINT, 'exec "$@"'),
        (signal.SIGINT, 'trap "" INT; exec "$@"'),  # as in a background job
        (signal.SIGTERM, 'exec "$@"'),
    ],
    ids=["SIGINT", "SIGINT was ignored", "SIGTERM"],
)
def test_interrupted_demo_cleans_up(sig: signal.Signals, shell: str) -> None:
    demo = (sys.executable, "-m", "flannel_udp", "lab", "--keep", "--no-iperf")
    process = subprocess.Popen(
        ["sh", "-c", shell, "sh", *demo],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: process.pid in {record.owner for record in lab_record.read_all()})
    (record,) = (record for record in lab_record.read_all() if record.owner == process.pid)
    process.send_signal(sig)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not record.path.exists()
    assert netns.named(record.prefix) == []
