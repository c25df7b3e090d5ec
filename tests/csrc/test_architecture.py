"""The C files: which calls which, and what of them Python sees."""

from __future__ import annotations

import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from flannel_udp.backends.pump import _pump

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
LONGEST = 60

# A function with its body; both begin in the first column.
_FUNCTION = re.compile(
    r"^(?P<head>(?!typedef|enum|struct \w+ \{)[a-z][^\n;{}#]*?"
    r"\b(?P<name>\w+)\((?:[^;{}]|\n)*?\))\n\{\n(?P<body>.*?)^\}",
    re.MULTILINE | re.DOTALL,
)


def sources() -> dict[str, str]:
    """The text of every C file and header, without comments."""
    return {
        path.name: re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        for path in sorted(CSRC.glob("*.[ch]"))
    }


def uses(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """Which of the others each unit includes or calls. A unit is a C file and its header."""
    owner = {
        function["name"]: Path(file).stem
        for file, text in texts.items()
        for function in _FUNCTION.finditer(text)
        if file.endswith(".c") and not function["head"].startswith("static")
    }
    graph: dict[str, set[str]] = {Path(file).stem: set() for file in texts}
    for file, text in texts.items():
        unit = Path(file).stem
        included = set(re.findall(r'^#include "(\w+)\.h"', text, re.MULTILINE))
        called = {owner[word] for word in re.findall(r"\b\w+\b", text) if word in owner}
        graph[unit] |= (included | called) - {unit}
    return graph


def test_no_c_files_use_each_other_in_a_circle() -> None:
    graph = uses(sources())
    assert {"inbound", "outbound", "tunnel"} <= graph["worker"]
    assert "route_set" in graph["route_table"]
    TopologicalSorter(graph).prepare()


def test_a_circle_of_calls_is_found() -> None:
    texts = {
        "a.h": "int a_run(void);",
        "a.c": '#include "a.h"\n#include "b.h"\nint a_run(void)\n{\n    return b_run();\n}\n',
        "b.h": "int b_run(void);",
        "b.c": '#include "b.h"\nint a_run(void);\nint b_run(void)\n{\n    return a_run();\n}\n',
    }
    with pytest.raises(CycleError):
        TopologicalSorter(uses(texts)).prepare()


def test_no_c_function_is_long() -> None:
    lengths = {
        function["name"]: function["body"].count("\n") + function["head"].count("\n") + 3
        for path in CSRC.glob("*.[ch]")
        for function in _FUNCTION.finditer(path.read_text())
    }
    assert len(lengths) > 150
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_the_extension_declares_only_what_the_wrapper_uses() -> None:
    wrapper = (ROOT / "flannel_udp/backends/pump/pump.py").read_text()
    assert set(dir(_pump.lib)) == set(re.findall(r"\blib\.(\w+)", wrapper))
