from __future__ import annotations

import socket
from pathlib import Path

import pytest

from flannel_udp import systemd


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


def test_a_service_manager_that_is_gone_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/nobody")
    systemd.notify("READY=1")
    assert f"{tmp_path}/nobody: No such file" in caplog.records[0].getMessage()
