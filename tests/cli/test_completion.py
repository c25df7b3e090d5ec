"""--help is complete, and completion and the man page have every flag that it has."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_udp.cli import commands, mk_docker_opts
from flannel_udp.cli import completion as reference
from flannel_udp.cli.flags import DaemonFlags
from flannel_udp.options import Options

ROOT = Path(__file__).parents[2]


PARSERS = {
    "the daemon": DaemonFlags(),
    **commands.parsers(),
    "mk-docker-opts": mk_docker_opts.parser(),
}

# The units of numbers.
UNITS = {"MINUTES", "SECONDS", "MICROSECONDS", "TIME", "PORT", "N"}


def shown(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The flags that --help shows."""
    for action in parser._actions:
        if action.option_strings and action.help != argparse.SUPPRESS:
            yield action


def shown_flags() -> set[str]:
    """Those in --help, of the daemon and of every command."""
    flags = {
        flag
        for parser in PARSERS.values()
        for each in shown(parser)
        for flag in each.option_strings
    }
    assert {"--iface", "--keep", "-k"} <= flags
    return flags


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_help_shows_default_and_unit_of_every_flag(name: str) -> None:
    for action in shown(PARSERS[name]):
        assert action.help
        if action.nargs == 0:  # it takes no value
            continue
        assert "(default: " in action.help, action.option_strings
        (default,) = re.findall(r"\(default: ([^)]*)\)", action.help)
        if default.isdecimal() or action.type is float:
            assert action.metavar in UNITS, action.option_strings


def test_help_shows_the_defaults_that_are_used() -> None:
    for name, action in DaemonFlags().flags.items():
        value = getattr(Options(), action.dest, None)
        if action.help == argparse.SUPPRESS or isinstance(value, tuple) or value in (None, ""):
            continue
        (default,) = re.findall(r"\(default: ([^)]*)\)", action.help or "")
        assert callable(action.type)
        assert action.type(default) == value, name


def bash(script: str, words: list[str]) -> set[str]:
    """The completions that bash offers for the last word."""
    line = " ".join(words)
    program = (
        f"{script}\nCOMP_WORDS=({' '.join(words[:-1])} {words[-1] or chr(39) * 2})"
        f"\nCOMP_CWORD={len(words) - 1}\nCOMP_LINE='{line}'\nCOMP_POINT={len(line)}"
        "\ncompopt() { :; }\n_shtab_flannel_udp flannel-udp"
        '\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_bash_completes_flags_commands_and_choices() -> None:
    script = reference.completion("bash", commands.parsers())
    assert {"--etcd-endpoints", "--etcd-prefix"} <= bash(script, ["flannel-udp", "--etcd"])
    assert bash(script, ["flannel-udp", "sta"]) == {"status"}
    assert {"--json", "--check"} <= bash(script, ["flannel-udp", "status", "--"])
    assert {"show", "set", "validate"} <= bash(script, ["flannel-udp", "config", ""])
    assert {"--hosts", "--keep"} <= bash(script, ["flannel-udp", "lab", "--"])
    assert bash(script, ["flannel-udp", "lab", "--underlay", ""]) == {"direct", "wire"}
    assert {"-f", "-k", "-i"} <= bash(script, ["flannel-udp", "mk-docker-opts", "-"])


@pytest.mark.parametrize(
    "words", [["--etcd-cafile"], ["status", "--subnet-file"], ["mk-docker-opts", "-f"]]
)
def test_bash_completes_files_for_flags_that_take_a_file(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "some.env").touch()
    script = reference.completion("bash", commands.parsers())
    offered = bash(script, ["flannel-udp", *words, f"{tmp_path}/so"])
    assert offered == {f"{tmp_path}/some.env"}


def test_bash_completes_directories_for_flags_that_take_one(tmp_path: Path) -> None:
    (tmp_path / "some.env").touch()
    (tmp_path / "some").mkdir()
    script = reference.completion("bash", commands.parsers())
    offered = bash(script, ["flannel-udp", "etcd", "--data-dir", f"{tmp_path}/so"])
    assert offered == {f"{tmp_path}/some"}


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
