"""The image of the virtual machine, with the wheel installed by the README's commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from documents import README, ROOT, blocks
from machine.stopwatch import timed

_PYTHON = "3.13"  # of the Debian that tools/machine-image makes
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "linux_x86_64")
_PIP = "export PIP_QUIET=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=$PWD/wheels"


@contextmanager
def installed_image() -> Iterator[Path]:
    """A directory with disk.img, vmlinuz and initrd; it is on disk, because /tmp may be small."""
    cache = Path(os.environ.get("MACHINE_CACHE") or Path.home() / ".cache/flannel-udp")
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob("run-*"):  # by killed processes
        if not Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f"run-{os.getpid()}-", dir=cache) as scratch:
        checkout = Path(scratch, "checkout")
        with timed("build the wheel and download what it depends on"):
            _make_checkout(checkout)
        with timed("make the disk and install the wheel"):
            command = "; ".join((_PIP, *_commands_of_the_wheel()))
            tool = ROOT / "tools/machine-image"
            subprocess.run([tool, scratch, checkout, command], check=True, timeout=600)
        yield Path(scratch)


def _make_checkout(folder: Path) -> None:
    """What the README copies to a host, and the wheels that the host would download."""
    shutil.copytree(ROOT / "packaging", folder / "packaging")
    _pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}/dist", str(ROOT))
    (wheel,) = (folder / "dist").iterdir()
    platforms = [f"--platform={each}" for each in _PLATFORMS]
    target = ("--only-binary=:all:", f"--python-version={_PYTHON}", *platforms)
    _pip("download", *target, f"--dest={folder}/wheels", str(wheel))


def _pip(*arguments: str) -> None:
    command = (sys.executable, "-m", "pip", *arguments)
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def _commands_of_the_wheel() -> list[str]:
    """The README's commands that install a wheel."""
    (found,) = (lines for _, lines in blocks(README) if any("dist/" in each for each in lines))
    return found
