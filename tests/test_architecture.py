"""The walls between packages and modules: who imports whom, and which modules touch the outside."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import flannel_udp

PACKAGE = Path(flannel_udp.__file__).parent

# Imports point from the top of this list down, never up.
ROOMS = (
    "cli", "lab", "daemon", "handover", "observe", "routing", "backends", "host", "cluster", "etcd",
)  # fmt: skip

PURE = {
    "backends.pump.fallbacks", "cli.convert", "cli.flags", "cli.go_flags",
    "cluster.allocator", "cluster.config", "cluster.go_json", "cluster.held_leases",
    "cluster.lease", "errors", "etcd.faults", "etcd.values",
    "handover.state", "host.firewall.iptables", "host.firewall.nftables",
    "host.firewall.rules", "host.interface_choice", "observe.check_rules",
    "observe.rates", "options", "routing.routes", "units",
}  # fmt: skip
PURE_IMPORTS = {
    "__future__", "argparse", "collections", "dataclasses", "enum", "functools", "ipaddress",
    "difflib", "itertools", "json", "pathlib", "posixpath", "random", "re", "textwrap", "types",
    "typing", "warnings",
}  # fmt: skip

DOORS = {
    "pyroute2": {
        "host.interfaces", "host.kernel_events", "host.kernel_routes", "host.netlink",
        "host.netns", "host.tunnel_device",
    },
    "etcd3": {"etcd.client", "etcd.members", "etcd.watch_stream"},
    "grpc": {"etcd.client", "etcd.members", "etcd.watch_stream"},
    "prometheus_client": {"observe.metrics"},
    "icmplib": {"observe.check_peers"},
    "rich": {"lab.demo", "observe.status_view", "observe.top"},
    "shtab": {"cli.completion"},
    "flannel_udp.backends.pump._pump": {"backends.pump.pump"},
}  # fmt: skip
IMPORTERS = {
    "cli.main": {"__main__"},
    "daemon.daemon": {"cli.main"},
    "lab.demo": {"cli.commands"},
    "cli.commands": {"cli.main"},
    "cli.flags": {"cli.main", "cli.commands", "cli.completion"},
}


def module_name(path: Path) -> str:
    """``cluster.lease`` for ``flannel_udp/cluster/lease.py``, ``cluster`` for its package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


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


@cache
def siblings(module: str) -> frozenset[str]:
    """The modules of our own that a module imports."""
    found = set()
    for name in imported(module):
        first, _, rest = name.partition(".")
        if first != "flannel_udp":
            continue
        for candidate in (rest, rest.rpartition(".")[0]):
            if candidate in MODULES:
                found.add(candidate)
                break
    return frozenset(found)


def room(module: str) -> str:
    """The folder of a module; "" at the root."""
    return module.partition(".")[0] if "." in module or module in ROOMS else ""


def test_every_folder_is_a_known_room() -> None:
    assert {room(module) for module in MODULES} == {*ROOMS, ""}


def test_the_root_holds_only_what_everybody_uses() -> None:
    root = {module for module in MODULES if not room(module)}
    assert len(root) <= 10
    for module in root - {"__main__"}:
        assert {room(other) for other in siblings(module)} <= {""}, module


def test_imports_point_down_from_room_to_room() -> None:
    upward = {
        (module, other)
        for module in MODULES
        for other in siblings(module)
        if room(module) and room(other) and ROOMS.index(room(other)) < ROOMS.index(room(module))
    }
    assert not upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({module: siblings(module) for module in MODULES}).prepare()


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
    assert users <= DOORS[target]


@pytest.mark.parametrize("target", sorted(IMPORTERS))
def test_the_upper_floors_are_entered_from_above(target: str) -> None:
    users = {module for module in MODULES if target in siblings(module)}
    assert users <= IMPORTERS[target]


def test_nothing_is_decided_by_the_wall_clock() -> None:
    """Somebody may set it while a lease lives."""
    for module in MODULES:
        names = {name for name in imported(module) if name.startswith(("time.", "datetime"))}
        attributes = {
            ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)
        }
        forbidden = {"time.time", "time.time_ns", "time.CLOCK_REALTIME", "datetime.datetime"}
        assert not (names | attributes) & forbidden, module


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(tree(module))


def test_errors_are_one_family() -> None:
    family: set[str] = set()
    for node in tree("errors").body[1:]:
        assert isinstance(node, ast.ClassDef)
        (base,) = [base.id for base in node.bases if isinstance(base, ast.Name)]
        assert base in family or (node.name, base) == ("FlannelError", "Exception")
        family.add(node.name)
