"""How the daemon ends after an unexpected failure; tests/e2e/ has the rest."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from flannel_udp.daemon import daemon, host_setup
from flannel_udp.daemon.daemon import Daemon
from flannel_udp.errors import DeviceError, FlannelError
from flannel_udp.handover.takeover import Takeover
from flannel_udp.host import locks
from flannel_udp.observe.readiness import Status
from flannel_udp.options import Options


@pytest.mark.parametrize(
    ("error", "sentence", "traceback"),
    [
        (OSError(24, "Too many open files"), "the system refused a call: Too many open", False),
        (ValueError("odd"), r"internal error: ValueError\('odd'\); please report it", True),
    ],
    ids=["a limit", "a bug"],
)
def test_an_unexpected_error_ends_the_daemon_in_order_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    error: Exception,
    sentence: str,
    traceback: bool,
) -> None:
    """Without a successor, what was made on the host is removed."""
    released: list[bool] = []

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(locks, "_FOLDER", tmp_path / "locks")
    monkeypatch.setattr(daemon, "obey_signals", lambda _: None)
    monkeypatch.setattr(daemon, "release", lambda: released.append(True))
    monkeypatch.setattr(Daemon, "serve", fail)
    with pytest.raises(FlannelError, match=sentence):
        daemon.run(Options(subnet_file=tmp_path / "subnet.env"))
    assert released == [True]
    assert (caplog.records != []) == traceback
    assert not (tmp_path / "subnet.sock").exists()


@pytest.mark.parametrize("keeps", [True, False], ids=["stored", "without systemd"])
def test_a_start_that_fails_halfway_keeps_what_a_successor_uses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keeps: bool
) -> None:
    undone: list[bool] = []

    def prepare(_: object, made: contextlib.ExitStack, *__: object, displace: bool) -> None:
        made.callback(undone.append, True)
        assert displace
        raise DeviceError("refused")

    for name, value in (("NOTIFY_SOCKET", "/nowhere"), ("FDSTORE", "8" if keeps else "0")):
        monkeypatch.setenv(name, value)
    settings = SimpleNamespace(config=None, own=None, tunnel=None)
    start = SimpleNamespace(settings=settings, known=SimpleNamespace(snapshot=None))
    monkeypatch.setattr(daemon, "obey_signals", lambda _: None)
    monkeypatch.setattr(daemon, "resume", lambda *_: start)
    monkeypatch.setattr(host_setup, "prepare", prepare)
    monkeypatch.setattr(host_setup, "remove_left", lambda *_: None)
    handover = SimpleNamespace(head=SimpleNamespace(config=None))
    taken = cast(Takeover, SimpleNamespace(carried=contextlib.ExitStack(), handover=handover))
    with pytest.raises(DeviceError):
        daemon.run(Options(subnet_file=tmp_path / "subnet.env"), taken)
    assert undone == ([] if keeps else [True])


def test_a_stopping_daemon_is_not_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stopping may take seconds, during which an orchestrator may still ask."""
    seen: list[Status] = []

    def serve(self: Daemon) -> None:
        self.status.readiness.ready()
        self.control.callback(lambda: seen.append(self.status.read()))

    monkeypatch.setattr(locks, "_FOLDER", tmp_path / "locks")
    monkeypatch.setattr(daemon, "obey_signals", lambda _: None)
    monkeypatch.setattr(Daemon, "serve", serve)
    assert daemon.run(Options(subnet_file=tmp_path / "subnet.env")) == 0
    assert [(status["ready"], status["reason"]) for status in seen] == [(False, "stopping")]
