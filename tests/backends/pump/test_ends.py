"""What the log says of the ends when they are opened."""

from __future__ import annotations

import logging
import os
from ipaddress import IPv4Address
from types import SimpleNamespace

import pytest

from flannel_udp.backends.pump.ends import open_tunnel
from flannel_udp.host.netns import Namespace


@pytest.mark.parametrize(("preset", "warns"), [("auto", True), ("tso", False)])
def test_a_kernel_that_may_mangle_udp_gso_is_named_at_the_start_if_it_is_used(
    namespace: Namespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    preset: str,
    warns: bool,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="7.0.3"))
    tunnel = open_tunnel(IPv4Address("127.0.0.1"), 8285, preset)
    namespace.call(tunnel.__enter__)
    tunnel.__exit__(None, None, None)
    assert caplog.messages[0].startswith("offloads in use: ")
    assert [message[:12] for message in caplog.messages[1:]] == ["kernel 7.0.3"] * warns
