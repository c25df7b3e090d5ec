"""Keys and revisions as etcd reports them (pure)."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Version:
    """One state of a key; both are 0 when it is absent.

    ``lease`` distinguishes what two histories of one cluster wrote at the same revision.
    """

    mod_revision: int = 0
    lease: int = 0


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key; ``lease`` is the id of its etcd lease, 0 for none.

    Bytes of the key that are not UTF-8 are escaped, as in ``\\xff``.
    """

    key: str
    value: bytes
    mod_revision: int
    lease: int

    @property
    def version(self) -> Version:
        return Version(self.mod_revision, self.lease)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which data a cluster serves: its id, and the raft term, which only grows."""

    cluster: int
    term: int

    def continues(self, before: Self | None) -> bool:
        """Whether it may be the data of ``before``; True if that is unknown (None)."""
        return before is None or (self.cluster == before.cluster and self.term >= before.term)


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys below a prefix as of ``revision``."""

    kvs: tuple[KeyValue, ...]
    revision: int
    identity: Identity


@dataclass(frozen=True, slots=True)
class Swap:
    """The result of a conditional put. If it failed, ``current`` is the key as it is in etcd."""

    succeeded: bool
    revision: int
    current: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class KeyChange:
    """One watch event. Of a deleted key only name and revision are known."""

    kv: KeyValue
    deleted: bool


@dataclass(frozen=True, slots=True)
class WatchResponse:
    """One answer of a watch: ``created`` for the first, later changes or none (progress).

    Every change up to ``revision`` has been delivered with or before this answer.
    """

    revision: int
    changes: tuple[KeyChange, ...] = ()
    created: bool = False


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all that begin with ``prefix`` (etcd's range_end)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
