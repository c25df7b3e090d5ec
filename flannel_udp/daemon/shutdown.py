"""Why the daemon stops, and whether another process takes over."""

import logging
import signal
import threading
from collections.abc import Callable

from flannel_udp.errors import AddressChangedError, FlannelError, LeaseLostError, TunnelLostError
from flannel_udp.host import systemd

log = logging.getLogger(__name__)

# After these, packets must not or cannot be carried any more.
_ENDS_OF_FORWARDING = (LeaseLostError, AddressChangedError, TunnelLostError)


class StopRequested(Exception):  # noqa: N818  # not an error
    """The end was requested while the daemon still starts."""


class Shutdown:
    """Any thread may request the end; the main thread waits for it."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.error: FlannelError | None = None
        self.is_replaced = False  # this process executes the program again
        self.is_afresh = False  # and leaves nothing to it
        self.left: dict[str, int] = {}  # descriptors for it, by name
        self._hurry: Callable[[], None] = lambda: None

    def stop(self) -> None:
        self.requested.set()
        self._hurry()

    def at_request(self, hurry: Callable[[], None]) -> None:
        """Have ``hurry`` called when the end is requested, by the thread that does it; at once if
        that has happened. It may be called more than once."""
        self._hurry = hurry
        if self.requested.is_set():
            hurry()

    def replace(self) -> None:
        """Stop, and execute the program again, which continues."""
        self.is_replaced = True
        self.stop()

    def start_afresh(self, reason: str) -> None:
        """Stop, and execute the program again, which starts with nothing."""
        log.warning("starting afresh: %s", reason)
        self.is_afresh = True
        self.replace()

    @property
    def has_successor(self) -> bool:
        """Whether another process will continue with the data plane.

        Most errors, such as an unreadable certificate, end only this process: the service manager
        starts the next one with the descriptors that this one stored.
        """
        if self.is_afresh or isinstance(self.error, _ENDS_OF_FORWARDING):
            return False
        return (self.is_replaced and not self.error) or systemd.keeps_descriptors()

    def fail(self, error: BaseException) -> None:
        """Stop with exit code 1 and the error's sentence; the first error counts."""
        if self.error is None:
            if not isinstance(error, FlannelError):
                error = FlannelError(_sentence(error))
            self.error = error
        self.stop()


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError):
        return (
            f"the system refused a call: {error.strerror or error}; look at the limits of this"
            " process and the memory of this host, then start again"
        )
    return f"internal error: {error!r}; please report it with the log"


def obey_signals(shutdown: Shutdown) -> None:
    """SIGTERM and SIGINT request the end, SIGUSR2 a restart.

    A thread waits for them, because a handler would run in the main thread, between any two steps
    of the very event that it has to set. The thread takes them until the process ends, so that a
    second signal does not interrupt the clean-up. After SIGUSR2 they stay pending for the program
    that is executed next (execve(2)).
    """
    ours = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, ours)

    def wait() -> None:
        while True:
            received = signal.sigwait(ours)
            if received == signal.SIGUSR2:
                if not shutdown.requested.is_set():
                    log.info("restarting: %s", signal.Signals(received).name)
                    shutdown.replace()
                    return
            else:
                if not shutdown.requested.is_set():
                    log.info("stopping: %s", signal.Signals(received).name)
                shutdown.stop()

    threading.Thread(target=wait, name="signals", daemon=True).start()
