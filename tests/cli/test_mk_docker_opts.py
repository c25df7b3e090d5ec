"""Docker's options: byte for byte what flannel's script writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_udp.cli.mk_docker_opts import docker_options, main
from flannel_udp.errors import SubnetFileError
from flannel_udp.host.netns import Namespace

TEXT = (
    "FLANNEL_NETWORK=10.1.0.0/16\n"
    "FLANNEL_SUBNET=10.1.5.1/24\n"
    "FLANNEL_MTU=1472\n"
    "FLANNEL_IPMASQ=false\n"
)


@pytest.fixture(autouse=True)
def no_options_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("DOCKER_", "FLANNEL_")):
            monkeypatch.delenv(name)


def options(variables: dict[str, str], *, both: bool = True, ip_masq: bool = True) -> str:
    return docker_options(
        variables, key="DOCKER_OPTS", individual=both, combined=True, ip_masq=ip_masq
    )


VARIABLES = {"FLANNEL_SUBNET": "10.1.74.1/24", "FLANNEL_MTU": "1472", "FLANNEL_IPMASQ": "false"}


def test_docker_options_are_those_of_flannels_script() -> None:
    assert options(VARIABLES) == (
        'DOCKER_OPT_BIP="--bip=10.1.74.1/24"\n'
        'DOCKER_OPT_IPMASQ="--ip-masq=true"\n'
        'DOCKER_OPT_MTU="--mtu=1472"\n'
        'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'
    )


def test_only_one_of_flannel_and_docker_masquerades() -> None:
    assert "--ip-masq=false" in options({**VARIABLES, "FLANNEL_IPMASQ": "true"})
    assert "ip-masq" not in options(VARIABLES, ip_masq=False)


def test_an_existing_value_comes_in_front_with_two_spaces() -> None:
    text = options({**VARIABLES, "DOCKER_OPTS": "--debug"}, both=False)
    assert text == 'DOCKER_OPTS="--debug  --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'
    assert options({"DOCKER_OPTS": "--debug"}) == 'DOCKER_OPTS="--debug "\n'


def test_options_of_the_operator_are_kept() -> None:
    assert options({"DOCKER_OPT_DEBUG": "--debug", "FLANNEL_MTU": "1472"}) == (
        'DOCKER_OPT_DEBUG="--debug"\n'
        'DOCKER_OPT_MTU="--mtu=1472"\n'
        'DOCKER_OPTS=" --debug --mtu=1472"\n'
    )


def test_a_bad_ipmasq_is_a_sentence_unless_it_is_left_out() -> None:
    bad = {**VARIABLES, "FLANNEL_IPMASQ": "yes"}
    with pytest.raises(SubnetFileError, match="FLANNEL_IPMASQ is 'yes'"):
        options(bad)
    assert "ip-masq" not in options(bad, ip_masq=False)


def test_the_command_writes_what_docker_units_expect(tmp_path: Path) -> None:
    env, out = tmp_path / "subnet.env", tmp_path / "run" / "docker"
    env.write_text(TEXT.replace("10.1.", "192.168."))
    arguments = ["-k", "DOCKER_NETWORK_OPTIONS", "-f", str(env), "-d", str(out)]
    assert main(arguments) == 0
    assert out.read_text() == (
        'DOCKER_OPT_BIP="--bip=192.168.5.1/24"\n'
        'DOCKER_OPT_IPMASQ="--ip-masq=true"\n'
        'DOCKER_OPT_MTU="--mtu=1472"\n'
        'DOCKER_NETWORK_OPTIONS=" --bip=192.168.5.1/24 --ip-masq=true --mtu=1472"\n'
    )


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], ["DOCKER_OPT_BIP", "DOCKER_OPT_IPMASQ", "DOCKER_OPT_MTU", "DOCKER_OPTS"]),
        (["-ic"], ["DOCKER_OPT_BIP", "DOCKER_OPT_IPMASQ", "DOCKER_OPT_MTU", "DOCKER_OPTS"]),
        (["-i"], ["DOCKER_OPT_BIP", "DOCKER_OPT_IPMASQ", "DOCKER_OPT_MTU"]),
        (["-c", "-kMINE"], ["MINE"]),
        (["-im"], ["DOCKER_OPT_BIP", "DOCKER_OPT_MTU"]),
    ],
)
def test_the_flags_choose_the_variables(tmp_path: Path, flags: list[str], names: list[str]) -> None:
    env, out = tmp_path / "subnet.env", tmp_path / "docker"
    env.write_text(TEXT)
    assert main([*flags, f"-f{env}", f"-d{out}"]) == 0
    assert [line.partition("=")[0] for line in out.read_text().splitlines()] == names


def test_without_subnet_env_the_options_are_empty(tmp_path: Path) -> None:
    out = tmp_path / "docker"
    assert main(["-f", str(tmp_path / "none"), "-d", str(out)]) == 0
    assert out.read_text() == 'DOCKER_OPTS=""\n'


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (TEXT.replace("false", "no"), []),
        (TEXT.replace("10.1.5.1", "10.1.5"), []),
        (TEXT, ["-x"]),
        (TEXT, ["-k", "A B"]),
        (TEXT, ["word"]),
    ],
)
def test_bad_input_fails_and_keeps_the_old_file(
    tmp_path: Path, text: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    env, out = tmp_path / "subnet.env", tmp_path / "docker"
    env.write_text(text)
    out.write_text("old\n")
    assert main(["-f", str(env), "-d", str(out), *flags]) == 1
    assert "mk-docker-opts: " in capsys.readouterr().err
    assert out.read_text() == "old\n"


def test_bytes_that_are_no_text_are_kept(tmp_path: Path) -> None:
    """As by flannel's script: they may come from the environment or from subnet.env."""
    source, target = tmp_path / "subnet.env", tmp_path / "opts"
    source.write_bytes(b"DOCKER_OPT_A=\xff\n")
    command = [sys.executable, "-m", "flannel_udp", "mk-docker-opts", "-i"]
    environment = {**os.environb, b"DOCKER_OPT_B": b"\xfe"}
    subprocess.run([*command, "-f", source, "-d", target], env=environment, check=True)
    assert target.read_bytes() == b'DOCKER_OPT_A="\xff"\nDOCKER_OPT_B="\xfe"\n'


