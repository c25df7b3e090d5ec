"""Options and shared fixtures: the check of the machine's rights, network namespaces and labs."""

from __future__ import annotations

import getpass
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import hypothesis
import machine_state
import pytest
import run_summary
from restarts import both_running, storing_lab

from flannel_udp.host.netns import Namespace
from flannel_udp.lab.lab import Lab

# No deadline for examples: a busy machine may stop a process for seconds.
hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")

collect_ignore = ["machine"]  # make test-machine names it

MIXED_PRESETS = ("auto", "none", "tso")  # "full" is "auto" on a kernel that has everything


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--starts", type=int, default=50, help="how often two daemons start at the same moment"
    )
    parser.addoption(
        "--faults-seconds", type=float, default=45.0, help="how long the random fault run lasts"
    )
    parser.addoption("--soak-seconds", type=float, default=20.0, help="how long memory is watched")
    parser.addoption(
        "--write-screens", action="store_true", help="write docs/*.svg, which make screens does"
    )
    parser.addoption("--faults-seed", type=int, default=8285, help="what happens in it")


_BEFORE = pytest.StashKey[frozenset[str]]()
_LEFT = pytest.StashKey[list[str]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """One process watches the machine: no worker of pytest-xdist, and no run inside of a test."""
    # A shell starts its background jobs with SIGINT ignored, and so would be all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    inside = hasattr(session.config, "workerinput") or "PYTEST_CURRENT_TEST" in os.environ
    if not inside and not session.config.option.collectonly:
        machine_state.use_own_temporary_directory()
        session.config.stash[_BEFORE] = machine_state.read()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The run fails if the tests left anything on the machine."""
    before = session.config.stash.get(_BEFORE, None)
    if before is None:
        return
    with suppress(OSError):  # a failed test leaves its files there
        Path(tempfile.gettempdir(), f"pytest-of-{getpass.getuser()}").rmdir()
    if left := machine_state.left_since(before):
        session.config.stash[_LEFT] = left
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    with suppress(OSError):
        Path(tempfile.gettempdir()).rmdir()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if left := terminalreporter.config.stash.get(_LEFT, None):
        terminalreporter.section("the machine is not as it was before the tests")
        for line in left:
            terminalreporter.line(line)
    if run_summary.FAULTS:
        terminalreporter.section("faults")
        for line in run_summary.FAULTS:
            terminalreporter.line(line)


def _missing_capability() -> str | None:
    if os.geteuid() != 0:
        return "needs root (network namespaces, TUN devices): run the tests with sudo"
    if not Path("/dev/net/tun").is_char_device():
        return "needs /dev/net/tun: load the tun module, or add the device to the container"
    if not os.access("/proc/sys/net/ipv4/ip_forward", os.W_OK):
        return "needs a writable /proc/sys/net: run outside of an unprivileged container"
    return None


@pytest.fixture(scope="session")
def network_rights() -> None:
    """Fails a test that the machine cannot run, instead of skipping it."""
    if missing := _missing_capability():
        pytest.fail(missing)


@contextmanager
def _fresh_namespace() -> Iterator[Namespace]:
    namespace = Namespace(f"fltest-{uuid.uuid4().hex[:8]}")
    namespace.create()
    yield namespace
    namespace.delete()


@pytest.fixture
def namespace(network_rights: None) -> Iterator[Namespace]:
    """A fresh network namespace with nothing but lo."""
    with _fresh_namespace() as namespace:
        yield namespace


@pytest.fixture(scope="module")
def module_namespace(network_rights: None) -> Iterator[Namespace]:
    """The same, for all tests of a module."""
    with _fresh_namespace() as namespace:
        yield namespace


@pytest.fixture(scope="module")
def lab(network_rights: None, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Three hosts with two containers each, for the tests of a module that only read or clean up.

    Each host moves packets another way, so between them all ways meet. The module may set
    ``DAEMON_ARGUMENTS``.
    """
    arguments = getattr(request.module, "DAEMON_ARGUMENTS", ())
    with _watched(Lab(hosts=3, containers=2, presets=MIXED_PRESETS, daemon_args=arguments)) as lab:
        assert None not in lab.ping_matrix().values()  # every host has routes to all others
        yield lab


@pytest.fixture
def make_lab(network_rights: None) -> Iterator[Callable[[Lab], Lab]]:
    """Enters a lab that belongs to one test: ``lab = make_lab(Lab(hosts=2))``."""
    with ExitStack() as labs:
        yield lambda lab: labs.enter_context(_watched(lab))


@pytest.fixture(scope="module")
def _storing_lab(network_rights: None) -> Iterator[Lab]:
    with storing_lab() as lab:
        yield lab


@pytest.fixture
def running(_storing_lab: Lab) -> Iterator[Lab]:
    """The lab of the restart tests, with both daemons running."""
    with both_running(_storing_lab):
        yield _storing_lab


@contextmanager
def _watched(lab: Lab) -> Iterator[Lab]:
    """Shows the daemons' logs with a failed test; no log may hold a traceback."""
    with lab:
        yield lab
        logs = {host.name: host.log_path for host in lab.hosts if host.log_path.exists()}
        texts = {name: path.read_text(errors="replace") for name, path in logs.items()}
    for name, text in texts.items():
        print(f"--- daemon log of {name}\n{text}")
    assert not [name for name, text in texts.items() if "Traceback (most recent" in text]
