"""Shortages of descriptors and memory: they pass, so they are waited out.

Every other error of a system call is one of the thing that was asked for.
"""

import errno

from flannel_udp.errors import DeviceError, ShortageError

SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
ADVICE = "raise LimitNOFILE (ulimit -n) if that lasts"


def device_error(cause: OSError, message: str) -> DeviceError:
    """``message`` as a ShortageError if that is the cause, else as a DeviceError."""
    return ShortageError(message) if cause.errno in SHORTAGES else DeviceError(message)
