"""The pure parts, beside memcpy of the same bytes or reads of an array of the same size."""

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
HEADERS = 52
SEGMENT = 1420  # payload bytes of a full packet at an MTU of 1472, with TCP timestamps
SEGMENTS = 45

GROUPS = {
    "bytes": f"{SEGMENTS} packets of {SEGMENT} bytes",
    "lookup": "Lookup of one random destination",
}
NAMES = (
    *("bytes/memcpy", "bytes/checksum", "bytes/segment", "bytes/coalesce"),
    *(f"lookup/{count} routes" for count in ROUTES),
    *(f"lookup/array of {count}" for count in ROUTES),
)


@pytest.fixture(scope="module")
def samples(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    ffi, lib = programs.load_kernels(tmp_path_factory.mktemp("kernels"))
    return interleave(byte_parts(ffi, lib) | lookup_parts(ffi, lib), plan.part_rounds)


@pytest.mark.parametrize("name", NAMES)
def test_part(samples: Mapping[str, list[float]], replay: Replay, name: str) -> None:
    """Seconds per superpacket or per lookup."""
    replay(GROUPS[name.partition("/")[0]], f"parts/{name}", samples[name])


def byte_parts(ffi: Any, lib: Any) -> dict[str, Part]:
    """From and to the packets of one TCP superpacket."""
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
    """An array with one word for every route is the least that a lookup could read."""
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


def _reads(function: Any, memory: Any, keys: Any) -> Part:
    return Part(LOOKUPS, lambda: function(memory, keys, LOOKUPS))


def _table(ffi: Any, lib: Any, count: int) -> Any:
    """The first subnets of the network, each with a next hop of its own."""
    out = ffi.new("struct route_table **")
    assert lib.route_table_create(out) == 0
    table = ffi.gc(out[0], lib.route_table_free)
    previous = ffi.new("uint32_t *")
    for number in range(count):
        assert lib.route_table_insert(table, NETWORK + (number << 8), 24, number, previous) == 0
    return table
