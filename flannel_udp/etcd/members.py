"""The connections to etcd's endpoints: which of them to use, and with which certificates."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from etcd3 import etcdrpc

from flannel_udp.errors import CertificateError
from flannel_udp.etcd.certificates import Certificates
from flannel_udp.etcd.endpoints import Endpoint
from flannel_udp.etcd.faults import CLOSED, Fault, fault_of
from flannel_udp.log_limits import ChangeLog, LineBudget

log = logging.getLogger(__name__)

_CHANNEL_OPTIONS = [
    # A silent server is noticed after 10 + 3 s; etcd may refuse more frequent pings.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),  # the default of 4 MB is some 25,000 leases
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # short: the callers have a backoff of their own
    ("grpc.min_reconnect_backoff_ms", 3_000),  # despite its name, the time-out for connecting
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),  # like flannel: http_proxy is not meant for etcd
    ("grpc.use_local_subchannel_pool", 1),
]

Metadata = tuple[tuple[str, str], ...]


class StreamEndedError(Exception):
    """A member ended a stream without an answer."""


class Member:
    """The connection to one endpoint; gRPC opens it on first use and reconnects."""

    def __init__(self, endpoint: Endpoint, credentials: Any) -> None:
        self.url = endpoint.url
        if endpoint.tls:
            self.channel = grpc.secure_channel(endpoint.target, credentials, _CHANNEL_OPTIONS)
        else:
            self.channel = grpc.insecure_channel(endpoint.target, _CHANNEL_OPTIONS)
        self.kv = etcdrpc.KVStub(self.channel)
        self.lease = etcdrpc.LeaseStub(self.channel)
        self.auth = etcdrpc.AuthStub(self.channel)
        self.watch = etcdrpc.WatchStub(self.channel)

    def keep_alive_once(self, request: Any, timeout: float, metadata: Metadata) -> Any:
        """The streaming call for one request and one answer. Raises StreamEndedError too."""
        call = self.lease.LeaseKeepAlive(iter([request]), timeout, metadata=metadata)
        try:
            for answer in call:
                return answer
        finally:
            call.cancel()
        raise StreamEndedError


class Members:
    """All endpoints. A lock guards which is preferred, and the members and certificates."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        certs: Certificates | None,
        reread: Callable[[], Certificates] | None,
        lines: LineBudget,
    ) -> None:
        """``reread`` loads the certificate files again; it may raise CertificateError. ``lines``
        limits the warnings about that."""
        self._endpoints, self._certs, self._reread = endpoints, certs, reread
        self._lock = threading.Lock()
        self._files = ChangeLog(log, lines)
        self._preferred = 0
        self._members = self._connect(certs)

    def __iter__(self) -> Iterator[Member]:
        """The preferred one first."""
        with self._lock:
            first, members = self._preferred, self._members
        return iter(members[first:] + members[:first])

    @property
    def urls(self) -> list[str]:
        """In the operator's order."""
        return [endpoint.url for endpoint in self._endpoints]

    def close(self) -> None:
        """Close all connections; calls still running in other threads end with an error."""
        for member in self:
            member.channel.close()

    def prefer(self, member: Member) -> None:
        with self._lock:
            self._preferred = self.urls.index(member.url)

    def avoid(self, member: Member) -> None:
        """``member`` failed: prefer the next one, and load the certificates if they changed."""
        with self._lock:
            if self._members[self._preferred] is member:
                self._preferred = (self._preferred + 1) % len(self._members)
                log.debug("%s is tried next", self._members[self._preferred].url)
            self._renew_certificates()

    def _renew_certificates(self) -> None:
        """gRPC reads certificates once, so changed files need new connections.

        The old ones end with the last call on them.
        """
        if not self._reread:
            return
        try:
            certs = self._reread()
        except CertificateError as error:  # the files may be half written
            self._files.failed(f"{error}; going on with those read before")
            return
        self._files.works("the certificate files can be used again")
        if certs != self._certs:
            self._certs, self._members = certs, self._connect(certs)
            log.info("the certificate files changed: connecting to etcd with the new ones")

    def _connect(self, certs: Certificates | None) -> tuple[Member, ...]:
        credentials = None
        if certs:
            credentials = grpc.ssl_channel_credentials(certs.roots, certs.key, certs.chain)
        return tuple(Member(endpoint, credentials) for endpoint in self._endpoints)


def metadata(token: str) -> Metadata:
    """What accompanies every call; ``token`` of the login, empty for none."""
    # Without hasleader a member cut off from its cluster keeps a watch open in silence.
    return (("hasleader", "true"), ("token", token)) if token else (("hasleader", "true"),)


def fault_from(error: Any) -> Fault:
    """The meaning of a StreamEndedError or grpc.RpcError."""
    if isinstance(error, StreamEndedError):
        return CLOSED
    return fault_of(error.code().name, error.details() or "")
