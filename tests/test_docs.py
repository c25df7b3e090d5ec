"""What the documents name exists, and docs/operations.md explains what the daemon prints."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import DOCUMENTS, OPERATIONS, README, ROOT, command_lines

from bench import compare
from bench.report import Digest, page
from flannel_udp.backends.pump.pump import STAT_NAMES
from flannel_udp.cli import commands, mk_docker_opts
from flannel_udp.cli.flags import DaemonFlags
from flannel_udp.cli.main import _parse
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.etcd import faults as etcd_faults
from flannel_udp.etcd.faults import BEHIND, CLOSED, NO_ANSWER, Kind
from flannel_udp.observe.status import QUEUE_DROPS

# Programs of the system: their arguments are not checked.
SYSTEM_PROGRAMS = {
    *("apt-get", "cat", "docker", "echo", "etcdctl", "install", "ip", "iptables", "sysctl"),
    *("ln", "systemctl"),
}
# Flags of systemctl, docker, etcdctl, iptables-restore and conntrack that the documents mention.
SYSTEM_FLAGS = {
    *("--now", "--ip-masq", "--endpoints", "--prefix", "--noflush", "--detach", "--name", "--rm"),
    "--zone",
}
FINDING = ("bad(", "note(")  # functions that return a finding of `status --check`
# Errors that end a running daemon, or that it waits for the end of.
EXPLAINED_ERRORS = {
    *("EtcdError", "RevisionError", "LeaseLostError", "AddressChangedError"),
    *("DeviceGoneError", "TunnelLostError"),
}


# Commands, flags, files


@pytest.mark.parametrize("command", command_lines())
def test_every_command_exists_and_takes_its_arguments(command: str) -> None:
    words = [word for word in shlex.split(command) if not re.match("[A-Z_]+=", word)]
    program, arguments = Path(words[0]).name, words[1:]
    if program == "flannel-udp":
        if arguments[0] in commands.NAMES and arguments[1:]:
            commands.parser(arguments[0]).parse_args(arguments[1:])
        elif arguments[0] not in (*commands.NAMES, "help", "--help"):
            _parse(arguments, {})
    elif program == "mk-docker-opts":
        mk_docker_opts.parse_arguments(arguments)
    elif program == "make":
        assert set(arguments) <= set(re.findall(r"^([a-z-]+):", makefile(), re.MULTILINE))
    elif program in ("python", "python3"):
        assert arguments[0] == "-m"
        if arguments[1] == "bench.compare":
            compare.parser().parse_args(arguments[2:])
    elif words[0].startswith("tools/"):
        assert os.access(ROOT / words[0], os.X_OK)
    else:
        assert program in SYSTEM_PROGRAMS | {"pip"}
    for word in words:
        if word.startswith(("packaging/", "tests/", "docs/", "tools/", "bench/")):
            assert (ROOT / word).exists(), word
        if word.startswith("{"):
            NetworkConfig.parse(word)


def makefile() -> str:
    return (ROOT / "Makefile").read_text()


def known_flags() -> set[str]:
    parsers = [*map(commands.parser, commands.NAMES), compare.parser()]
    options = {option for each in parsers for a in each._actions for option in a.option_strings}
    return {f"--{name}" for name in DaemonFlags().flags} | options | SYSTEM_FLAGS


def anchors(document: Path) -> set[str]:
    """The link targets of a document's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_variable_link_and_path_exists(document: Path) -> None:
    text = document.read_text()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known_flags()
    variables = {"FLANNELD_" + name.upper().replace("-", "_") for name in DaemonFlags().flags}
    assert set(re.findall(r"FLANNELD_[A-Z_]+", text)) <= variables
    for file, anchor in re.findall(r"\]\(([^):#]*)#?([^):]*)\)", text):
        target = document.parent / file if file else document
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), anchor
    folders = "csrc|flannel_udp|tests|docs|packaging|tools|bench"
    for path in re.findall(rf"`((?:{folders})/[^`<]*)`", text):
        assert (ROOT / path).exists(), path


