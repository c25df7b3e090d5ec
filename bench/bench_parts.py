"""The pure parts, compared with memcpy of the same bytes or reads of an array of the same size."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from bench import programs
from bench.conftest import Replay
from bench.parts import Part, interleave
from bench.plan import Plan

ROUTES = (10, 1_000, 65_536)
NETWORK = 10 << 24  # 10.0.0.0/8: 65,536 subnets of length 24

LOOKUPS = 200_000
COPIES = 200
CHANGES = 10_000
HEADERS = 52
SEGMENT = 1420  # payload bytes of a full packet at an MTU of 1472, with TCP timestamps
SEGMENTS = 45

GROUPS = {
    "bytes": f"{SEGMENTS} packets of {SEGMENT} bytes",
    "lookup": "Lookup of one random destination",
    "table": "Routing table, from empty to full",
    "change": "Change of one route's next hop",
}
BESIDE = {  # each part, and what it is compared with
    "bytes/memcpy": None,
    "bytes/checksum": "bytes/memcpy",
    "bytes/segment": "bytes/memcpy",
    "bytes/coalesce": "bytes/memcpy",
}
for _count in ROUTES:
    BESIDE |= {
        f"lookup/array of {_count}": None,
        f"lookup/{_count} routes": f"lookup/array of {_count}",
        f"table/memcpy of {_count} routes": None,
        f"table/{_count} routes": f"table/memcpy of {_count} routes",
        f"change/next hop among {_count}": f"change/next hop among {ROUTES[0]}",
    }


@pytest.fixture(scope="module")
def samples(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    ffi, lib = programs.load_kernels(tmp_path_factory.mktemp("kernels"))
    parts = byte_parts(ffi, lib) | lookup_parts(ffi, lib) | table_parts(ffi, lib)
    return interleave(parts, plan.part_rounds)


@pytest.mark.parametrize("name", BESIDE)
def test_part(samples: Mapping[str, list[float]], replay: Replay, name: str) -> None:
    """Seconds per superpacket, lookup, table or change."""
    beside = BESIDE[name]
    replay(
        GROUPS[name.partition("/")[0]],
        f"parts/{name}",
        samples[name],
        f"parts/{beside}" if beside else None,
    )


def byte_parts(ffi: Any, lib: Any) -> dict[str, Part]:
    """Cuts one TCP superpacket into packets, and merges these again."""
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    head = IP(src="10.1.5.2", dst="10.1.6.2", flags="DF") / TCP(flags="A", options=options)
    whole = bytes(head / Raw(random.Random(1).randbytes(SEGMENTS * SEGMENT)))
    superpacket = ffi.new("uint8_t[]", whole)
    packet = HEADERS + SEGMENT
    packets = ffi.new("uint8_t[]", SEGMENTS * packet)
    assert lib.run_segment(packets, superpacket, len(whole), SEGMENT, 1) == SEGMENTS
    assert lib.run_coalesce(packets, len(packets), packet, 1) == 1
    copy = ffi.new("uint8_t[]", len(whole))

    def part(function: Any, *arguments: object) -> Part:
        return Part(COPIES, lambda: function(*arguments, COPIES))

    return {
        "bytes/memcpy": part(lib.run_memcpy, copy, superpacket, len(whole)),
        "bytes/checksum": part(lib.run_checksum, superpacket, len(whole)),
        "bytes/segment": part(lib.run_segment, ffi.NULL, superpacket, len(whole), SEGMENT),
        "bytes/coalesce": part(lib.run_coalesce, packets, len(packets), packet),
    }


def lookup_parts(ffi: Any, lib: Any) -> dict[str, Part]:
    """Compared with an array that holds one word per route: no lookup can read less."""
    parts = {}
    draw = random.Random(2)
    for count in ROUTES:
        table = _table(ffi, lib, count)
        array = ffi.new("uint64_t[]", list(range(count)))
        indexes = ffi.new("uint32_t[]", [draw.randrange(count) for _ in range(LOOKUPS)])
        addresses = ffi.new(
            "uint32_t[]", [NETWORK + (index << 8) + draw.randrange(256) for index in indexes]
        )
        parts[f"lookup/{count} routes"] = _reads(lib.run_lookup, table, addresses)
        parts[f"lookup/array of {count}"] = _reads(lib.run_array_reads, array, indexes)
    return parts


def table_parts(ffi: Any, lib: Any) -> dict[str, Part]:
    """Compared with memcpy of as many bytes: building writes the memory of the table once."""
    parts = {}
    for count in ROUTES:
        size = lib.table_bytes(count)
        copies = [ffi.new("uint8_t[]", size) for _ in range(2)]
        parts[f"table/memcpy of {count} routes"] = _copy(lib, copies, size)
        parts[f"table/{count} routes"] = _build(lib, count)
        parts[f"change/next hop among {count}"] = _change(lib, _table(ffi, lib, count), count)
    return parts


def _copy(lib: Any, copies: list[Any], size: int) -> Part:
    return Part(1, lambda: lib.run_memcpy(*copies, size, 1))


def _build(lib: Any, count: int) -> Part:
    return Part(1, lambda: lib.run_build(NETWORK, count))


def _change(lib: Any, table: Any, count: int) -> Part:
    return Part(CHANGES, lambda: lib.run_changes(table, NETWORK + (count // 2 << 8), CHANGES))


def _reads(function: Any, memory: Any, keys: Any) -> Part:
    return Part(LOOKUPS, lambda: function(memory, keys, LOOKUPS))


def _table(ffi: Any, lib: Any, count: int) -> Any:
    table = lib.new_table(NETWORK, count)
    assert table != ffi.NULL
    return ffi.gc(table, lib.route_table_free)
