"""A preloaded library that gives single processes a wall clock which a test can set.

Setting the machine's clock would affect all processes.
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
    """Processes with ``environment`` have a wall clock that ``set_ahead`` changes."""

    def __init__(self, folder: Path) -> None:
        self._ahead = folder / "ahead"
        library = folder / "clock.so"
        command = ["cc", "-shared", "-fPIC", f'-DAHEAD="{self._ahead}"', "-o", str(library)]
        subprocess.run([*command, "-x", "c", "-"], input=_SOURCE, text=True, check=True)
        self.environment = {"LD_PRELOAD": str(library)}

    def set_ahead(self, seconds: int) -> None:
        """Set the clock ``seconds`` ahead of the machine's."""
        new = self._ahead.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._ahead)
