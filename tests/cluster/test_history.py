from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import cast

import pytest

from flannel_udp.cluster.history import History
from flannel_udp.cluster.lease import (
    Events,
    Lease,
    LeaseAdded,
    LeaseRemoved,
    OwnLease,
    Snapshot,
    encode_key,
)
from flannel_udp.cluster.registry import Registry
from flannel_udp.etcd.faults import RevisionError
from flannel_udp.etcd.values import Identity, Version

US, OTHER = IPv4Address("172.30.0.1"), IPv4Address("172.30.0.2")
OUR_KEY, OTHER_KEY = "/n/subnets/10.1.1.0-24", "/n/subnets/10.1.2.0-24"


def lease(subnet: str, public_ip: IPv4Address, at: int) -> Lease:
    network = IPv4Network(subnet)
    return Lease(encode_key(network), network, public_ip, etcd_lease=7, mod_revision=at)


OURS, OTHERS = lease("10.1.1.0/24", US, 10), lease("10.1.2.0/24", OTHER, 12)
OWN = OwnLease(OURS.subnet, US, OUR_KEY, 7, 10, None, Identity(1, 3))


SAME_DATA = Identity(1, 3)


class Asked:
    """A registry that notes what it is asked about, and has all of it or lacks ``missing``."""

    def __init__(self, identity: Identity = SAME_DATA, missing: int = 0) -> None:
        self.served, self.missing = identity, missing
        self.questions: list[tuple[str, Version | None, int]] = []

    def identity(self) -> Identity:
        return self.served

    def same_history(self, key: str, version: Version | None, at: int) -> bool:
        self.questions.append((key, version, at))
        return at != self.missing


def confirm(history: History, registry: Asked) -> list[tuple[str, Version | None, int]]:
    history.confirm(cast(Registry, registry))
    return registry.questions


def test_a_snapshot_is_recognised_by_our_key_and_the_last_written_lease() -> None:
    history = History(OWN, Snapshot((OURS, OTHERS), 20))
    assert confirm(history, Asked()) == [
        (OUR_KEY, Version(10, 7), 20),
        (OTHER_KEY, Version(12, 7), 20),
    ]


def test_a_deletion_is_recognised_also_by_the_key_before_it() -> None:
    history = History(OWN, Snapshot((OURS, OTHERS), 20))
    history.observe(Events((LeaseRemoved(OTHERS.key, deleted_at=21),), 21))
    assert confirm(history, Asked())[1:] == [(OTHER_KEY, Version(), 21), (OTHER_KEY, None, 20)]
    history.observe(Events((LeaseAdded(lease("10.1.2.0/24", OTHER, 22)),), 22))
    assert confirm(history, Asked())[1:] == [(OTHER_KEY, Version(22, 7), 22)]


def test_a_value_that_is_no_lease_is_remembered_by_its_version() -> None:
    history = History(OWN, Snapshot((OURS,), 20))
    history.observe(Events((LeaseRemoved(OURS.key, Version(21, 7)),), 21))
    assert confirm(history, Asked()) == [(OUR_KEY, Version(21, 7), 21)] * 2


def test_our_key_written_after_the_snapshot_counts_as_written() -> None:
    history = History(OWN, Snapshot((), 9))
    assert confirm(history, Asked())[0] == (OUR_KEY, Version(10, 7), 10)


def test_progress_moves_the_revision_on_and_never_back() -> None:
    history = History(OWN, Snapshot((OURS,), 20))
    for at, revision in ((25, 25), (23, 25)):
        history.observe(Events((), at))
        assert history.revision == revision


@pytest.mark.parametrize(
    "registry",
    [Asked(Identity(2, 3)), Asked(Identity(1, 2)), Asked(missing=20)],
    ids=["another cluster", "an earlier term", "a lost change"],
)
def test_other_data_is_a_lost_history(registry: Asked) -> None:
    history = History(OWN, Snapshot((OURS, OTHERS), 20))
    with pytest.raises(RevisionError) as caught:
        history.confirm(cast(Registry, registry))
    assert not caught.value.compacted
