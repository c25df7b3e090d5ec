"""The archive and the wheel install and start; the files for systemd are valid."""

from __future__ import annotations

import configparser
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from iptables_variants import VARIANTS, use_variant

from flannel_udp.cli import first_etcd
from flannel_udp.cli.first_etcd import Plan
from flannel_udp.cli.main import _parse
from flannel_udp.lab.lab import Lab

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "packaging/flannel-udp.service"
DROP_IN = ROOT / "packaging/docker.service.d/flannel-udp.conf"

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
        _parse([f"--{flag}={value}"], {})


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
