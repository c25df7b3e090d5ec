"""What etcd's and gRPC's error texts mean, for an operator (pure).

gRPC's own texts contain ports, addresses and library names that differ from try to try. The texts
here do not, so that a lasting failure has the same text each time and is logged once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto


class Kind(Enum):
    """What the caller can do about a fault."""

    UNREACHABLE = auto()  # another endpoint may serve
    REFUSED = auto()  # every endpoint will refuse the same
    STALE_LOGIN = auto()  # log in again and retry
    NO_AUTHENTICATION = auto()  # etcd has no users: continue without a login
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

# A dead server behind a proxy looks the same as a plain connection to a TLS server.
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


def _row(pattern: str, cause: str, advice: str, kind: Kind = Kind.UNREACHABLE) -> tuple[str, Fault]:
    return pattern, Fault(kind, cause, advice)


# The first row whose pattern occurs in the text applies.
_TEXTS: tuple[tuple[str, Fault], ...] = (
    _row("Connection refused", "connection refused", _RUNNING),
    (
        r"timed out before receiving|(Connection|connection attempt|connect\(\)) timed out",
        NO_ANSWER,
    ),
    ("tcp handshaker shutdown|ping timeout|keepalive", NO_ANSWER),  # of gRPC, the first to connect
    _row("No route to host", "no route to host", _RUNNING),
    _row("Network is unreachable", "network unreachable", _RUNNING),
    _row(
        "errors resolving",
        "the name cannot be resolved",
        "check the name in --etcd-endpoints and the DNS",
    ),
    _row(
        "CERTIFICATE_VERIFY_FAILED.*expired",
        "its TLS certificate has expired",
        "renew it, or set the clock of this host if that is wrong",
    ),
    _row(
        "CERTIFICATE_VERIFY_FAILED.*not yet valid",
        "its TLS certificate is not valid yet",
        "set the clock of this host, or of the one that made the certificate",
    ),
    _row(
        "CERTIFICATE_VERIFY_FAILED",
        "its TLS certificate is not from an authority that is trusted here",
        "check --etcd-cafile",
    ),
    _row(
        "Hostname Verification",
        "its TLS certificate is for another name",
        "write the endpoint with a name or address that the certificate lists",
    ),
    _row("WRONG_VERSION_NUMBER", "it does not speak TLS", "write http:// in --etcd-endpoints"),
    _row(
        "Handshake read failed",
        "it broke off the TLS handshake",
        "check that it runs and whether it wants http:// in --etcd-endpoints",
    ),
    # The server's "bad certificate" alert. In TLS 1.3 it follows the handshake, and gRPC's text is
    # often "Unwrap failed".
    ("ALERT_BAD_CERTIFICATE|CERTIFICATE_REQUIRED|Unwrap failed", _NO_CLIENT_CERTIFICATE),
    _row("SSL_ERROR_SSL", "the TLS handshake failed", _CLIENT_CERTIFICATE),
    ("Socket closed|Connection reset|Broken pipe", CLOSED),
    _row("HTTP/2|http2", "it does not speak etcd's v3 protocol", _RUNNING),
    _row(
        "no leader",
        "the cluster has no leader",
        "see that a majority of its members runs and is connected",
    ),
    _row(
        "invalid user ID or password",
        "the user name or the password is wrong",
        _LOGIN,
        Kind.REFUSED,
    ),
    _row("user name is empty", "it asks for a login", _LOGIN, Kind.STALE_LOGIN),
    _row("invalid auth token", "it does not accept the login", _LOGIN, Kind.STALE_LOGIN),
    _row("revision of auth store is old", "it does not accept the login", _LOGIN, Kind.STALE_LOGIN),
    _row(
        "permission denied",
        "permission denied",
        "grant the user of --etcd-username readwrite on --etcd-prefix",
        Kind.REFUSED,
    ),
    _row(
        "authentication is not enabled",
        "it has no users",
        "leave --etcd-username out",
        Kind.NO_AUTHENTICATION,
    ),
    _row(
        "database space exceeded",
        "its database is full",
        "compact and defragment it, then run etcdctl alarm disarm",
        Kind.REFUSED,
    ),
    _row("lease not found", "the etcd lease is gone", "start again", Kind.LEASE_GONE),
    _row("has been compacted", "the revision is compacted", "start again", Kind.COMPACTED),
    _row("future revision", "the revision lies in the future", "start again", Kind.FUTURE_REVISION),
)

# gRPC status codes that are about the connection or this member, not about the request.
_MEMBER_CODES = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL", "UNIMPLEMENTED"}
)


def fault_of(code: str, text: str) -> Fault:
    """The meaning of a gRPC status: the name of its code (``UNAVAILABLE``) and its text."""
    for pattern, fault in _TEXTS:
        if re.search(pattern, text, re.DOTALL):
            return fault
    if code == "DEADLINE_EXCEEDED":
        return NO_ANSWER
    kind = Kind.UNREACHABLE if code in _MEMBER_CODES else Kind.REFUSED
    # etcd's own texts are short and do not vary; gRPC's do.
    cause = text if text.startswith("etcdserver:") else f"the call failed ({code.lower()})"
    return Fault(kind, cause, _RUNNING)


def explain(faults: Mapping[str, Fault]) -> str:
    """One sentence about all endpoints (by URL) that failed, grouped by cause."""
    urls: dict[str, list[str]] = {}
    for url, fault in faults.items():
        urls.setdefault(fault.cause, []).append(url)
    causes = ", ".join(f"{cause} at {' and '.join(where)}" for cause, where in urls.items())
    advice = list(dict.fromkeys(fault.advice for fault in faults.values()))
    return f"etcd cannot be used: {causes}; {', and '.join(advice)}"
