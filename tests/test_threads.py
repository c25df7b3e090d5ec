from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from flannel_udp.errors import DeviceError
from flannel_udp.retry import Backoff
from flannel_udp.threads import Service


class Scripted(Service):
    """Runs each of ``steps`` once: an exception is raised, None waits for ``stop``."""

    def __init__(
        self, *steps: Exception | None, on_fatal: Callable[[BaseException], None] | None = None
    ) -> None:
        super().__init__("scripted", on_fatal)
        self.steps, self.waiting = list(steps), threading.Event()

    def _serve(self) -> None:
        step = self.steps.pop(0)
        if step:
            raise step
        self.waiting.set()
        self._stopping.wait()


def test_a_stopped_thread_has_ended_when_the_block_is_left() -> None:
    with Scripted(None) as service:
        assert not service.join(0)
    assert service.join(0)


def test_a_thread_that_was_never_started_is_joined_at_once() -> None:
    assert Scripted(None).join()


@pytest.mark.parametrize(
    ("error", "is_logged"), [(DeviceError("gone"), False), (KeyError("bug"), True)]
)
def test_an_error_ends_the_thread_and_reaches_its_owner(
    error: Exception, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[BaseException] = []
    service = Scripted(error, None, on_fatal=reported.append)
    service.start()
    assert service.join(10)
    assert reported == [error]
    assert ("the thread scripted met an error of its own" in caplog.text) is is_logged


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [(DeviceError("gone"), False), (OSError("too many files"), False), (KeyError("bug"), True)],
)
def test_a_thread_that_only_informs_starts_again_after_an_error(
    error: Exception, has_traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with Scripted(error, error, None) as service:
        assert service.waiting.wait(10)
    assert caplog.messages == [f"the thread scripted starts again: {error}"] * 2
    assert ("Traceback" in caplog.text) is has_traceback


def test_a_thread_that_fails_for_ever_logs_little(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Backoff, "next", lambda _: 0.0)
    with Scripted(*[DeviceError("gone")] * 100, None) as service:
        assert service.waiting.wait(10)
    assert len(caplog.messages) == 10
