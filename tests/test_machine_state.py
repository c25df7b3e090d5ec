"""The tests leave the machine as it was, and a run that does not fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import machine_state
import pytest
from documents import ROOT

from flannel_udp.host.netns import Namespace

LEAVING = """\
import subprocess
from pathlib import Path
import machine_state

machine_state.LEFT_AFTER = 0.0

def test_that_leaves_something():
    Path({file!r}).touch()
    subprocess.run("ip link add left0 type bridge", shell=True, check=True)
    subprocess.run("ip address add 10.99.0.1/32 dev lo", shell=True, check=True)
    subprocess.run("nft add table ip left", shell=True, check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
"""


def test_run_that_leaves_something_fails_and_names_it(namespace: Namespace, tmp_path: Path) -> None:
    file = Path(f"/run/fltest-left-{os.getpid()}")
    module = tmp_path / "test_leaving.py"
    module.write_text(LEAVING.format(file=str(file)))
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-c", "/dev/null", str(module)]
    path = ":".join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/e2e")))
    environment = {**os.environ, "PYTHONPATH": path}
    del environment["PYTEST_CURRENT_TEST"]
    namespace.sysctl("ipv4/ip_forward", 0)
    try:
        result = namespace.run(command, cwd=tmp_path, env=environment, timeout=60)
    finally:
        file.unlink(missing_ok=True)
    assert "1 passed" in result.stdout, result.stdout + result.stderr
    assert result.returncode == 1
    _, _, told = result.stdout.partition("the machine is not as it was before the tests")
    assert f"+ entry {file}\n" in told
    assert "left0" in told
    assert "+ address 1: lo inet 10.99.0.1/32 scope global lo" in told
    assert "+ nftables table ip left {" in told
    assert "- sysctl net/ipv4/ip_forward = 0" in told
    assert "+ sysctl net/ipv4/ip_forward = 1" in told


def test_files_differ_by_content_mode_and_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine_state, "_UNCHANGED", (str(tmp_path),))
    (tmp_path / "large").write_bytes(bytes(200_000))
    for name in ("same", "content", "mode"):
        (tmp_path / name).write_text("1")
    (tmp_path / "link").symlink_to("one")
    before = machine_state.read()
    (tmp_path / "same").write_text("1")
    (tmp_path / "content").write_text("2")
    (tmp_path / "mode").chmod(0o600)
    os.utime(tmp_path / "large", (1, 1))
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("two")
    (tmp_path / "__pycache__").mkdir()
    changed = {line.split()[2] for line in machine_state.differences(before, machine_state.read())}
    changed = {Path(path).name for path in changed if path.startswith(str(tmp_path))}
    assert changed == {"content", "mode", "large", "link"}


def test_state_does_not_change_by_itself(namespace: Namespace) -> None:
    before = namespace.call(machine_state.read)
    assert namespace.call(machine_state.left_since, before) == []
