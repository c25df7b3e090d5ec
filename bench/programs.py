"""Compiles the C code of the benchmarks."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

from cffi import FFI

from build_ext import OPTIONS

HERE = Path(__file__).parent

_KERNELS = """
    void run_memcpy(uint8_t *to, const uint8_t *from, size_t length, size_t times);
    void run_checksum(const uint8_t *bytes, size_t length, size_t times);
    struct route_table;
    void run_lookup(const struct route_table *table, const uint32_t *addresses, size_t count);
    void run_array_reads(const uint64_t *array, const uint32_t *indexes, size_t count);
    size_t run_segment(uint8_t *to, const uint8_t *bytes, size_t length, uint16_t size,
                       size_t times);
    size_t run_coalesce(const uint8_t *bytes, size_t length, size_t size, size_t times);
    struct route_table *new_table(uint32_t network, size_t count);
    size_t table_bytes(size_t count);
    void run_build(uint32_t network, size_t count);
    void run_changes(struct route_table *table, uint32_t subnet, size_t times);
    void route_table_free(struct route_table *table);
"""


def build(name: str, directory: Path) -> Path:
    """Compiles bench/NAME.c into the directory. Raises CalledProcessError."""
    program = directory / name
    compiler = shutil.which("cc") or "gcc"
    flags = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
    subprocess.run([compiler, *flags, str(HERE / f"{name}.c"), "-o", str(program)], check=True)
    return program


def load_kernels(directory: Path) -> tuple[Any, Any]:
    """cffi's ``ffi`` and ``lib`` of kernels.c with the pure parts, compiled as the pump is."""
    ffi = FFI()
    ffi.cdef(_KERNELS)
    ffi.set_source("kernels", (HERE / "kernels.c").read_text(), **OPTIONS)
    spec = importlib.util.spec_from_file_location("kernels", ffi.compile(str(directory)))
    assert spec is not None
    assert spec.loader is not None
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    return kernels.ffi, kernels.lib
