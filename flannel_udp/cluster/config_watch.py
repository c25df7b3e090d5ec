"""Noticing that the network config in etcd is no longer the one this daemon started with.

The daemon goes on with what it has: a changed Network or Port would cut its containers off. But the
operator hears of it, in the log once for each change and in the status for as long as it lasts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import fields

from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.registry import Registry
from flannel_udp.errors import BackendTypeError, EtcdError, NetworkConfigError
from flannel_udp.etcd.client import RevisionError, Watch
from flannel_udp.retry import Backoff

log = logging.getLogger(__name__)

_NAMES = {"mtu_cap": "Backend.MTU", "port": "Backend.Port", "enable_nftables": "EnableNFTables"}


class ConfigWatch:
    """Owns one thread, which alone writes ``difference``; others tell that etcd is away."""

    def __init__(
        self,
        registry: Registry,
        config: NetworkConfig,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        """``on_fatal`` hears of an error of our own, and the thread ends."""
        self._registry, self._config, self._on_fatal = registry, config, on_fatal
        self._difference: str | None = None
        self._backoff = Backoff()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._run, name="config-watch", daemon=True)

    @property
    def difference(self) -> str | None:
        """What etcd says now, as a clause; None while it says what this daemon does."""
        return self._difference

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; from any thread."""
        self._stopping.set()
        with self._lock:
            if self._watch:
                self._watch.cancel()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end, ``timeout`` seconds at most; whether it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    text, revision = self._registry.read_config()
                    self._compare(text)
                    self._follow(revision + 1)
                except (EtcdError, RevisionError) as error:
                    log.debug("the network config is not followed: %s", error)  # nor are the leases
                self._stopping.wait(self._backoff.next())
        except Exception as error:
            log.exception("watching the network config ended")
            self._on_fatal(error)

    def _follow(self, revision: int) -> None:
        watch = self._registry.watch_config(revision)
        with self._lock:
            self._watch = watch
        try:
            if self._stopping.is_set():
                return
            for response in watch:
                if response.created:
                    self._backoff.reset()
                for change in response.changes:
                    if change.kv.key == self._registry.config_key:
                        self._compare(None if change.deleted else change.kv.value)
        finally:
            watch.cancel()

    def _compare(self, text: bytes | None) -> None:
        difference = self._differs(text)
        if difference == self._difference:
            return
        if difference is None:
            log.info("the network config in etcd is again the one this daemon runs with")
        else:
            log.warning(
                "the network config in etcd changed: %s; this daemon goes on as it was started",
                difference,
            )
        self._difference = difference

    def _differs(self, text: bytes | None) -> str | None:
        if text is None:
            return f"there is none at {self._registry.config_key} any more"
        try:
            now = NetworkConfig.parse(text)
        except (NetworkConfigError, BackendTypeError) as error:
            return str(error)
        changes = [
            f"{_name(field.name)} is {_shown(now, field.name)}, was"
            f" {_shown(self._config, field.name)}"
            for field in fields(NetworkConfig)
            if getattr(now, field.name) != getattr(self._config, field.name)
        ]
        return ", ".join(changes) or None


def _name(field: str) -> str:
    """``subnet_len`` is ``SubnetLen`` in etcd."""
    return _NAMES.get(field) or "".join(part.capitalize() for part in field.split("_"))


def _shown(config: NetworkConfig, field: str) -> str:
    value = getattr(config, field)
    if isinstance(value, bool):
        return str(value).lower()
    return "unset" if value is None else str(value)
