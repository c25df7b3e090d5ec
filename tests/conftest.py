"""What the tests need of the machine, and the network namespaces they share."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.netns import Namespace


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
    """Fails, and never skips, a test that the machine cannot run."""
    if missing := _missing_capability():
        pytest.fail(missing)


@pytest.fixture
def namespace(network_rights: None) -> Iterator[Namespace]:
    """A fresh network namespace with nothing but lo."""
    namespace = Namespace(f"fltest-{uuid.uuid4().hex[:8]}")
    namespace.create()
    yield namespace
    namespace.delete()
