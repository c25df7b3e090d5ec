"""The thread that records the state; tests/e2e/test_restart_without_loss.py has the rest."""

from __future__ import annotations

import threading

import pytest

from flannel_udp.backends.pump.ends import Tunnel
from flannel_udp.backends.pump.pump import Offload
from flannel_udp.handover.memory_file import MemoryFile
from flannel_udp.handover.recorder import HandoverKeeper
from flannel_udp.host import systemd


def test_an_error_of_our_own_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bug = RuntimeError("a bug")
    states = [b"at the start"]

    def encode() -> bytes:
        if not states:
            raise bug
        return states.pop()

    heard: list[BaseException] = []
    told = threading.Event()

    def on_fatal(error: BaseException) -> None:
        heard.append(error)
        told.set()

    monkeypatch.setattr(systemd, "keeps_descriptors", lambda: True)
    with MemoryFile.create() as memory:
        tunnel = Tunnel("flannel0", memory.descriptor, memory.descriptor, Offload(0))
        with HandoverKeeper(tunnel, memory, encode, on_fatal, is_stored=True) as keeper:
            keeper.changed()
            assert told.wait(5)
        assert memory.read() == b"at the start"
    assert heard == [bug]
    assert "recording the state for the next process ended" in caplog.text