def test_the_options_may_be_printed(tmp_path: Path) -> None:
    env = tmp_path / "subnet.env"
    env.write_text(TEXT)
    command = [sys.executable, "-m", "flannel_udp", "mk-docker-opts", "-c"]
    result = subprocess.run(
        [*command, "-f", str(env), "-d", "/dev/stdout"], capture_output=True, text=True, check=True
    )
    assert result.stdout == 'DOCKER_OPTS=" --bip=10.1.5.1/24 --ip-masq=true --mtu=1472"\n'


@pytest.mark.parametrize(
    ("route", "code"),
    [
        ("10.1.5.0/24 via 192.0.2.1", 1),
        ("10.1.5.0/24 dev eth0", 0),
        ("10.0.0.0/8 via 192.0.2.1", 0),
        ("default via 192.0.2.1", 0),
    ],
)
def test_a_gateway_route_to_our_subnet_is_refused(
    namespace: Namespace, tmp_path: Path, route: str, code: int
) -> None:
    env = tmp_path / "subnet.env"
    env.write_text(TEXT)
    inside = ["ip", "netns", "exec", namespace.name]
    for command in (
        "ip link add eth0 type veth peer name eth1",
        "ip address add 192.0.2.2/24 dev eth0",
        "ip link set eth1 up",
        "ip link set eth0 up",
        f"ip route add {route}",
    ):
        subprocess.run([*inside, *command.split()], check=True)
    program = [sys.executable, "-m", "flannel_udp", "mk-docker-opts"]
    result = subprocess.run(
        [*inside, *program, "-f", str(env), "-d", str(tmp_path / "docker")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code, result.stderr
    assert ("10.1.5.0/24 via 192.0.2.1" in result.stderr) == (code == 1)
