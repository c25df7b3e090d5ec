"""The walls between the modules: who imports whom, and which modules touch the outside."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import flannel_udp

PACKAGE = Path(flannel_udp.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))

PURE = {
    "allocator", "checks", "config", "errors", "etcd_values", "fallbacks", "firewall_rules",
    "flags", "gojson", "goregex", "handover", "held_leases", "interface", "iptables_rules", "lease",
    "nftables_rules", "rates", "routes", "units", "words",
}  # fmt: skip
PURE_IMPORTS = {
    "__future__", "argparse", "collections", "dataclasses", "enum", "functools", "ipaddress",
    "difflib", "itertools", "json", "pathlib", "posixpath", "random", "re", "textwrap", "types",
    "typing",
}  # fmt: skip

DOORS = {
    "pyroute2": {"netdev", "netns"},
    "etcd3": {"etcd"},
    "grpc": {"etcd"},
    "prometheus_client": {"metrics"},
    "icmplib": {"path_check"},
    "rich": {"lab", "status_view", "top"},
    "shtab": {"reference"},
    "flannel_udp._pump": {"pump"},
}
HOUSES = {"etcd", "lab", "netdev"}
IMPORTERS = {
    "cli": {"__main__"},
    "daemon": {"cli"},
    "lab_demo": {"commands"},
    "commands": {"cli"},
    "flags": {"cli", "commands", "reference"},
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


@cache
def imported(module: str) -> frozenset[str]:
    """Dotted names of all imports, also those inside functions; ``from a import b`` is ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def siblings(module: str) -> set[str]:
    parts = [name.split(".") for name in imported(module)]
    return {part[1] for part in parts if part[0] == "flannel_udp" and part[1] in MODULES}


def house(module: str) -> str:
    """``lab_host`` is a room of ``lab``: rooms may refer to each other."""
    first = module.partition("_")[0]
    return first if first in HOUSES else module


def test_imports_point_one_way() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        others = {house(other) for other in siblings(module)} - {house(module)}
        graph.setdefault(house(module), set()).update(others)
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_import_no_io(module: str) -> None:
    outside = {name.partition(".")[0] for name in imported(module)} - {"flannel_udp"}
    assert outside <= PURE_IMPORTS
    assert siblings(module) <= PURE


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_use_paths_only_as_values(module: str) -> None:
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
    }
    assert not called & {"open", "read_text", "write_text", "exists", "print", "getLogger"}


@pytest.mark.parametrize("target", sorted(DOORS))
def test_the_outside_has_one_door(target: str) -> None:
    users = {
        module
        for module in MODULES
        if any(f"{name}.".startswith(f"{target}.") for name in imported(module))
    }
    assert {house(module) for module in users} <= DOORS[target]


@pytest.mark.parametrize("target", sorted(IMPORTERS))
def test_the_upper_floors_are_entered_from_above(target: str) -> None:
    users = {module for module in MODULES if target in siblings(module)}
    assert {house(module) for module in users} <= IMPORTERS[target] | {target}


def test_nothing_is_decided_by_the_wall_clock() -> None:
    """Somebody may set it while a lease lives. One module looks whether somebody did, to say so."""
    for module in set(MODULES) - {"clock_watch"}:
        names = {name for name in imported(module) if name.startswith(("time.", "datetime"))}
        attributes = {
            ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)
        }
        forbidden = {"time.time", "time.time_ns", "time.CLOCK_REALTIME", "datetime.datetime"}
        assert not (names | attributes) & forbidden, module


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(tree(module))


def test_errors_are_one_family() -> None:
    family: set[str] = set()
    for node in tree("errors").body[1:]:
        assert isinstance(node, ast.ClassDef)
        (base,) = [base.id for base in node.bases if isinstance(base, ast.Name)]
        assert base in family or (node.name, base) == ("FlannelError", "Exception")
        family.add(node.name)
