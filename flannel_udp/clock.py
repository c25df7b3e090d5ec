"""The clock that leases and routes are aged by."""

import time


def boottime() -> float:
    """Seconds on CLOCK_BOOTTIME: unlike CLOCK_MONOTONIC it advances while the machine sleeps, as
    etcd's leases do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
