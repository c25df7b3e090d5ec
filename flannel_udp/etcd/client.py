"""One door to etcd: endpoints, TLS, login, deadlines, calls and the watch stream.

Only the generated messages and stubs of python-etcd3 are used. Its client and watcher are not:
they end or spin on the first connection error and have no deadlines.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Read when grpc is imported: without it the C core prints lines of its own on stderr.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from etcd3 import etcdrpc

from flannel_udp.errors import EtcdError
from flannel_udp.etcd import certificates
from flannel_udp.etcd.certificates import Certificates
from flannel_udp.etcd.endpoints import parse_endpoints
from flannel_udp.etcd.faults import BEHIND, CLOSED, NO_ANSWER, Fault, Kind, explain, fault_of
from flannel_udp.etcd.members import Member, Members, Metadata, StreamEndedError
from flannel_udp.etcd.values import Identity, KeyChange, KeyRange, KeyValue, Swap, WatchResponse
from flannel_udp.log_limits import LineBudget
from flannel_udp.logs import DETAIL
from flannel_udp.options import Options

log = logging.getLogger(__name__)

DEADLINE = 4.0  # seconds, for one call to one endpoint


class RevisionError(Exception):
    """The revision asked for is not in etcd's history: compacted, or lost with the data.

    ``compacted`` tells which of the two.
    """

    def __init__(self, message: str, *, compacted: bool) -> None:
        super().__init__(message)
        self.compacted = compacted


class LeaseGoneError(Exception):
    """The etcd lease a key was to be put under does not exist."""


class Etcd:
    """A client for all threads. A lock guards the login token."""

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        certs: Certificates | None = None,
        reread: Callable[[], Certificates] | None = None,
        username: str = "",
        password: str = "",
    ) -> None:
        """``certs`` serves the https endpoints; without it they are verified by system roots.

        ``reread`` loads it anew from its files, which may be rotated while we run.
        """
        parsed = parse_endpoints(endpoints, default_tls=certs is not None)
        if any(endpoint.tls for endpoint in parsed):
            certs = certs or certificates.load(None, None, None)
        elif certs:
            log.warning("no etcd endpoint is https: the certificate files are not used")
            certs = reread = None
        if password and not username:
            log.warning("--etcd-password has no effect without --etcd-username: no login is made")
        self.lines = LineBudget()  # for all who warn that etcd cannot be used
        self._members = Members(parsed, certs, reread, self.lines)
        self._username, self._password = username, password
        self._lock = threading.Lock()
        self._token: str | None = None  # None: log in first; empty: etcd has no authentication

    @classmethod
    def connect(cls, options: Options) -> Etcd:
        """A client as the flags say. Opens no connection, so that an absent etcd is no error yet.

        Raises UsageError for a malformed endpoint and CertificateError for an unusable file.
        """
        files = options.etcd_cafile, options.etcd_certfile, options.etcd_keyfile
        reread = functools.partial(certificates.load, *files) if any(files) else None
        return cls(
            options.etcd_endpoints,
            certs=reread() if reread else None,
            reread=reread,
            username=options.etcd_username,
            password=options.etcd_password,
        )

    def close(self) -> None:
        """Close all connections; calls still running in other threads end with EtcdError."""
        self._members.close()

    # Every method below tries each endpoint once and raises EtcdError if none served it.

    def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        """The key now, or as it was at ``revision``; None when absent. Raises RevisionError."""
        request = etcdrpc.RangeRequest(key=key.encode(), revision=revision)
        answer = self._call(lambda member: member.kv.Range, request)
        return _key_value(answer.kvs[0]) if answer.kvs else None

    def identity(self, key: str) -> Identity:
        """The cluster that answers, by a read of a key that we may read."""
        request = etcdrpc.RangeRequest(key=key.encode(), count_only=True)
        return _identity(self._call(lambda member: member.kv.Range, request).header)

    def range(self, prefix: str) -> KeyRange:
        """Every key that begins with ``prefix``, in one consistent read."""
        start = prefix.encode()
        request = etcdrpc.RangeRequest(key=start, range_end=prefix_end(start))
        answer = self._call(lambda member: member.kv.Range, request)
        kvs, header = tuple(map(_key_value, answer.kvs)), answer.header
        return KeyRange(kvs, header.revision, _identity(header))

    def put_if_unchanged(self, key: str, value: bytes, *, lease: int, mod_revision: int) -> Swap:
        """Put the key under an etcd lease if it still is as of ``mod_revision`` (0: absent).

        It has succeeded too when the key already holds this value under this lease: an answer
        lost on the way makes us ask twice. Raises LeaseGoneError.
        """
        name = key.encode()
        request = etcdrpc.TxnRequest(
            compare=[_unchanged(name, mod_revision)],
            success=[
                etcdrpc.RequestOp(
                    request_put=etcdrpc.PutRequest(key=name, value=value, lease=lease)
                )
            ],
            failure=[etcdrpc.RequestOp(request_range=etcdrpc.RangeRequest(key=name))],
        )
        answer = self._call(lambda member: member.kv.Txn, request)
        if answer.succeeded:
            return Swap(True, answer.header.revision)
        kvs = answer.responses[0].response_range.kvs
        current = _key_value(kvs[0]) if kvs else None
        if current and current.value == value and current.lease == lease:
            return Swap(True, current.mod_revision)
        return Swap(False, answer.header.revision, current)

    def delete_if_unchanged(self, key: str, *, mod_revision: int) -> bool:
        """Delete the key if it still is as of ``mod_revision``; whether that was so."""
        name = key.encode()
        request = etcdrpc.TxnRequest(
            compare=[_unchanged(name, mod_revision)],
            success=[etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=name))],
        )
        return bool(self._call(lambda member: member.kv.Txn, request).succeeded)

    def grant(self, ttl: int) -> int:
        """A new etcd lease of ``ttl`` seconds; returns its id."""
        request = etcdrpc.LeaseGrantRequest(TTL=ttl)
        return int(self._call(lambda member: member.lease.LeaseGrant, request).ID)

    def keep_alive(self, lease: int) -> int:
        """Renew an etcd lease; returns its seconds to live from now, 0 when it is gone."""
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease)
        return int(self._call(lambda member: member.keep_alive_once, request).TTL)

    def revoke(self, lease: int) -> None:
        """Remove an etcd lease and the keys under it; fine if it is gone already."""
        request = etcdrpc.LeaseRevokeRequest(ID=lease)
        with contextlib.suppress(LeaseGoneError):
            self._call(lambda member: member.lease.LeaseRevoke, request)

    def watch(self, prefix: str, revision: int) -> Watch:
        """Follow every change below ``prefix`` from ``revision`` on."""
        member = next(iter(self._members))

        def failed(fault: Fault) -> EtcdError:
            if fault.kind is Kind.UNREACHABLE:
                self._members.avoid(member)
            else:
                self._forget_login()
            return self._unusable({member.url: fault})

        try:
            token = self._current_token(member)
        except grpc.RpcError as error:
            raise failed(_fault(error)) from None
        start = prefix.encode()
        # One earlier, for servers before 3.5.15: a compaction up to just where a watch starts
        # takes a deletion there with it, and the watch neither fails nor tells of it.
        create = etcdrpc.WatchCreateRequest(
            key=start,
            range_end=prefix_end(start),
            start_revision=max(revision - 1, 1),
            progress_notify=True,
        )
        return Watch(member.watch.Watch, create, revision, _metadata(token), failed)

    def _call(self, method: Callable[[Member], Callable[..., Any]], request: Any) -> Any:
        faults: dict[str, Fault] = {}
        name = type(request).__name__.removesuffix("Request")
        for member in self._members:
            began = time.monotonic()
            try:
                answer = self._authorized(member, method(member), request)
            except (grpc.RpcError, StreamEndedError) as error:
                fault = _fault(error)
                log.debug("%s by %s: %s", name, member.url, fault.cause)
                if fault.kind is Kind.LEASE_GONE:
                    raise LeaseGoneError(fault.cause) from None
                if fault.kind in (Kind.COMPACTED, Kind.FUTURE_REVISION):
                    raise RevisionError(
                        fault.cause, compacted=fault.kind is Kind.COMPACTED
                    ) from None
                if fault.kind is not Kind.UNREACHABLE:
                    raise self._unusable({member.url: fault}) from None
                faults[member.url] = fault
                self._members.avoid(member)
            except ValueError:  # how gRPC says that the channel is closed
                raise EtcdError("etcd cannot be used: the connection to it was ended") from None
            else:
                self._members.prefer(member)
                spent = (time.monotonic() - began) * 1000
                log.log(DETAIL, "%s by %s: %.1f ms", name, member.url, spent)
                return answer
        raise self._unusable(faults)

    def _authorized(self, member: Member, call: Callable[..., Any], request: Any) -> Any:
        token = self._current_token(member)
        try:
            return call(request, timeout=DEADLINE, metadata=_metadata(token))
        except grpc.RpcError as error:
            if not self._username or _fault(error).kind is not Kind.STALE_LOGIN:
                raise
        token = self._log_in(member, stale=token)
        return call(request, timeout=DEADLINE, metadata=_metadata(token))

    def _current_token(self, member: Member) -> str:
        if not self._username:
            return ""
        token = self._token
        return self._log_in(member, stale=None) if token is None else token

    def _log_in(self, member: Member, *, stale: str | None) -> str:
        """A token newer than ``stale``; one thread asks for it, the others get the same."""
        with self._lock:
            if self._token is not None and self._token != stale:
                return self._token
            request = etcdrpc.AuthenticateRequest(name=self._username, password=self._password)
            try:
                self._token = str(member.auth.Authenticate(request, DEADLINE).token)
            except grpc.RpcError as error:
                if _fault(error).kind is not Kind.NO_AUTHENTICATION:
                    self._token = None
                    raise
                self._token = ""
            outcome = "done" if self._token else "not needed"
            log.debug("login as %s at %s: %s", self._username, member.url, outcome)
            return self._token

    def _forget_login(self) -> None:
        with self._lock:
            self._token = None

    def _unusable(self, faults: dict[str, Fault]) -> EtcdError:
        return EtcdError(explain({url: faults[url] for url in self._members.urls if url in faults}))


class Watch:
    """A stream of changes. One thread iterates; any thread may cancel."""

    def __init__(
        self,
        method: Callable[..., Any],
        create: Any,
        start: int,
        metadata: Metadata,
        failed: Callable[[Fault], EtcdError],
    ) -> None:
        """``start`` is the revision of the first change to tell of."""
        self._start, self._failed = start, failed
        # The stream must stay open for writing: None ends it, and gRPC's thread that reads it.
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requests.put(etcdrpc.WatchRequest(create_request=create))
        self._cancelled = False
        self._silent = False
        self._call = method(iter(self._requests.get, None), metadata=metadata)

    def cancel(self) -> None:
        """End the iteration without an error."""
        self._cancelled = True
        self._call.cancel()
        self._requests.put(None)

    def __iter__(self) -> Iterator[WatchResponse]:
        """Yields until cancelled.

        Raises RevisionError when the start is compacted, EtcdError for all else: when the member
        has not reached the start yet, and at the end of the stream.
        """
        timer = threading.Timer(DEADLINE, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            for answer in self._call:
                timer.cancel()
                if response := self._response(answer):
                    yield response
            fault = CLOSED
        except grpc.RpcError as error:
            fault = NO_ANSWER if self._silent else _fault(error)
        finally:
            timer.cancel()
            self._call.cancel()
            self._requests.put(None)
        if not self._cancelled:
            raise self._failed(fault)

    def _response(self, answer: Any) -> WatchResponse | None:
        """None if all in it came before our start."""
        if answer.compact_revision:
            raise RevisionError(
                f"etcd compacted its history up to revision {answer.compact_revision}",
                compacted=True,
            )
        if answer.canceled:  # "rpc error: code = PermissionDenied desc = etcdserver: ..."
            raise self._failed(fault_of("CANCELLED", answer.cancel_reason.split(" desc = ")[-1]))
        at = answer.header.revision
        if answer.created:
            # This is one member's word, which a failover may find behind: a read tells whether the
            # data was lost.
            if at < self._start - 1:
                raise self._failed(BEHIND)
            return WatchResponse(at, created=True)
        changes = tuple(
            KeyChange(_key_value(event.kv), event.type == event.DELETE)
            for event in answer.events
            if event.kv.mod_revision >= self._start
        )
        if answer.events and not changes:
            return None
        # A long backlog comes in parts, each with the store's newest revision in its header: only
        # an answer without changes proves that everything up to that revision has been sent.
        return WatchResponse(changes[-1].kv.mod_revision if changes else at, changes)

    def _give_up(self) -> None:
        self._silent = True
        self._call.cancel()


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all that begin with ``prefix`` (etcd's range_end)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode(errors="backslashreplace"), kv.value, kv.mod_revision, kv.lease)


def _identity(header: Any) -> Identity:
    return Identity(header.cluster_id, header.raft_term)


def _unchanged(key: bytes, mod_revision: int) -> Any:
    compare = etcdrpc.Compare
    return compare(key=key, target=compare.MOD, result=compare.EQUAL, mod_revision=mod_revision)


def _metadata(token: str) -> Metadata:
    # Without hasleader a member cut off from its cluster keeps a watch open in silence.
    return (("hasleader", "true"), ("token", token)) if token else (("hasleader", "true"),)


def _fault(error: Any) -> Fault:
    if isinstance(error, StreamEndedError):
        return CLOSED
    return fault_of(error.code().name, error.details() or "")
