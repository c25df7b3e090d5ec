"""Log lines: JSON objects from the first to the last, and priorities in the journal."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile

import pytest

from flannel_udp.logs import JsonFormatter

PROGRAM = ("-m", "flannel_udp")


def test_every_line_is_one_json_object() -> None:
    record = logging.LogRecord(
        "flannel_udp.cluster.lease_keeper",
        logging.WARNING,
        "/a/keeper.py",
        1,
        'a "%s"\n',
        ("ß",),
        None,
    )
    record.created, record.msecs = 1_700_000_000.5, 500.0
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.500Z",
        "level": "warning",
        "module": "cluster.lease_keeper",
        "message": 'a "ß"\n',
    }


def test_an_exception_stays_on_its_line() -> None:
    try:
        raise ValueError("odd")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "m.py", 1, "no", (), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: odd")


def program(*argv: str, **environ: str) -> list[str]:
    """The lines on stderr of a daemon with these flags, which cannot start."""
    result = subprocess.run(
        [sys.executable, *PROGRAM, *argv], capture_output=True, text=True, timeout=30, env=environ
    )
    assert result.returncode == 1
    return result.stderr.splitlines()


def test_the_program_logs_json_from_the_first_line_to_the_last() -> None:
    first, last = map(
        json.loads, program("--kube-api-url=x", "--etcd-cafile=/none", FLANNELD_LOG_FORMAT="json")
    )
    assert "--kube-api-url has no effect" in first["message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert (first["level"], last["level"]) == ("warning", "error")
    assert "/none" in last["message"]


@pytest.mark.parametrize("argv", [["--log-format=json"], ["-log-format", "json"], []])
def test_a_wrong_flag_is_logged_as_json_too(argv: list[str]) -> None:
    environ = {} if argv else {"FLANNELD_LOG_FORMAT": "json"}
    (line,) = program(*argv, "--bogus", **environ)
    assert json.loads(line)["message"].startswith("there is no flag --bogus")


def in_journal(*argv: str) -> list[str]:
    """What Python with these arguments writes to a file named by JOURNAL_STREAM."""
    with tempfile.TemporaryFile() as journal:
        file = os.fstat(journal.fileno())
        environ = {"JOURNAL_STREAM": f"{file.st_dev}:{file.st_ino}"}
        subprocess.run([sys.executable, *argv], stderr=journal, timeout=30, env=environ)
        journal.seek(0)
        return journal.read().decode().splitlines()


def test_lines_for_the_journal_have_a_priority_and_no_time() -> None:
    first, last = in_journal(*PROGRAM, "--kube-api-url=x", "--etcd-cafile=/none")
    assert first.startswith("<4>WARNING --kube-api-url has no effect")
    assert last.startswith("<3>flannel-udp: ")
    first, last = in_journal(
        *PROGRAM, "--kube-api-url=x", "--etcd-cafile=/none", "--log-format=json"
    )
    assert json.loads(first.removeprefix("<4>"))["level"] == "warning"
    assert json.loads(last.removeprefix("<3>"))["level"] == "error"


def test_errors_of_sub_commands_have_a_priority_too() -> None:
    assert in_journal(*PROGRAM, "status", "--subnet-file=/none/x")[0].startswith(
        "<3>flannel-udp: no daemon"
    )
    assert in_journal(*PROGRAM, "mk-docker-opts", "-k", "a b")[0].startswith(
        "<3>mk-docker-opts: -k 'a b'"
    )


def test_every_line_of_a_traceback_has_the_same_priority() -> None:
    code = "import logging, os; from flannel_udp.logs import start_logging\n"
    code += "start_logging(os.environ, 'text')\n"
    code += "try:\n 1/0\nexcept ZeroDivisionError:\n logging.exception('odd')"
    lines = in_journal("-c", code)
    assert lines[0] == "<3>ERROR odd"
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


def test_lines_have_the_time_if_stderr_is_not_the_journal() -> None:
    """A process may inherit the variable although its own stderr is another file."""
    for environ in ({}, {"JOURNAL_STREAM": "8:1"}):
        first, _ = program("--kube-api-url=x", "--kube-subnet-mgr", **environ)
        assert re.match(r"\d{4}-\d\d-\d\d .* WARNING --kube-api-url", first)
