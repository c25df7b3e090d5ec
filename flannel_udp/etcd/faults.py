"""What etcd's and gRPC's error texts mean, in the operator's words (pure).

gRPC's own texts hold ports, addresses and library names that vary from try to try; these do not,
so that a failure that lasts reads the same each time and is logged once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto


class Kind(Enum):
    """What the caller can do about a fault."""

    UNREACHABLE = auto()  # another endpoint may serve
    REFUSED = auto()  # every endpoint will say the same
    STALE_LOGIN = auto()  # log in again and retry
    NO_AUTHENTICATION = auto()  # etcd runs without users: go on without a login
    LEASE_GONE = auto()
    COMPACTED = auto()
    FUTURE_REVISION = auto()


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one endpoint did not serve a call, and what to do about it."""

    kind: Kind
    cause: str
    advice: str


class RevisionError(Exception):
    """The revision asked for is not in etcd's history: ``compacted``, or lost with the data."""

    def __init__(self, message: str, *, compacted: bool) -> None:
        super().__init__(message)
        self.compacted = compacted


class LeaseGoneError(Exception):
    """The etcd lease a key was to be put under does not exist."""


_RUNNING = "check that it runs and that --etcd-endpoints is right"
_LOGIN = "check --etcd-username and --etcd-password"
_CLIENT_CERTIFICATE = "check --etcd-certfile and --etcd-keyfile"

# A dead server behind a proxy and a plain connection to a TLS server look the same.
CLOSED = Fault(
    Kind.UNREACHABLE,
    "the connection was closed",
    "check that it runs and whether it wants https:// in --etcd-endpoints",
)
BEHIND = Fault(
    Kind.UNREACHABLE,
    "it has not caught up with the cluster",
    "check its disk and its connection to the other members",
)
NO_ANSWER = Fault(Kind.UNREACHABLE, "no answer", _RUNNING)
_NO_CLIENT_CERTIFICATE = Fault(
    Kind.UNREACHABLE,
    "it accepts no TLS connection without a client certificate it trusts",
    _CLIENT_CERTIFICATE,
)

