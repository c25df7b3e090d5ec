"""The two variants of iptables on Debian: nft and legacy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

VARIANTS = ("nft", "legacy")


def use_variant(variant: str, directory: Path) -> str:
    """A PATH with this variant's ``iptables``, ``iptables-save`` and ``iptables-restore``."""
    folder = directory / variant
    folder.mkdir(exist_ok=True)
    for suffix in ("", "-save", "-restore"):
        program = shutil.which(f"iptables-{variant}{suffix}")
        assert program, f"iptables-{variant}{suffix} is not installed"
        link = folder / f"iptables{suffix}"
        link.unlink(missing_ok=True)
        link.symlink_to(program)
    return f"{folder}:{os.environ['PATH']}"
