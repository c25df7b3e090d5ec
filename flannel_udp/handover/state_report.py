"""The state that a successor needs, gathered from the parts that own it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass

from flannel_udp.backends.pump.ends import wants_vnet_header
from flannel_udp.backends.pump.pump import pack
from flannel_udp.cluster.keeper import LeaseKeeper
from flannel_udp.daemon.overlay import Overlay
from flannel_udp.handover import state as handover
from flannel_udp.handover.state import PIECE, Head
from flannel_udp.handover.takeover import here
from flannel_udp.routing.reconciler import Reconciler

_TURN = 0.0001  # seconds in which another thread can take up the interpreter


@dataclass(frozen=True, slots=True)
class StateReport:
    """Any thread may ask."""

    overlay: Overlay
    keeper: LeaseKeeper
    reconciler: Reconciler

    def encoded(self) -> bytes:
        """For ``handover.decode``."""
        overlay = self.overlay
        known, routes = self.reconciler.known()
        head = Head(
            place=here(),
            prefix=overlay.options.etcd_prefix,
            config=overlay.config,
            own=self.keeper.own,
            address=overlay.external.address,
            device=overlay.tunnel.device,
            vnet_header=wants_vnet_header(overlay.options.offload),
        )
        rows = iter(routes.items())
        parts = iter(lambda: dict(itertools.islice(rows, PIECE)), {})
        table = _gather(map(pack, parts))
        return _gather(handover.encode(head, table, known))


def _gather(pieces: Iterable[bytes]) -> bytes:
    """All of them; changes of leases, whose threads wait for this one, go first every time."""
    gathered = []
    for piece in pieces:
        gathered.append(piece)
        time.sleep(_TURN)
    return b"".join(gathered)
