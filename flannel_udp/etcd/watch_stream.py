"""The watch stream of etcd, and the base of the threads that read one."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import grpc
from etcd3 import etcdrpc

from flannel_udp.errors import EtcdError
from flannel_udp.etcd.faults import BEHIND, CLOSED, NO_ANSWER, Fault, RevisionError, fault_of
from flannel_udp.etcd.members import Metadata, fault_from
from flannel_udp.etcd.values import KeyChange, KeyValue, WatchResponse, prefix_end
from flannel_udp.threads import Service

_T = TypeVar("_T")


class Watch(Generic[_T]):
    """A stream of decoded changes. One thread iterates; any thread may cancel."""

    def __init__(
        self,
        method: Callable[..., Any],
        prefix: str,
        start: int,
        decode: Callable[[WatchResponse], _T],
        *,
        metadata: Metadata,
        failed: Callable[[Fault], EtcdError],
        timeout: float,
    ) -> None:
        """``start`` is the revision of the first change to yield; ``timeout`` in seconds, for the
        first answer."""
        self._start, self._decode, self._failed = start, decode, failed
        self._timeout = timeout
        key = prefix.encode()
        # One earlier, for servers before 3.5.15: a compaction up to exactly the start of a watch
        # removes a deletion at that revision, and the watch neither fails nor reports it.
        create = etcdrpc.WatchCreateRequest(
            key=key,
            range_end=prefix_end(key),
            start_revision=max(start - 1, 1),
            progress_notify=True,
        )
        # The stream must stay open for writing: None ends it, and gRPC's thread that reads it.
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requests.put(etcdrpc.WatchRequest(create_request=create))
        self._cancelled = False
        self._timed_out = False
        self._call = method(iter(self._requests.get, None), metadata=metadata)

    def cancel(self) -> None:
        """End the iteration without an error."""
        self._cancelled = True
        self._call.cancel()
        self._requests.put(None)

    def __iter__(self) -> Iterator[_T]:
        """Yields until cancelled.

        Raises RevisionError when the start is compacted, EtcdError for all else: when the member
        has not reached the start yet, and at the end of the stream.
        """
        timer = threading.Timer(self._timeout, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            for answer in self._call:
                timer.cancel()
                if response := self._response(answer):
                    yield self._decode(response)
            fault = CLOSED
        except grpc.RpcError as error:
            fault = NO_ANSWER if self._timed_out else fault_from(error)
        finally:
            timer.cancel()
            self._call.cancel()
            self._requests.put(None)
        if not self._cancelled:
            raise self._failed(fault)

    def _response(self, answer: Any) -> WatchResponse | None:
        """None if all changes in the answer came before our start."""
        if answer.compact_revision:
            raise RevisionError(
                f"etcd compacted its history up to revision {answer.compact_revision}",
                compacted=True,
            )
        if answer.canceled:  # "rpc error: code = PermissionDenied desc = etcdserver: ..."
            raise self._failed(fault_of("CANCELLED", answer.cancel_reason.split(" desc = ")[-1]))
        at = answer.header.revision
        if answer.created:
            # One member's revision, which after a failover may be behind: whether the data was
            # lost is decided by a read.
            if at < self._start - 1:
                raise self._failed(BEHIND)
            return WatchResponse(at, created=True)
        changes = tuple(
            KeyChange(key_value(event.kv), event.type == event.DELETE)
            for event in answer.events
            if event.kv.mod_revision >= self._start
        )
        if answer.events and not changes:
            return None
        # A long backlog comes in parts, each with the store's newest revision in its header: only
        # an answer without changes proves that everything up to that revision has been sent.
        return WatchResponse(changes[-1].kv.mod_revision if changes else at, changes)

    def _give_up(self) -> None:
        self._timed_out = True
        self._call.cancel()


class WatchService(Service):
    """A thread that reads one watch at a time, which ``stop`` cancels."""

    def __init__(self, name: str, on_fatal: Callable[[BaseException], None] | None) -> None:
        super().__init__(name, on_fatal)
        self._watch_lock = threading.Lock()
        self._watch: Watch[Any] | None = None

    @contextlib.contextmanager
    def _opened(self, watch: Watch[_T]) -> Iterator[Watch[_T]]:
        """The watch, which is cancelled at the end of the block and by ``stop``."""
        with self._watch_lock:
            self._watch = watch
        try:
            if self._stopping.is_set():
                watch.cancel()
            yield watch
        finally:
            watch.cancel()

    def _wake(self) -> None:
        with self._watch_lock:
            if self._watch:
                self._watch.cancel()


def key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode(errors="backslashreplace"), kv.value, kv.mod_revision, kv.lease)
