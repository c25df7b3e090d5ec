"""Noticing that the network config in etcd is no longer the one this daemon started with.

The daemon keeps its config: a changed Network or Port would cut its containers off. Each change is
logged once, and the status shows the difference for as long as it lasts.
"""

import logging
from dataclasses import fields

from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.registry import Registry
from flannel_udp.errors import BackendTypeError, EtcdError, NetworkConfigError
from flannel_udp.etcd.faults import RevisionError
from flannel_udp.etcd.watch_stream import WatchService
from flannel_udp.retry import Backoff

log = logging.getLogger(__name__)

_NAMES = {"mtu_cap": "Backend.MTU", "port": "Backend.Port", "enable_nftables": "EnableNFTables"}


class ConfigWatch(WatchService):
    """Its thread alone writes ``difference``: how the config in etcd differs from this daemon's, as
    a clause; None if it does not."""

    def __init__(self, registry: Registry, config: NetworkConfig) -> None:
        super().__init__("config-watch", on_fatal=None)
        self._registry, self._config = registry, config
        self.difference: str | None = None
        self._backoff = Backoff()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                text, revision = self._registry.read_config()
                self._compare(text)
                self._follow(revision + 1)
            except (EtcdError, RevisionError) as error:
                # The follower warns of the same trouble.
                log.debug("the network config is not followed: %s", error)
            self._stopping.wait(self._backoff.next())

    def _follow(self, revision: int) -> None:
        with self._opened(self._registry.watch_config(revision)) as changes:
            for texts in changes:
                self._backoff.reset()
                for text in texts:
                    self._compare(text)

    def _compare(self, text: bytes | None) -> None:
        difference = self._differs(text)
        if difference == self.difference:
            return
        if difference is None:
            log.info("the network config in etcd is again the one this daemon runs with")
        else:
            log.warning(
                "the network config in etcd changed: %s; this daemon goes on as it was started",
                difference,
            )
        self.difference = difference

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
