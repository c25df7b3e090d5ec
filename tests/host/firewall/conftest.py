"""iptables with each of its back ends, and nftables."""

from __future__ import annotations

from pathlib import Path

import pytest
from iptables_variants import VARIANTS, use_variant


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """iptables with each of its back ends, found on PATH as a host has it."""
    name = str(request.param)
    monkeypatch.setenv("PATH", use_variant(name, tmp_path))
    return name


@pytest.fixture(params=[*VARIANTS, "nftables"])
def nftables(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> bool:
    """EnableNFTables, and iptables with each of its back ends where that is off."""
    if request.param in VARIANTS:
        monkeypatch.setenv("PATH", use_variant(str(request.param), tmp_path))
    return bool(request.param == "nftables")
