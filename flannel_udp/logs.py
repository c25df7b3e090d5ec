"""How log lines look on stderr: for people, and as JSON for programs."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping


def start_logging(environ: Mapping[str, str], log_format: str) -> None:
    """Log to stderr, as one of config.LOG_FORMATS.

    Text carries no time where systemd says (JOURNAL_STREAM) that journald adds it.
    """
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        stamp = "" if "JOURNAL_STREAM" in environ else "%(asctime)s "
        handler.setFormatter(logging.Formatter(f"{stamp}%(levelname)s %(message)s"))
    logging.basicConfig(handlers=(handler,), level=logging.INFO)


class JsonFormatter(logging.Formatter):
    """One object on a line: ``time`` (UTC, RFC 3339), ``level``, ``module``, ``message``."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "module": record.module,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)
