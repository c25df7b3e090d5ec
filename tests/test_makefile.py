"""The targets of the Makefile: ``make`` lists them, and the files that they run exist."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from documents import ROOT


def targets() -> list[str]:
    (phony,) = re.findall(r"^\.PHONY: (help .*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return str(phony).split()


def make(*words: str) -> str:
    result = subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_make_alone_lists_every_target() -> None:
    assert re.findall(r"^make ([a-z-]+)", make(), re.MULTILINE) == targets()


@pytest.mark.parametrize("target", targets())
def test_files_and_tests_that_a_target_runs_exist(target: str) -> None:
    recipe = make("--dry-run", target, "SECONDS=7", "SEED=8").replace("\\\n", "")
    for module in re.findall(r"python -m ([\w.]+)", recipe):
        assert importlib.util.find_spec(module), module
    for script in re.findall(r"(?<![\w./])tools/[\w-]+", recipe):
        assert os.access(ROOT / script, os.X_OK), script
    for arguments in re.findall(r"python -m pytest (.*tests/.*)", recipe):
        collected = [sys.executable, "-m", "pytest", "--collect-only", *shlex.split(arguments)]
        result = subprocess.run(collected, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stdout + result.stderr


def test_soaks_take_duration_and_seed_from_the_command_line() -> None:
    assert "--soak-seconds=7" in make("--dry-run", "soak", "SECONDS=7")
    faults = make("--dry-run", "soak-faults", "SECONDS=7", "SEED=8")
    assert "--faults-seconds=7 --faults-seed=8" in faults


@pytest.mark.parametrize("target", ["demo", "test", "bench-gate"])
def test_target_that_needs_root_says_so_before_anything_is_installed(target: str) -> None:
    nobody = ("setpriv", "--reuid=65534", "--clear-groups")
    inherited = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    with tempfile.TemporaryDirectory() as folder:  # make leaves a copy of its input there
        Path(folder).chmod(0o1777)
        result = subprocess.run(
            [*nobody, "make", "--file=-", target],  # nobody may be unable to read the checkout
            cwd="/",
            env=inherited | {"TMPDIR": folder},
            input=(ROOT / "Makefile").read_text(),
            capture_output=True,
            text=True,
            timeout=60,
        )
    (line,) = result.stderr.splitlines()
    assert f"*** make {target} makes network namespaces: run it as root." in line
    assert (result.returncode, result.stdout) == (2, "")
