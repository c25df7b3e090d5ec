"""Log lines as JSON: whole objects, one a line, from the first on."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

from flannel_udp.logs import JsonFormatter


def test_a_line_is_one_object_whatever_it_says() -> None:
    record = logging.LogRecord("x", logging.WARNING, "/a/pump.py", 1, 'a "%s"\n', ("ß",), None)
    record.created, record.msecs = 1_700_000_000.5, 500.0
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.500Z",
        "level": "warning",
        "module": "pump",
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


def test_the_program_speaks_json_from_the_first_line_on() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "flannel_udp", "--kube-api-url=x", "--etcd-cafile=/none"],
        capture_output=True,
        text=True,
        timeout=30,
        env={"FLANNELD_LOG_FORMAT": "json"},
    )
    first, last = result.stderr.splitlines()
    told = json.loads(first)
    assert "--kube-api-url has no effect" in told["message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told["time"])
    assert last.startswith("flannel-udp: ")  # why it ended, for whoever started it
