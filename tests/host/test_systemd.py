from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flannel_udp.host import systemd


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_assignments_arrive_in_one_datagram(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind("\0" + path if abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + path if abstract else path)
        systemd.notify("READY=1", "STATUS=forwarding 10.1.5.0/24")
        assert manager.recv(4096) == b"READY=1\nSTATUS=forwarding 10.1.5.0/24"


@pytest.mark.parametrize("value", [None, ""])
def test_nothing_happens_outside_of_systemd(
    value: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if value is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    systemd.notify("READY=1")
    assert not caplog.records


def test_a_missing_service_manager_is_only_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/nobody")
    systemd.notify("READY=1")
    assert f"{tmp_path}/nobody: No such file" in caplog.records[0].getMessage()


class Manager:
    """Receives one notice at a time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(5)
        self._socket.bind(f"{folder}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")

    def receive(self) -> tuple[bytes, list[int]]:
        text, descriptors, *_ = socket.recv_fds(self._socket, 4096, 4)
        return text, list(descriptors)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    return Manager(tmp_path, monkeypatch)


def test_a_stored_descriptor_arrives_with_its_name(manager: Manager, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        systemd.store_descriptor("tun", file.fileno())
        text, (copy,) = manager.receive()
        assert text == b"FDSTORE=1\nFDPOLL=0\nFDNAME=tun"
        assert os.path.sameopenfile(copy, file.fileno())
    os.close(copy)
    systemd.forget_descriptor("tun")
    assert manager.receive() == (b"FDSTOREREMOVE=1\nFDNAME=tun", [])


def test_waiting_ends_when_the_manager_closes_the_barrier(manager: Manager) -> None:
    waiting = threading.Thread(target=systemd.wait_until_processed)
    waiting.start()
    text, (barrier,) = manager.receive()
    assert text == b"BARRIER=1"
    assert waiting.is_alive()
    os.close(barrier)
    waiting.join(5)
    assert not waiting.is_alive()


@pytest.mark.parametrize(
    ("socket_path", "count", "keeps"),
    [("/run/n", "8", True), ("/run/n", "0", False), ("/run/n", "", False), ("", "8", False)],
)
def test_descriptors_are_kept_where_the_manager_says_so(
    socket_path: str, count: str, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", socket_path)
    monkeypatch.setenv("FDSTORE", count)
    assert systemd.keeps_descriptors() == keeps


_SHOW = """
import os
from flannel_udp.host import systemd
found = systemd.inherited_descriptors()
print({name: os.read(each, 99) for name, each in found.items()})
print([os.get_inheritable(each) for each in found.values()])
print([name for name in os.environ if name.startswith("LISTEN")])
"""
_EXECUTE = """
import os, sys
from flannel_udp.host import systemd
def pipe(text):
    reader, writer = os.pipe()
    os.write(writer, text)
    return reader
first, second = pipe(b"one"), pipe(b"two")  # 3 and 5: each is the other's target
systemd.execute(sys.executable, [sys.executable, "-c", sys.argv[1]], {"b": second, "a": first})
"""


def test_an_executed_program_inherits_descriptors_by_name() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", _EXECUTE, _SHOW], capture_output=True, text=True, timeout=60
    )
    assert shown.stderr == ""
    assert shown.stdout.splitlines() == ["{'b': b'two', 'a': b'one'}", "[False, False]", "[]"]


@pytest.mark.parametrize(
    "announced",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "tun"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "many"},
    ],
    ids=["nothing", "for another process", "no number"],
)
def test_descriptors_for_another_process_are_not_inherited(announced: dict[str, str]) -> None:
    assert systemd.inherited_descriptors(announced, pid=7) == {}
    assert announced == {}
