"""The source archive and the wheel build, install and run; ``make test-dist`` runs this file."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from flannel_udp import __version__

ROOT = Path(__file__).parent.parent

_NOT_OF_A_CHECKOUT = shutil.ignore_patterns(
    *(".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "build", "dist"),
    *("*.egg-info", "*.so", "_pump.c"),
)


_SUBNET_ENV = """\
FLANNEL_NETWORK=192.168.0.0/16
FLANNEL_SUBNET=192.168.69.1/24
FLANNEL_MTU=1472
FLANNEL_IPMASQ=false
"""


def run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as a fresh clone has them."""
    target = tmp_path_factory.mktemp("checkout") / "flannel-udp"
    shutil.copytree(ROOT, target, ignore=_NOT_OF_A_CHECKOUT)
    return target


@pytest.fixture(scope="module")
def dist(checkout: Path, network_rights: None) -> Path:
    """The directory that ``make dist`` fills, after a lab has run from the wheel in it."""
    (checkout / ".venv").symlink_to(sys.prefix)
    command = ["timeout", "--kill-after=10", "600", "make", "--no-print-directory"]
    # What is installed is up to date, and must not be installed anew from here.
    for installed in (".venv/installed", ".venv/installed-dev", ".venv/docker/complete"):
        command += ["--old-file", installed]
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    result = subprocess.run(
        [*command, "dist"],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert f"Installing {wheel.name} without a compiler" in result.stdout
    assert re.search("Ping from row to column.*host1-c1.*host2-c1", result.stdout, re.DOTALL)
    return checkout / "dist"


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    (archive,) = dist.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bin directory of an environment that holds nothing but what the archive asks for."""
    environment = tmp_path_factory.mktemp("installed")
    venv.create(environment, with_pip=True)
    run([environment / "bin/pip", "install", "--quiet", sdist])
    yield environment / "bin"
    shutil.rmtree(environment)


def test_source_archive_contains_all_source_files(checkout: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    wanted = {
        file.relative_to(checkout)
        for folder in ("csrc", "flannel_udp", "tests", "packaging", "docs", "bench", "tools")
        for file in (checkout / folder).rglob("*")
        if file.is_file()
    }
    wanted |= {Path(name) for name in ("Makefile", "LICENSE", "README.md", "CHANGELOG.md")}
    assert not wanted - held


def test_programs_of_the_archive_run_from_any_directory(installed: Path, tmp_path: Path) -> None:
    commands: list[list[str | Path]] = [
        [installed / "flannel-udp"],
        [installed / "python", "-m", "flannel_udp"],
    ]
    for command in commands:
        assert run([*command, "--version"], cwd=Path("/")).strip() == __version__
        assert run([*command, "--help"], cwd=Path("/")).startswith("usage: flannel-udp")
    (tmp_path / "subnet.env").write_text(_SUBNET_ENV)
    commands = [
        [installed / "mk-docker-opts"],
        [installed / "mk-docker-opts.sh"],
        [installed / "flannel-udp", "mk-docker-opts"],
    ]
    for number, command in enumerate(commands):
        options = tmp_path / f"options{number}"
        run([*command, "-c", "-f", tmp_path / "subnet.env", "-d", options], cwd=Path("/"))
        assert options.read_text() == (
            'DOCKER_OPTS=" --bip=192.168.69.1/24 --ip-masq=true --mtu=1472"\n'
        )


def test_clean_checkout_installs(installed: Path, checkout: Path) -> None:
    run([installed / "pip", "install", "--quiet", "--no-deps", "--force-reinstall", checkout])
    assert run([installed / "flannel-udp", "--version"], cwd=Path("/")).strip() == __version__


def test_wheel_supports_later_pythons_and_auditwheel_names_its_glibc(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert fnmatch.fnmatch(wheel.name, "flannel_udp-*-cp311-abi3-manylinux_2_*.whl")