def internals_names() -> set[str]:
    """The files and identifiers that internals.md names, without those of other programs."""
    text = (ROOT / "docs/internals.md").read_text()
    names = set(re.findall(r"`(\w[\w/.]*\w)/?`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    picture = set(re.findall(r"[a-z_]+/[a-z_/]+\.py", text))
    return (names | picture) - {"execve", "flock", "pyroute2", "READY", "BARRIER"}


def test_every_name_in_internals_exists_and_every_source_file_is_there() -> None:
    names = internals_names()
    sources = [
        path.read_text()
        for folder in ("flannel_udp", "csrc")
        for path in sorted((ROOT / folder).rglob("*.[pch]*"))
        if path.suffix in (".py", ".c", ".h")
    ]
    words = set(re.findall(r"\w+", "\n".join(sources)))
    unknown = {
        name
        for name in names
        if not any([*ROOT.glob(name), *ROOT.glob(f"*/{name}")])
        and not set(name.split(".")) <= words
    }
    assert not unknown
    c_files = {path.name for path in (ROOT / "csrc").glob("*.c")}
    packages = {path.parent.name for path in (ROOT / "flannel_udp").glob("*/__init__.py")}
    assert c_files <= names
    assert packages <= {name.partition("/")[0] for name in names}
    assert len((ROOT / "docs/internals.md").read_text().splitlines()) <= 200


def test_migration_has_a_row_for_every_flag() -> None:
    text = (ROOT / "docs/migration.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    of_flannel = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    of_ours_alone = set(re.findall(r"`--([a-z-]+)`", text))
    assert set(DaemonFlags().flags) - {"help", "h"} <= of_flannel | of_ours_alone


def test_benchmark_figures_are_the_measured_ones() -> None:
    digest = Digest(**json.loads((ROOT / "docs/benchmarks.json").read_text()))
    assert (ROOT / "docs/benchmarks.md").read_text() == page(digest)
    (sentence,) = re.findall(r"Compared with kernel VXLAN[^]]*", README.read_text())
    measured = {f"{verdict['ratio']:.2f}" for verdict in digest.verdicts}
    assert set(re.findall(r"\d\.\d\d", sentence)) <= measured


# What docs/operations.md explains


def first_cells(section: str = "") -> set[str]:
    """The names in the first column of all tables of a section, or of the whole document."""
    text = OPERATIONS.read_text()
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|[^|]*[^| ][^|]*\|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def operations_text() -> str:
    return " ".join(OPERATIONS.read_text().split())


def calls_of_the_daemon() -> Iterator[tuple[str, ast.Call]]:
    """Module and call, for every call in the modules that a daemon runs."""
    for path in sorted((ROOT / "flannel_udp").rglob("*.py")):
        if path.parent.name != "lab":
            nodes = ast.walk(ast.parse(path.read_text()))
            yield from ((path.stem, node) for node in nodes if isinstance(node, ast.Call))


def test_every_counter_is_explained_and_every_explained_counter_exists() -> None:
    counters, explained = {*STAT_NAMES, QUEUE_DROPS}, first_cells()
    assert counters <= explained
    assert {name for name in explained if name.startswith(("drop_", "tun_", "udp_"))} <= counters


def test_every_finding_code_is_explained_and_no_other() -> None:
    calls = (ast.unparse(call) for _, call in calls_of_the_daemon())
    # The code is the first string among the arguments of bad() and note().
    findings = (re.search(r"'([a-z-]+)'", call) for call in calls if call.startswith(FINDING))
    codes = {finding[1] for finding in findings if finding}
    explained = {name for name in first_cells("Check every peer") if " " not in name}
    assert codes | {"ok"} == explained


def is_logged(function: ast.expr) -> bool:
    """Whether it logs at level info or above: a method of a logger, or of a class in log_limits."""
    owner, _, method = ast.unparse(function).rpartition(".")
    of_logger = owner.endswith("log") and method in ("info", "warning", "error")
    return of_logger or (bool(owner) and method in ("failed", "works", "warn"))


def log_lines() -> Iterator[tuple[str, str]]:
    """Module and longest fixed part of each line logged at level info or above."""
    for module, call in calls_of_the_daemon():
        if is_logged(call.func) and call.args:
            texts = [str(n.value) for n in ast.walk(call.args[0]) if isinstance(n, ast.Constant)]
            parts = [part.strip(" ;:,'.") for text in texts for part in re.split(r"%[sdx]", text)]
            yield module, max(parts, key=len, default="")


@pytest.mark.parametrize(("module", "line"), sorted({each for each in log_lines() if each[1]}))
def test_every_log_line_is_explained(module: str, line: str) -> None:
    beginning = line.split(" '")[0].split(", ")[0]
    assert beginning in operations_text(), f"{module} logs {line!r}"


def error_sentences() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Module and fixed parts of the sentence of each of EXPLAINED_ERRORS."""
    for module, call in calls_of_the_daemon():
        if ast.unparse(call.func) in EXPLAINED_ERRORS and call.args:
            texts = [str(n.value) for n in ast.walk(call.args[0]) if isinstance(n, ast.Constant)]
            parts = [part.strip() for text in texts for part in re.split("[:;,]", text)]
            yield module, tuple(part for part in parts if part.count(" ") > 1)


@pytest.mark.parametrize(
    ("module", "parts"), sorted(each for each in set(error_sentences()) if each[1])
)
def test_every_error_of_a_running_daemon_is_explained(module: str, parts: tuple[str, ...]) -> None:
    assert any(part in operations_text() for part in parts), module


def test_every_cause_of_an_unusable_etcd_is_explained() -> None:
    shown = {Kind.UNREACHABLE, Kind.REFUSED, Kind.STALE_LOGIN}
    faults = [*(fault for _, fault in etcd_faults._TEXTS), BEHIND, CLOSED, NO_ANSWER]
    assert {fault.cause for fault in faults if fault.kind in shown} <= first_cells("It waits")
