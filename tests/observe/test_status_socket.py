"""The status socket, asked as the command line asks it."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
from pathlib import Path

import pytest
from etcd_server import wait_until

from flannel_udp.observe.status_socket import read_status, serve_status, status_path


def test_an_exception_is_logged_and_the_next_client_is_answered(
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


def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "subnet.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ConnectionRefusedError):
        read_status(path)
    with serve_status(path, lambda: {"alive": True}):
        assert read_status(path) == {"alive": True}


def test_the_socket_of_a_live_daemon_is_not_replaced(
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


def test_a_socket_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = tmp_path / "subnet.sock"
    with serve_status(path, dict):
        monkeypatch.setattr(Path, "unlink", refuse)
    assert f"cannot remove {path}: Read-only file system" in caplog.text


@pytest.mark.parametrize("name", ["file/subnet.sock", "x" * 120], ids=["no-folder", "too-long"])
def test_a_bad_status_path_is_a_warning_and_no_error(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / name
    with caplog.at_level(logging.WARNING), serve_status(path, dict):
        pass
    (record,) = caplog.records
    assert record.getMessage().startswith(f"status is not available at {path}: ")
    assert os.listdir(tmp_path) == ["file"]
