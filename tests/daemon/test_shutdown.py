from __future__ import annotations

from collections.abc import Callable

import pytest

from flannel_udp.daemon.shutdown import Shutdown
from flannel_udp.errors import (
    AddressChangedError,
    CertificateError,
    DeviceError,
    FirewallError,
    InterfaceError,
    LeaseLostError,
    TunnelLostError,
)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service manager keeps descriptors."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("FDSTORE", "8")


def after(error: BaseException) -> Shutdown:
    shutdown = Shutdown()
    shutdown.fail(error)
    return shutdown


@pytest.mark.parametrize(
    "error",
    [CertificateError(), InterfaceError(), DeviceError(), FirewallError(), ValueError(), OSError()],
    ids=repr,
)
def test_an_error_leaves_the_data_plane_to_the_next_process(stored: None, error: Exception) -> None:
    assert after(error).has_successor


@pytest.mark.parametrize("kind", [LeaseLostError, AddressChangedError, TunnelLostError])
def test_nothing_is_left_when_forwarding_must_end(
    stored: None, kind: type[LeaseLostError | AddressChangedError | TunnelLostError]
) -> None:
    assert not after(kind()).has_successor


def test_nothing_is_left_to_a_fresh_start(stored: None) -> None:
    shutdown = Shutdown()
    shutdown.start_afresh("of a reason")
    assert not shutdown.has_successor


def test_nothing_is_left_where_nobody_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FDSTORE", raising=False)
    assert not Shutdown().has_successor
    assert not after(DeviceError()).has_successor
    replaced = Shutdown()
    replaced.replace()
    assert replaced.has_successor, "the program that it executes inherits them"
    replaced.fail(DeviceError())
    assert not replaced.has_successor


@pytest.mark.parametrize(
    "ask", [Shutdown.stop, Shutdown.replace, lambda each: each.fail(OSError())]
)
def test_what_hurries_the_end_is_called_by_who_asks_for_it(ask: Callable[[Shutdown], None]) -> None:
    shutdown, calls = Shutdown(), list[bool]()
    shutdown.at_request(lambda: calls.append(True))
    assert calls == []
    ask(shutdown)
    assert calls == [True]


def test_what_hurries_the_end_is_called_although_it_was_asked_for_before() -> None:
    shutdown, calls = Shutdown(), list[bool]()
    shutdown.stop()
    shutdown.at_request(lambda: calls.append(True))
    assert calls == [True]
