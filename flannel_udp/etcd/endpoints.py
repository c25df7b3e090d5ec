"""The etcd endpoints that ``--etcd-endpoints`` names (pure)."""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from flannel_udp.errors import UsageError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One member of the cluster: ``url`` for log lines, ``target`` (host:port) for gRPC."""

    url: str
    target: str
    tls: bool


def parse_endpoints(urls: Iterable[str], *, default_tls: bool = False) -> tuple[Endpoint, ...]:
    """Endpoints from URLs such as ``http://10.0.0.1:2379``, without repeats.

    The scheme decides about TLS. As in etcd's own clients, the scheme may be missing
    (``10.0.0.1:2379``); then ``default_tls`` decides. Raises UsageError.
    """
    endpoints = dict.fromkeys(_parse(url.strip(), default_tls) for url in urls)
    if not endpoints:
        raise UsageError("--etcd-endpoints is empty: give at least one, as http://127.0.0.1:2379")
    return tuple(endpoints)


def _parse(url: str, default_tls: bool) -> Endpoint:
    if "@" in url:  # not shown: it may contain a password
        raise UsageError(
            "a URL of --etcd-endpoints carries a user name: use --etcd-username and"
            " --etcd-password instead"
        )
    wrong = UsageError(
        f"--etcd-endpoints {url!r} is not the URL of an etcd member: write http://HOST:PORT or"
        " https://HOST:PORT, several separated by commas"
    )
    text = url if "://" in url else f"{'https' if default_tls else 'http'}://{url}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not host or not port:
        raise wrong
    if parts.path not in ("", "/") or parts.query or parts.fragment or " " in host:
        raise wrong
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Endpoint(f"{parts.scheme}://{target}", target, parts.scheme == "https")
