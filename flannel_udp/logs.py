"""Sets up logging: the format of the lines (text, JSON, for the journal) and the verbosity."""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping

DETAIL = logging.DEBUG - 5  # of --v=2: every call and every check, whatever the result

_PRIORITIES = {  # <N> at the start of a line, as sd-daemon(3) says
    **{DETAIL: 7, logging.DEBUG: 7, logging.INFO: 6},
    **{logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2},
}


def start_logging(environ: Mapping[str, str], log_format: str, verbosity: int = 0) -> None:
    """Log to stderr in one of options.LOG_FORMATS.

    ``verbosity`` 1 adds the decisions of our own modules, 2 also each check and call, and the lines
    of libraries. Lines that go to the journal have a priority and no time.
    """
    logging.addLevelName(DETAIL, "DETAIL")
    in_journal = _is_journal(environ)
    stamp = "" if in_journal else "%(asctime)s "
    formatter = logging.Formatter(f"{stamp}%(levelname)s %(message)s")
    if log_format == "json":
        formatter = JsonFormatter()
    handler = logging.StreamHandler()
    handler.setFormatter(_ForJournal(formatter) if in_journal else formatter)
    logging.basicConfig(handlers=(handler,), level=logging.INFO if verbosity < 2 else logging.DEBUG)
    own = {0: logging.INFO, 1: logging.DEBUG}.get(verbosity, DETAIL)
    logging.getLogger("flannel_udp").setLevel(own)


def complain(program: str, error: Exception) -> None:
    """Print the error that ends a program, as one line on stderr."""
    mark = _mark(logging.ERROR) if _is_journal(os.environ) else ""
    print(f"{mark}{program}: {error}", file=sys.stderr)


class JsonFormatter(logging.Formatter):
    """One object on a line: ``time`` (UTC, RFC 3339), ``level``, ``module``, ``message``.

    ``module`` is the dotted name below our package, such as ``cluster.keeper``.
    """

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "module": record.name.removeprefix("flannel_udp."),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class _ForJournal(logging.Formatter):
    """Every line begins with its priority, because the journal makes each an entry of its own."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        mark = _mark(record.levelno)
        return "\n".join(mark + line for line in self._inner.format(record).splitlines())


def _mark(level: int) -> str:
    return f"<{_PRIORITIES.get(level, 5)}>"


def _is_journal(environ: Mapping[str, str]) -> bool:
    """Whether our stderr is what JOURNAL_STREAM names, see systemd.exec(5).

    The variable alone may be inherited from a process whose stderr was the journal.
    """
    try:
        stderr = os.fstat(2)
    except OSError:  # it is closed
        return False
    return environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
