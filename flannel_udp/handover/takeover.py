"""Continuing with what the last process left: forwarding starts before anything else is known.

This runs before the modules that take long to import, so that packets wait in the kernel's queues
no longer than a Python start takes. The host's address is confirmed, and etcd asked, while packets
flow again.
"""

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flannel_udp.backends.pump.ends import Tunnel, adopt_tunnel, wants_vnet_header
from flannel_udp.backends.pump.pump import Pump
from flannel_udp.errors import HandoverError
from flannel_udp.handover import state
from flannel_udp.handover.memory_file import MemoryFile
from flannel_udp.handover.state import Handover, Head, Place
from flannel_udp.host import locks, systemd
from flannel_udp.options import Options

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Takeover:
    """A pump that already carries packets. Closing ``carried`` stops it and closes its
    descriptors."""

    handover: Handover
    tunnel: Tunnel
    pump: Pump
    memory: MemoryFile
    carried: contextlib.ExitStack


def take_over(options: Options, inherited: Mapping[str, int]) -> Takeover | None:
    """Carry packets with the descriptors (by name) that the last process left, if there are any.

    Where they do not fit, log why, close them and return None. Raises DeviceError when another
    daemon has the port, or when ``--offload full`` is impossible.
    """
    ours = {name: inherited[name] for name in state.NAMES if name in inherited}
    if not ours:
        return None
    with contextlib.ExitStack() as carried:
        for descriptor in ours.values():
            carried.callback(os.close, descriptor)
        try:
            left, memory = _read(ours)
            tunnel = _adopt(ours, left.head, options)
            carried.callback(tunnel.guard.release)
            carried.enter_context(locks.hold(left.head.config.port))
            config = tunnel.pump_config(options, left.head.config, left.head.own)
            pump = carried.enter_context(Pump(config))
            pump.set_addresses([left.head.address])  # the others once netlink is imported
            _start(pump, left.table)
            tunnel.guard.hold(tunnel.udp_fd)
        except HandoverError as error:
            log.warning("cannot go on with what the last process left: %s; starting afresh", error)
            carried.close()
            release()
            return None
        log.info(
            "going on with %s on %s, %d routes, before etcd is asked",
            left.head.own.subnet,
            tunnel.device,
            pump.stats()["routes"],
        )
        return Takeover(left, tunnel, pump, memory, carried.pop_all())


def release() -> None:
    """Have the service manager close its copies of the descriptors; return when it has."""
    if systemd.keeps_descriptors():
        for name in state.NAMES:
            systemd.forget_descriptor(name)
        systemd.wait_until_processed()


def here() -> Place:
    """The boot and the network namespace of this process."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Place(boot_id, os.stat("/proc/thread-self/ns/net").st_ino)


def _read(inherited: Mapping[str, int]) -> tuple[Handover, MemoryFile]:
    if missing := [name for name in state.NAMES if name not in inherited]:
        raise HandoverError(f"the descriptor '{missing[0]}' is missing")
    memory = MemoryFile(inherited[state.STATE])
    return state.decode(memory.read()), memory


def _adopt(inherited: Mapping[str, int], head: Head, options: Options) -> Tunnel:
    preset = options.offload
    vnet_header = wants_vnet_header(preset)
    if why := state.objection(head, here(), options.etcd_prefix, vnet_header=vnet_header):
        raise HandoverError(why)
    ends = inherited[state.TUN], inherited[state.UDP]
    return adopt_tunnel(*ends, head.device, head.address, head.config.port, preset)


def _start(pump: Pump, table: bytes) -> None:
    try:
        pump.load(table)
        pump.start()
    except (OSError, ValueError) as error:
        raise HandoverError(f"the pump does not start with it ({error})") from None
