"""The client of etcd: endpoints, TLS, login, deadlines and calls.

Of python-etcd3 only the generated messages and stubs are used. Its client and watcher end or spin
on the first connection error and have no deadlines.
"""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeVar

import grpc
from etcd3 import etcdrpc

from flannel_udp.errors import EtcdError
from flannel_udp.etcd import certificates
from flannel_udp.etcd.certificates import Certificates
from flannel_udp.etcd.endpoints import parse_endpoints
from flannel_udp.etcd.faults import Fault, Kind, LeaseGoneError, RevisionError, explain
from flannel_udp.etcd.members import Member, Members, StreamEndedError, fault_from, metadata
from flannel_udp.etcd.values import Identity, KeyRange, KeyValue, Swap, WatchResponse, prefix_end
from flannel_udp.etcd.watch_stream import Watch, key_value
from flannel_udp.log_limits import LineBudget
from flannel_udp.logs import DETAIL
from flannel_udp.options import Options

log = logging.getLogger(__name__)

DEADLINE = 4.0  # seconds, for one call to one endpoint
_ENDED = "etcd cannot be used: the connection to it was ended"

_T = TypeVar("_T")


class Etcd:
    """Any thread may call. A lock guards the login token."""

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        certs: Certificates | None = None,
        reread: Callable[[], Certificates] | None = None,
        username: str = "",
        password: str = "",
    ) -> None:
        """``certs`` is for the https endpoints; without it they are verified by system roots.

        ``reread`` loads it again from its files, which may be rotated while we run.
        """
        parsed = parse_endpoints(endpoints, default_tls=certs is not None)
        if any(endpoint.tls for endpoint in parsed):
            certs = certs or certificates.load(None, None, None)
        elif certs:
            log.warning("no etcd endpoint is https: the certificate files are not used")
            certs = reread = None
        if password and not username:
            log.warning("--etcd-password has no effect without --etcd-username: no login is made")
        self.lines = LineBudget()  # shared by all who warn that etcd cannot be used
        self._members = Members(parsed, certs, reread, self.lines)
        self._username, self._password = username, password
        self._lock = threading.Lock()
        self._token: str | None = None  # None: log in first; empty: etcd has no authentication

    @classmethod
    def connect(cls, options: Options) -> Self:
        """A client as the flags configure it. Opens no connection: an absent etcd is no error yet.

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
        return key_value(answer.kvs[0]) if answer.kvs else None

    def identity(self, key: str) -> Identity:
        """Of the cluster that answers, by a read of ``key``, which we must be allowed to read."""
        request = etcdrpc.RangeRequest(key=key.encode(), count_only=True)
        return _identity(self._call(lambda member: member.kv.Range, request).header)

    def range(self, prefix: str) -> KeyRange:
        """Every key that begins with ``prefix``, in one consistent read."""
        start = prefix.encode()
        request = etcdrpc.RangeRequest(key=start, range_end=prefix_end(start))
        answer = self._call(lambda member: member.kv.Range, request)
        kvs, header = tuple(map(key_value, answer.kvs)), answer.header
        return KeyRange(kvs, header.revision, _identity(header))

    def put_if_unchanged(self, key: str, value: bytes, *, lease: int, mod_revision: int) -> Swap:
        """Put the key under an etcd lease if its mod_revision is still the given one (0: absent).

        Also succeeds if the key already holds this value under this lease: after a lost answer the
        same put is sent again. Raises LeaseGoneError.
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
        current = key_value(kvs[0]) if kvs else None
        if current and current.value == value and current.lease == lease:
            return Swap(True, current.mod_revision)
        return Swap(False, answer.header.revision, current)

    def delete_if_unchanged(self, key: str, *, mod_revision: int) -> bool:
        """Delete the key if its mod_revision is still the given one; returns whether it was."""
        name = key.encode()
        request = etcdrpc.TxnRequest(
            compare=[_unchanged(name, mod_revision)],
            success=[etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=name))],
        )
        return bool(self._call(lambda member: member.kv.Txn, request).succeeded)

    def grant(self, ttl: int) -> int:
        """Create an etcd lease of ``ttl`` seconds; returns its id."""
        request = etcdrpc.LeaseGrantRequest(TTL=ttl)
        return int(self._call(lambda member: member.lease.LeaseGrant, request).ID)

    def keep_alive(self, lease: int) -> int:
        """Renew an etcd lease; returns its seconds to live, 0 when it is gone."""
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease)
        return int(self._call(lambda member: member.keep_alive_once, request).TTL)

    def revoke(self, lease: int) -> None:
        """Remove an etcd lease and the keys under it; no error if it is gone already."""
        request = etcdrpc.LeaseRevokeRequest(ID=lease)
        with contextlib.suppress(LeaseGoneError):
            self._call(lambda member: member.lease.LeaseRevoke, request)

    def watch(self, prefix: str, revision: int, decode: Callable[[WatchResponse], _T]) -> Watch[_T]:
        """Follow every change below ``prefix`` from ``revision`` on; each answer is decoded."""
        member = next(iter(self._members))

        def failed(fault: Fault) -> EtcdError:
            if fault.kind is Kind.UNREACHABLE:
                self._members.avoid(member)
            else:
                self._forget_login()
            return self._unusable({member.url: fault})

        try:
            token = self._current_token(member)
            return Watch(
                member.watch.Watch,
                prefix,
                revision,
                decode,
                metadata=metadata(token),
                failed=failed,
                timeout=DEADLINE,
            )
        except grpc.RpcError as error:
            raise failed(fault_from(error)) from None
        except ValueError:  # gRPC raises it for a closed channel
            raise EtcdError(_ENDED) from None

    def _call(self, method: Callable[[Member], Callable[..., Any]], request: Any) -> Any:
        faults: dict[str, Fault] = {}
        name = type(request).__name__.removesuffix("Request")
        for member in self._members:
            began = time.monotonic()
            try:
                answer = self._authorized(member, method(member), request)
            except (grpc.RpcError, StreamEndedError) as error:
                fault = fault_from(error)
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
            except ValueError:  # gRPC raises it for a closed channel
                raise EtcdError(_ENDED) from None
            else:
                self._members.prefer(member)
                spent = (time.monotonic() - began) * 1000
                log.log(DETAIL, "%s by %s: %.1f ms", name, member.url, spent)
                return answer
        raise self._unusable(faults)

    def _authorized(self, member: Member, call: Callable[..., Any], request: Any) -> Any:
        token = self._current_token(member)
        try:
            return call(request, timeout=DEADLINE, metadata=metadata(token))
        except grpc.RpcError as error:
            if not self._username or fault_from(error).kind is not Kind.STALE_LOGIN:
                raise
        token = self._log_in(member, stale=token)
        return call(request, timeout=DEADLINE, metadata=metadata(token))

    def _current_token(self, member: Member) -> str:
        if not self._username:
            return ""
        token = self._token
        return self._log_in(member, stale=None) if token is None else token

    def _log_in(self, member: Member, *, stale: str | None) -> str:
        """A token newer than ``stale``. One thread requests it, and the others get the same."""
        with self._lock:
            if self._token is not None and self._token != stale:
                return self._token
            request = etcdrpc.AuthenticateRequest(name=self._username, password=self._password)
            try:
                self._token = str(member.auth.Authenticate(request, DEADLINE).token)
            except grpc.RpcError as error:
                if fault_from(error).kind is not Kind.NO_AUTHENTICATION:
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


def _identity(header: Any) -> Identity:
    return Identity(header.cluster_id, header.raft_term)


def _unchanged(key: bytes, mod_revision: int) -> Any:
    compare = etcdrpc.Compare
    return compare(key=key, target=compare.MOD, result=compare.EQUAL, mod_revision=mod_revision)
