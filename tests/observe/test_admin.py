"""What a running daemon tells others, asked as others ask it."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import os
import socket
import stat
import struct
import time
from pathlib import Path

import pytest
from etcd_server import wait_until

from flannel_udp.errors import DeviceError
from flannel_udp.observe.admin import (
    Board,
    Readiness,
    read_status,
    serve_health,
    serve_status,
    status_path,
)


def expose(accept: str) -> tuple[bytes, str]:
    return f"accepting {accept}".encode(), "text/metrics"


def get(port: int, path: str, address: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_health_speaks_flannels_words() -> None:
    readiness = Readiness()
    with serve_health("127.0.0.1", 0, readiness, expose) as port:
        assert get(port, "/healthz") == (200, "flanneld is running")
        assert get(port, "/readyz") == (503, "flanneld is not ready yet\nstarting")
        readiness.not_ready("etcd cannot be used")
        assert get(port, "/readyz") == (503, "flanneld is not ready yet\netcd cannot be used")
        readiness.ready()
        assert get(port, "/readyz") == (200, "flanneld is ready")
        readiness.ready(lambda: "etcd silent for 12 s")
        assert get(port, "/readyz") == (200, "flanneld is ready\netcd silent for 12 s")
        assert get(port, "/healthz") == (200, "flanneld is running")
        assert get(port, "/elsewhere") == (404, "see /healthz, /readyz and /metrics")
    with pytest.raises(ConnectionRefusedError):
        get(port, "/healthz")


def test_a_fault_interrupts_readiness_and_a_stop_ends_it() -> None:
    readiness = Readiness()
    readiness.set_fault("the tunnel is not whole")
    assert readiness.reason == "starting"
    readiness.ready()
    assert readiness.reason == "the tunnel is not whole"
    readiness.set_fault(None)
    assert readiness.reason is None
    assert readiness.not_ready("stopping")
    assert not readiness.not_ready("stopping")
    assert readiness.reason == "stopping"


def test_metrics_come_in_the_format_asked_for() -> None:
    with serve_health("127.0.0.1", 0, Readiness(), expose) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/metrics?x=1", headers={"Accept": "their-format"})
        answer = connection.getresponse()
        assert answer.getheader("Content-Type") == "text/metrics"
        assert answer.read() == b"accepting their-format"
        connection.close()


def test_health_listens_on_ipv6_too() -> None:
    with serve_health("::1", 0, Readiness(), expose) as port:
        assert get(port, "/healthz", "::1") == (200, "flanneld is running")


def test_a_taken_health_port_is_one_sentence() -> None:
    with (
        serve_health("127.0.0.1", 0, Readiness(), expose) as port,
        pytest.raises(DeviceError, match=rf"port {port}: Address already in use; .*--healthz-port"),
        serve_health("127.0.0.1", port, Readiness(), expose),
    ):
        pass


def test_a_client_that_says_nothing_holds_up_neither_others_nor_the_end() -> None:
    with serve_health("127.0.0.1", 0, Readiness(), expose) as port:
        silent = socket.create_connection(("127.0.0.1", port))
        began = time.monotonic()
        assert get(port, "/healthz")[0] == 200
    assert time.monotonic() - began < 2
    silent.close()


def test_a_probe_that_resets_is_not_worth_a_line(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """As load balancers do: a connection whose end is a reset."""
    caplog.set_level(logging.DEBUG)
    with serve_health("127.0.0.1", 0, Readiness(), expose) as port:
        probe = socket.create_connection(("127.0.0.1", port))
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        probe.close()
        wait_until(lambda: "broke off: Connection reset" in caplog.text, "the reset")
        assert get(port, "/healthz")[0] == 200
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert capfd.readouterr().err == ""


def test_a_bug_in_an_answer_is_logged_and_the_next_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "subnet.sock"

    def status() -> dict[str, object]:
        if not caplog.records:
            raise KeyError("first")
        return {"second": True}

    with serve_status(path, status):
        with pytest.raises(OSError, match="reset"):
            read_status(path)
        wait_until(lambda: "an answer failed" in caplog.text, "the log line")
        assert read_status(path) == {"second": True}
    assert capfd.readouterr().err == ""


def test_the_start_does_not_wait_for_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("asked DNS")

    monkeypatch.setattr(socket, "getfqdn", ask)
    monkeypatch.setattr(socket, "gethostbyaddr", ask)
    with serve_health("127.0.0.1", 0, Readiness(), expose) as port:
        assert get(port, "/healthz")[0] == 200


def test_each_subnet_env_has_a_status_socket_of_its_own_beside_it() -> None:
    folder = Path("/run/flannel")
    assert status_path(folder / "subnet.env") == folder / "subnet.sock"
    names = ("subnet.env", "subnet.a", "subnet.b", "x.sock", ".env")
    sockets = {status_path(folder / name) for name in names}
    assert len(sockets - {folder / name for name in names}) == len(names)


def test_status_is_one_json_line_for_root_alone(tmp_path: Path) -> None:
    path = tmp_path / "new/subnet.sock"
    asked = []

    def status() -> dict[str, object]:
        asked.append(1)
        return {"ready": True, "asked": len(asked)}

    with serve_status(path, status):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert read_status(path) == {"ready": True, "asked": 1}
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(path))
            assert json.loads(channel.makefile().read()) == {"ready": True, "asked": 2}
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        read_status(path)


def test_the_socket_of_a_killed_daemon_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "subnet.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ConnectionRefusedError):
        read_status(path)
    with serve_status(path, lambda: {"alive": True}):
        assert read_status(path) == {"alive": True}


def test_the_socket_of_a_live_daemon_stays_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "subnet.sock"
    with serve_status(path, lambda: {"first": True}):
        with serve_status(path, lambda: {"first": False}):
            assert read_status(path) == {"first": True}
        assert read_status(path) == {"first": True}
    assert f"status is not available at {path}: Address already in use" in caplog.text


def test_a_file_in_the_place_of_the_socket_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "subnet.sock"
    path.write_text("of somebody")
    with serve_status(path, dict):
        pass
    assert path.read_text() == "of somebody"
    assert f"status is not available at {path}: Address already in use" in caplog.text


def test_a_socket_that_cannot_be_removed_costs_a_warning_and_not_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = tmp_path / "subnet.sock"
    with serve_status(path, dict):
        monkeypatch.setattr(Path, "unlink", refuse)
    assert f"cannot remove {path}: Read-only file system" in caplog.text


def test_the_status_tells_readiness_alone_before_and_after_there_is_more() -> None:
    board = Board(Readiness())
    board.readiness.not_ready("etcd cannot be used")
    short = {"version": "0.1.0", "ready": False, "reason": "etcd cannot be used"}
    assert board.read() == short
    with board.show(lambda: {"subnet": "10.1.5.0/24"}):
        board.readiness.ready()
        assert board.read() == short | {"ready": True, "reason": None, "subnet": "10.1.5.0/24"}
    assert set(board.read()) == set(short)


@pytest.mark.parametrize("name", ["file/subnet.sock", "x" * 120], ids=["no-folder", "too-long"])
def test_a_bad_status_path_costs_a_warning_and_not_the_daemon(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / name
    with caplog.at_level(logging.WARNING), serve_status(path, dict):
        pass
    (record,) = caplog.records
    assert record.getMessage().startswith(f"status is not available at {path}: ")
    assert os.listdir(tmp_path) == ["file"]
