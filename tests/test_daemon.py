"""How the daemon ends when something fails that nobody foresaw; tests/e2e/ has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from flannel_udp import daemon
from flannel_udp.config import Options
from flannel_udp.errors import FlannelError


@pytest.mark.parametrize(
    ("error", "sentence", "traceback"),
    [
        (OSError(24, "Too many open files"), "the system refused a call: Too many open", False),
        (ValueError("odd"), r"internal error: ValueError\('odd'\); please report it", True),
    ],
    ids=["a limit", "a bug"],
)
def test_what_nobody_foresaw_ends_in_order_and_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    error: Exception,
    sentence: str,
    traceback: bool,
) -> None:
    """Made things are undone, and whoever keeps descriptors for a next process lets go of them."""
    released: list[bool] = []

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(daemon, "obey_signals", lambda _: None)
    monkeypatch.setattr(daemon, "release", lambda: released.append(True))
    monkeypatch.setattr(daemon, "_serve", fail)
    with pytest.raises(FlannelError, match=sentence):
        daemon.run(Options(subnet_file=tmp_path / "subnet.env"))
    assert released == [True]
    assert (caplog.records != []) == traceback
    assert not (tmp_path / "subnet.sock").exists()
