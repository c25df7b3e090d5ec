"""Completion and the man page know every flag and every command that --help knows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flannel_udp import commands, reference
from flannel_udp.flags import FlagParser

ROOT = Path(__file__).parent.parent


def shown_flags() -> set[str]:
    """Those in --help, of the daemon and of every command."""
    found = set()
    for parser in (FlagParser(), *commands.parsers().values()):
        found |= set(re.findall(r"--[a-z][a-z-]*", parser.format_help()))
    return found - {"--flag"}


def bash(script: str, words: list[str]) -> set[str]:
    """What bash offers for the last of the words."""
    line = " ".join(words)
    ask = (
        f"{script}\nCOMP_WORDS=({' '.join(words[:-1])} {words[-1] or chr(39) * 2})"
        f"\nCOMP_CWORD={len(words) - 1}\nCOMP_LINE='{line}'\nCOMP_POINT={len(line)}"
        "\ncompopt() { :; }\n_shtab_flannel_udp flannel-udp"
        '\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_bash_completes_flags_commands_and_choices() -> None:
    script = reference.completion("bash", commands.parsers())
    assert {"--etcd-endpoints", "--etcd-prefix"} <= bash(script, ["flannel-udp", "--etcd"])
    assert bash(script, ["flannel-udp", "sta"]) == {"status"}
    assert {"--json", "--check"} <= bash(script, ["flannel-udp", "status", "--"])
    assert {"show", "set", "validate"} <= bash(script, ["flannel-udp", "config", ""])


def test_zsh_and_bash_get_every_flag() -> None:
    for shell in ("bash", "zsh"):
        script = reference.completion(shell, commands.parsers())
        assert not {flag for flag in shown_flags() if flag not in script}


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["completion", "bash"], {}) == 0
    assert (
        capsys.readouterr().out.strip() == reference.completion("bash", commands.parsers()).strip()
    )


def test_the_man_page_has_every_flag_and_every_command() -> None:
    made = [
        subprocess.run(
            [sys.executable, "tools/make-man"], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        for _ in range(2)
    ]
    assert made[0].returncode == 0, made[0].stderr
    assert made[0].stdout == made[1].stdout
    page = made[0].stdout.replace("\\", "")
    assert page.startswith('.TH FLANNEL-UDP "8" ""')
    assert not {flag for flag in shown_flags() if flag not in page}
    for name in (*commands.NAMES, "lab", "mk-docker-opts"):
        assert f"COMMAND fI,'flannel-udp {name}'" in page
