"""A wall clock that a test can set, for one process: a library to be preloaded.

Setting the machine's clock would set it for everybody.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>

int clock_gettime(clockid_t id, struct timespec *now)
{
    int (*original)(clockid_t, struct timespec *);
    *(void **)&original = dlsym(RTLD_NEXT, "clock_gettime");
    int result = original(id, now);
    FILE *file = id == CLOCK_REALTIME ? fopen(AHEAD, "re") : NULL;
    long seconds;
    if (file) {
        if (fscanf(file, "%ld", &seconds) == 1)
            now->tv_sec += seconds;
        fclose(file);
    }
    return result;
}
"""


class ClockShim:
    """``environment`` has processes see a wall clock that ``set_ahead`` moves."""

    def __init__(self, folder: Path) -> None:
        self._ahead = folder / "ahead"
        library = folder / "clock.so"
        command = ["cc", "-shared", "-fPIC", f'-DAHEAD="{self._ahead}"', "-o", str(library)]
        subprocess.run([*command, "-x", "c", "-"], input=_SOURCE, text=True, check=True)
        self.environment = {"LD_PRELOAD": str(library)}

    def set_ahead(self, seconds: int) -> None:
        """Of the machine's clock."""
        new = self._ahead.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._ahead)
