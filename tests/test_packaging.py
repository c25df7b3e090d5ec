"""The archive and the wheel install and start; the files for systemd are valid."""

from __future__ import annotations

import configparser
import fnmatch
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from iptables_variants import VARIANTS, use_variant

from flannel_udp import __version__
from flannel_udp.cli import first_etcd
from flannel_udp.cli.first_etcd import Plan
from flannel_udp.cli.main import parse_options
from flannel_udp.lab.lab import Lab

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "packaging/flannel-udp.service"
DROP_IN = ROOT / "packaging/docker.service.d/flannel-udp.conf"

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


# The files for systemd


def read_unit(path: Path) -> configparser.SectionProxy:
    unit = configparser.RawConfigParser(strict=False, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as configparser documents it
    unit.read(path)
    return unit["Service"]


def verify(unit: Path) -> str:
    """What systemd-analyze reports about the unit."""
    result = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{unit.parent}:"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.stderr


@pytest.mark.parametrize(("largest", "links_it"), [(2**31 - 1, True), (2**63 - 1, False)])
def test_libatomic_is_linked_only_on_32_bit_machines(
    monkeypatch: pytest.MonkeyPatch, largest: int, links_it: bool
) -> None:
    monkeypatch.setattr(sys, "maxsize", largest)
    monkeypatch.chdir(ROOT)
    *_, options = runpy.run_path("build_ext.py")["ffi"]._assigned_source
    assert ("-latomic" in options["extra_link_args"]) == links_it


def test_unit_is_valid(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    text = UNIT.read_text().replace("/opt/flannel-udp/bin", str(programs))
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    assert verify(unit) == ""
    unit.write_text(text.replace("Type=", "Tpye="))
    assert "Tpye" in verify(unit)


def test_systemd_rates_the_exposure_of_the_unit_3_or_less() -> None:
    run(["systemd-analyze", "security", "--offline=true", "--threshold=30", UNIT])


def test_unit_of_the_first_etcd_is_valid(tmp_path: Path) -> None:
    plan = Plan("/bin/true", IPv4Address("172.30.0.1"), 2379, Path("/var/lib/flannel-udp"))
    unit = tmp_path / first_etcd.UNIT.name
    unit.write_text(plan.unit())
    assert verify(unit) == ""
    assert shlex.split(read_unit(unit)["ExecStart"]) == plan.command()
    assert shlex.split(read_unit(unit)["ExecStartPre"]) == plan.check()


def test_docker_drop_in_is_valid(tmp_path: Path) -> None:
    (tmp_path / DROP_IN.parent.name).mkdir()
    drop_in = tmp_path / DROP_IN.parent.name / DROP_IN.name
    drop_in.write_text(DROP_IN.read_text().replace("ExecStart=dockerd", "ExecStart=true"))
    docker = tmp_path / "docker.service"
    docker.write_text("[Service]\nType=notify\nExecStart=/bin/true\n")
    assert verify(docker) == ""


@pytest.mark.parametrize("unit", [UNIT, DROP_IN], ids=lambda path: path.name)
def test_every_variable_of_a_command_has_a_default(unit: Path) -> None:
    """systemd 257 logs a line about each one that is unset, at every start."""
    lines = [line for line in unit.read_text().splitlines() if not line.startswith("#")]
    used = {
        name
        for line in lines
        if line.startswith("ExecStart")
        for name in re.findall(r"\$\{?(\w+)", line)
    }
    assert used
    defaults = [line for line in lines if line.startswith("Environment=")]
    assert used <= set(re.findall(r"(\w+)=", " ".join(defaults)))


def test_docker_reads_the_file_and_variable_that_the_unit_writes(tmp_path: Path) -> None:
    program, *arguments = read_unit(UNIT)["ExecStartPost"].split()
    written = Path(arguments[arguments.index("-d") + 1])
    assert read_unit(DROP_IN)["EnvironmentFile"] == str(written)

    (tmp_path / "subnet.env").write_text(_SUBNET_ENV)
    options = tmp_path / "options"
    arguments[arguments.index("-d") + 1] = str(options)
    own_program = Path(sys.executable).with_name(Path(program).name)
    run([own_program, *arguments, "-f", tmp_path / "subnet.env"])
    variables = dict(line.split("=", 1) for line in options.read_text().splitlines())
    used = [word[1:] for word in read_unit(DROP_IN)["ExecStart"].split() if word.startswith("$")]
    assert set(used) & set(variables) == {"DOCKER_NETWORK_OPTIONS"}


def test_every_variable_in_the_settings_example_is_a_flag() -> None:
    lines = [
        line.removeprefix("# ")
        for line in UNIT.with_suffix(".default").read_text().splitlines()
        if line.removeprefix("# ").startswith("FLANNELD_")
    ]
    for name, value in (line.split("=", 1) for line in lines):
        flag = name.removeprefix("FLANNELD_").lower().replace("_", "-")
        parse_options([f"--{flag}={value}"], {})


@pytest.mark.parametrize("iptables", VARIANTS)
def test_daemon_needs_no_other_capabilities_than_those_of_the_unit(
    network_rights: None, tmp_path: Path, iptables: str
) -> None:
    kept = [
        name.removeprefix("CAP_").lower()
        for name in read_unit(UNIT)["CapabilityBoundingSet"].split()
    ]
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        f"exec setpriv --bounding-set=-all,{','.join(f'+{name}' for name in kept)}"
        f' --no-new-privs -- {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    variant = {"PATH": use_variant(iptables, tmp_path)}
    with Lab(hosts=2, python=str(python), daemon_args=["--ip-masq"], daemon_env=variant) as lab:
        assert None not in lab.ping_matrix().values()
        for host in lab.hosts:
            assert host.stop_daemon() == 0
            assert "WARNING" not in host.log_path.read_text()