# The first row whose words all occur in the text counts.
_TEXTS: tuple[tuple[tuple[str, ...], Fault], ...] = (
    (("Connection refused",), Fault(Kind.UNREACHABLE, "connection refused", _RUNNING)),
    (("timed out before receiving",), NO_ANSWER),
    (("Connection timed out",), NO_ANSWER),
    (("connect() timed out",), NO_ANSWER),
    (("tcp handshaker shutdown",), NO_ANSWER),  # gRPC's own time to connect is over
    (("connection attempt timed out",), NO_ANSWER),
    (("ping timeout",), NO_ANSWER),
    (("keepalive",), NO_ANSWER),
    (("No route to host",), Fault(Kind.UNREACHABLE, "no route to host", _RUNNING)),
    (("Network is unreachable",), Fault(Kind.UNREACHABLE, "network unreachable", _RUNNING)),
    (
        ("errors resolving",),
        Fault(
            Kind.UNREACHABLE,
            "the name cannot be resolved",
            "check the name in --etcd-endpoints and the DNS",
        ),
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED", "expired"),
        Fault(
            Kind.UNREACHABLE,
            "its TLS certificate has expired",
            "renew it, or set the clock of this host if that is wrong",
        ),
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED", "not yet valid"),
        Fault(
            Kind.UNREACHABLE,
            "its TLS certificate is not valid yet",
            "set the clock of this host, or of the one that made the certificate",
        ),
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED",),
        Fault(
            Kind.UNREACHABLE,
            "its TLS certificate is not from an authority that is trusted here",
            "check --etcd-cafile",
        ),
    ),
    (
        ("Hostname Verification",),
        Fault(
            Kind.UNREACHABLE,
            "its TLS certificate is for another name",
            "write the endpoint with a name or address that the certificate lists",
        ),
    ),
    (
        ("WRONG_VERSION_NUMBER",),
        Fault(Kind.UNREACHABLE, "it does not speak TLS", "write http:// in --etcd-endpoints"),
    ),
    (
        ("Handshake read failed",),
        Fault(
            Kind.UNREACHABLE,
            "it broke off the TLS handshake",
            "check that it runs and whether it wants http:// in --etcd-endpoints",
        ),
    ),
    # A server's "bad certificate"; of TLS 1.3, where it comes after the handshake, often "Unwrap".
    (("ALERT_BAD_CERTIFICATE",), _NO_CLIENT_CERTIFICATE),
    (("CERTIFICATE_REQUIRED",), _NO_CLIENT_CERTIFICATE),
    (("Unwrap failed",), _NO_CLIENT_CERTIFICATE),
    (
        ("SSL_ERROR_SSL",),
        Fault(Kind.UNREACHABLE, "the TLS handshake failed", _CLIENT_CERTIFICATE),
    ),
    (("Socket closed",), CLOSED),
    (("Connection reset",), CLOSED),
    (("Broken pipe",), CLOSED),
    (("HTTP/2",), Fault(Kind.UNREACHABLE, "it does not speak etcd's v3 protocol", _RUNNING)),
    (("http2",), Fault(Kind.UNREACHABLE, "it does not speak etcd's v3 protocol", _RUNNING)),
    (
        ("no leader",),
        Fault(
            Kind.UNREACHABLE,
            "the cluster has no leader",
            "see that a majority of its members runs and is connected",
        ),
    ),
    (
        ("invalid user ID or password",),
        Fault(Kind.REFUSED, "the user name or the password is wrong", _LOGIN),
    ),
    (("user name is empty",), Fault(Kind.STALE_LOGIN, "it asks for a login", _LOGIN)),
    (("invalid auth token",), Fault(Kind.STALE_LOGIN, "it does not accept the login", _LOGIN)),
    (
        ("revision of auth store is old",),
        Fault(Kind.STALE_LOGIN, "it does not accept the login", _LOGIN),
    ),
    (
        ("permission denied",),
        Fault(
            Kind.REFUSED,
            "permission denied",
            "grant the user of --etcd-username readwrite on --etcd-prefix",
        ),
    ),
    (
        ("authentication is not enabled",),
        Fault(Kind.NO_AUTHENTICATION, "it has no users", "leave --etcd-username out"),
    ),
    (
        ("database space exceeded",),
        Fault(
            Kind.REFUSED,
            "its database is full",
            "compact and defragment it, then run etcdctl alarm disarm",
        ),
    ),
    (("lease not found",), Fault(Kind.LEASE_GONE, "the etcd lease is gone", "start again")),
    (("has been compacted",), Fault(Kind.COMPACTED, "the revision is compacted", "start again")),
    (
        ("future revision",),
        Fault(Kind.FUTURE_REVISION, "the revision lies in the future", "start again"),
    ),
)

# gRPC status codes that speak of the connection or of this member, not of the request.
_MEMBER_CODES = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL", "UNIMPLEMENTED"}
)


def fault_of(code: str, text: str) -> Fault:
    """The meaning of a gRPC status: the name of its code (``UNAVAILABLE``) and its text."""
    for words, fault in _TEXTS:
        if all(word in text for word in words):
            return fault
    if code == "DEADLINE_EXCEEDED":
        return NO_ANSWER
    kind = Kind.UNREACHABLE if code in _MEMBER_CODES else Kind.REFUSED
    # etcd's own texts are short and stable; gRPC's are not.
    cause = text if text.startswith("etcdserver:") else f"the call failed ({code.lower()})"
    return Fault(kind, cause, _RUNNING)


def explain(faults: Mapping[str, Fault]) -> str:
    """One sentence about all endpoints (by URL) that failed, those with one cause together."""
    urls: dict[str, list[str]] = {}
    for url, fault in faults.items():
        urls.setdefault(fault.cause, []).append(url)
    causes = ", ".join(f"{cause} at {' and '.join(where)}" for cause, where in urls.items())
    advice = list(dict.fromkeys(fault.advice for fault in faults.values()))
    return f"etcd cannot be used: {causes}; {', and '.join(advice)}"
