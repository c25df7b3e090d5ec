"""The thread that records the state; tests/e2e/test_restart_without_loss.py has the rest."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_udp.backends.pump.ends import Tunnel
from flannel_udp.backends.pump.pump import Offload
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.lease import OwnLease, Snapshot
from flannel_udp.handover import recorder, state
from flannel_udp.handover.memory_file import MemoryFile
from flannel_udp.handover.recorder import Recorder
from flannel_udp.handover.state import Head, Place
from flannel_udp.host import systemd
from flannel_udp.routing.routes import Knowledge

SUBNET, ADDRESS = IPv4Network("10.1.5.0/24"), IPv4Address("172.30.0.1")
CONFIG = NetworkConfig.parse('{"Network":"10.1.0.0/16"}')
OWN = OwnLease(SUBNET, ADDRESS, "/coreos.com/network/subnets/10.1.5.0-24", 1, 1, 1e9)
HEAD = Head(Place("0f0f", 1), "/coreos.com/network", CONFIG, OWN, ADDRESS, "flannel0", True)


def test_recording_continues_after_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    revisions = iter((1, None, 3))
    attempts = threading.Semaphore(0)

    def read() -> tuple[Head, Mapping[IPv4Network, IPv4Address], Knowledge]:
        revision = next(revisions)
        attempts.release()
        if revision is None:
            raise RuntimeError("a bug")
        return HEAD, {}, Knowledge(Snapshot((), revision))

    monkeypatch.setattr(systemd, "keeps_descriptors", lambda: True)
    with MemoryFile.create() as memory:
        tunnel = Tunnel("flannel0", memory.descriptor, memory.descriptor, Offload(0))
        with Recorder(tunnel, memory, read, is_stored=True) as service:
            for _ in range(3):
                assert attempts.acquire(timeout=5)
                service.changed()
        assert state.decode(memory.read()).known().snapshot.revision == 3
    assert "the thread handover starts again: a bug" in caplog.text


@pytest.fixture
def no_switches() -> Iterator[None]:
    """A thread keeps the GIL until it releases it by itself."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(60)
    yield
    sys.setswitchinterval(before)


def test_other_threads_run_between_two_chunks(no_switches: None) -> None:
    turns: list[None] = []
    ready, stopping = threading.Event(), threading.Event()

    def count_turns() -> None:
        ready.set()
        while not stopping.is_set():
            turns.append(None)
            time.sleep(0.0001)

    def chunks() -> Iterator[bytes]:
        """Ends once the other thread has had some turns."""
        turns.clear()
        for number in range(100_000):
            if len(turns) >= 20:
                return
            yield bytes([number % 256])

    other = threading.Thread(target=count_turns)
    other.start()
    ready.wait()
    joined = recorder._join(chunks())
    stopping.set()
    other.join()
    assert 0 < len(joined) < 100_000
    assert joined == bytes(number % 256 for number in range(len(joined)))
