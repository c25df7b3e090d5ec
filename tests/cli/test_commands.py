"""The flags of the sub-commands, and what they print if no daemon runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flannel_udp.cli import commands
from flannel_udp.errors import StatusError, UsageError


def program(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flannel_udp", *argv],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": "/usr/bin:/bin", **environ},
    )


@pytest.mark.parametrize("name", sorted(commands.NAMES))
def test_every_command_has_help(name: str) -> None:
    result = program(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: flannel-udp {name}")
    assert f"flannel-udp {name}" in program("--help").stdout


@pytest.mark.parametrize("name", ["status", "top"])
def test_a_missing_daemon_is_reported_in_one_sentence(name: str, tmp_path: Path) -> None:
    missing = tmp_path / "subnet.env"
    terminal = ["script", "-qec"] if name == "top" else []
    command = [sys.executable, "-m", "flannel_udp", name, f"--subnet-file={missing}"]
    if terminal:
        command = [*terminal, " ".join(command), "/dev/null"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    (line,) = (result.stdout + result.stderr).splitlines()
    assert line == (
        f"flannel-udp: no daemon runs here: nothing answers at {missing.with_suffix('.sock')};"
        " start flannel-udp, or name the --subnet-file that it was given"
    )


def test_the_command_line_wins_over_the_environment(tmp_path: Path) -> None:
    environ = {"FLANNELD_SUBNET_FILE": str(tmp_path / "one.env")}
    with pytest.raises(StatusError, match=r"/one\.sock"):
        commands.run(["status"], environ)
    with pytest.raises(StatusError, match=r"/two\.sock"):
        commands.run(["status", f"--subnet-file={tmp_path}/two.env"], environ)
    with pytest.raises(StatusError, match=r"/two\.sock"):
        commands.run(["status", "--subnet-file", f"{tmp_path}/two.env"], environ)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["status", "--jsn"], "there is no flag --jsn; did you mean --json?"),
        (["top", "--what"], "there is no flag --what; see flannel-udp top --help"),
        (["lease", "lst"], "invalid choice: 'lst'"),
        (["status", "now"], "unrecognized arguments: now"),
        (["top", "--interval=0"], "--interval: '0' is not a number from 0.1 to 3600 seconds"),
        (["top", "--interval=nan"], "--interval: 'nan' is not"),
        (["top", "--interval"], "--interval needs a value"),
    ],
)
def test_a_mistake_gives_one_sentence(argv: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        commands.run(argv, {})
    assert sentence in str(caught.value)


def test_top_without_a_terminal_names_the_alternative(tmp_path: Path) -> None:
    result = program("top")
    assert result.returncode == 1
    assert result.stderr == (
        "flannel-udp: top needs a terminal: use flannel-udp status, which prints once\n"
    )


def test_one_dash_two_dashes_and_any_order_are_accepted(tmp_path: Path) -> None:
    with pytest.raises(StatusError, match=r"/two\.sock"):
        commands.run(["status", f"-subnet-file={tmp_path}/two.env", "-json"], {})
    good = '{"Network":"10.1.0.0/16"}'
    for argv in (
        ["config", "validate", good, "-etcd-prefix=/x"],
        ["config", "-etcd-prefix=/x", "validate", good],
        ["config", "validate", "--etcd-prefix", "/x", good],
    ):
        assert commands.run(argv, {}) == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["lease", "list", "--etcd-pasword=hunter2"],
        ["lease", "list", "-etcd-pasword", "hunter2"],
        ["lease", "--etcd-password", "correct", "hunter2"],
        ["lease", "revoke", "--etcd-password", "correct", "hunter2"],
        ["config", "show", "--etcd-password", "correct", "horse", "hunter2"],
        ["config", "show", "--etcd-password=hunter2", "--bogus"],
    ],
)
def test_a_password_is_in_no_message(argv: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        commands.run(argv, {"FLANNELD_ETCD_ENDPOINTS": "http://127.0.0.1:1"})
    assert "hunter2" not in str(caught.value)
