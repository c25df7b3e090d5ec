"""The C files and the extension under sanitizers, fuzzers and emulators: see tests/c/Makefile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "c"
MOST_SECONDS = 900  # on two slow processors


@pytest.mark.parametrize("target", ["asan", "tsan", "ext-asan-check", "fuzz"])
def test_no_sanitizer_finds_anything(target: str, network_rights: None) -> None:
    """The C units, table swaps under traffic, the extension in tests and a lab, any input."""
    make(target)


def test_units_and_fuzzers_pass_on_arm_and_on_a_big_endian_machine() -> None:
    make("foreign")


def make(target: str) -> None:
    # timeout also ends what make has started; a make around this one is none of ours
    command = ["timeout", "--kill-after=10", str(MOST_SECONDS), "make", "--no-print-directory"]
    command += ["-C", str(HERE), target, f"PYTHON={sys.executable}"]
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(result.stdout)
    assert result.returncode == 0
