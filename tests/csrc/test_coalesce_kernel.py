"""The kernel cuts superpackets into the packets that they were merged from.

A superpacket is written to one TUN device and routed to another one without offloads, for which the
kernel has to cut it and to complete every checksum; our own segmenter has no part in it.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from flannel_udp.backends.pump._pump import ffi, lib
from hypothesis import given, settings
from packet_flows import datagrams, flow_of, stream, traffic, without_id_if_df
from superpackets import OPTIONS, coalesce

from flannel_udp.host.netns import Namespace

PATIENCE_S = 5
LONGEST = 65535


@dataclass(frozen=True)
class Router:
    """Forwards from one TUN device to the other."""

    entry: int  # with vnet headers and all offloads that the kernel has
    exit: int  # with neither
    offloads: int  # of the entry

    def forward(self, packets: list[bytes]) -> list[bytes]:
        """What comes out for one batch of packets that coalesce has merged."""
        bundles = coalesce(
            packets,
            tcp=bool(self.offloads & lib.OFFLOAD_TSO),
            udp=bool(self.offloads & lib.OFFLOAD_USO),
        )
        while not self.is_empty():  # what an example that failed has left
            os.read(self.exit, LONGEST)
        for bundle in bundles:
            os.write(self.entry, bytes(ffi.buffer(bundle.vnet.to_c())) + bundle.data)
        return [self._read() for _ in packets]

    def _read(self) -> bytes:
        readable, _, _ = select.select([self.exit], [], [], PATIENCE_S)
        assert readable, "fewer packets came out than went in"
        return os.read(self.exit, LONGEST)

    def is_empty(self) -> bool:
        return not select.select([self.exit], [], [], 0)[0]


def open_router(stack: ExitStack) -> Router:
    """In the namespace of the calling thread."""

    def open_end(pattern: bytes, vnet: bool) -> int:
        fd = int(lib.tun_device_open(pattern, vnet, ffi.new("char[]", lib.TUN_NAME_SIZE)))
        assert fd >= 0, os.strerror(-fd)
        stack.callback(os.close, fd)
        return fd

    entry, exit_ = open_end(b"entry", True), open_end(b"exit", False)
    device = ffi.new("struct tun_device *")
    assert lib.tun_device_attach(device, entry, lib.OFFLOAD_TSO | lib.OFFLOAD_USO) == 0
    conf = Path("/proc/sys/net")
    (conf / "ipv6/conf/all/disable_ipv6").write_text("1")
    (conf / "ipv4/ip_forward").write_text("1")
    return Router(entry, exit_, device.offloads)


@pytest.fixture(scope="module")
def router(module_namespace: Namespace) -> Iterator[Router]:
    with ExitStack() as stack:
        router = module_namespace.call(open_router, stack)
        for command in (
            f"link set entry up mtu {LONGEST}",
            f"link set exit up mtu {LONGEST} txqueuelen 5000",
            "route add 10.1.5.0/24 dev entry",
            "route add 10.1.6.0/24 dev exit",
        ):
            module_namespace.run(["ip", *command.split()], check=True)
        yield router


def forwarded(packet: bytes) -> bytes:
    """The packet one hop further: the TTL is one less, the header checksum follows (RFC 1624)."""
    total = struct.unpack_from("!H", packet, 10)[0] + 0x100
    total = (total & 0xFFFF) + (total >> 16)
    return (
        packet[:8] + bytes([packet[8] - 1]) + packet[9:10] + struct.pack("!H", total) + packet[12:]
    )


def check(router: Router, packets: list[bytes]) -> None:
    came = router.forward(packets)
    for flow in {flow_of(packet) for packet in packets}:
        expected = [without_id_if_df(forwarded(p)) for p in packets if flow_of(p) == flow]
        assert [without_id_if_df(p) for p in came if flow_of(p) == flow] == expected
    assert router.is_empty()


def test_the_kernel_has_superpackets(router: Router) -> None:
    assert router.offloads & lib.OFFLOAD_TSO
    sizes = [len(bundle.packets) for bundle in coalesce(stream(46, 1420))]
    assert sizes == [46]  # so what comes out below was cut by the kernel


@pytest.mark.parametrize(
    "packets",
    [
        stream(46, 1420),
        stream(46, 1409, last=1),
        stream(64, 1),
        stream(64, 1, ip_flags="DF"),
        stream(30, 1400, options=OPTIONS),
        stream(30, 1400, ip_flags="DF", ip_id=0, last=77),
        stream(5, ip_id=0xFFFE)[:1] + stream(5)[1:],
        [*stream(3), *stream(9, flags="PA")[3:4], *stream(9)[4:]],
        datagrams(46, 1200),
        datagrams(40, 1371, last=2),
        datagrams(64, 1),
        datagrams(40, 1371, flags="DF", last=7),
        [
            packet
            for pair in zip(stream(20, 1400), datagrams(20, 1400), strict=True)
            for packet in pair
        ],
    ],
)
def test_long_runs_come_out_as_they_went_in(router: Router, packets: list[bytes]) -> None:
    check(router, packets)


@settings(max_examples=60)
@given(packets=traffic())
def test_any_traffic_comes_out_as_it_went_in(router: Router, packets: list[bytes]) -> None:
    check(router, packets)
