"""The built extension is hardened, as the ELF file itself shows."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.constants import P_FLAGS
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from build_ext import FORTIFY
from flannel_udp.backends.pump import _pump

# The first instruction of a function that may be called through a pointer, by machine: endbr64 of
# Intel CET; bti c, or paciasp, which is one, too.
LANDINGS = {"x86_64": {b"\xf3\x0f\x1e\xfa"}, "aarch64": {b"\x5f\x24\x03\xd5", b"\x3f\x23\x03\xd5"}}


@pytest.fixture(scope="module")
def elf() -> Iterator[ELFFile]:
    with Path(_pump.__file__).open("rb") as file:
        yield ELFFile(file)


def symbols(elf: ELFFile) -> SymbolTableSection:
    table = elf.get_section_by_name(".dynsym")
    assert isinstance(table, SymbolTableSection)
    return table


def test_all_addresses_are_resolved_at_start_and_read_only_then(elf: ELFFile) -> None:
    dynamic = elf.get_section_by_name(".dynamic")
    assert isinstance(dynamic, DynamicSection)
    flags = {tag.entry.d_tag: tag.entry.d_val for tag in dynamic.iter_tags()}
    assert flags["DT_FLAGS_1"] & 1  # DF_1_NOW
    assert "DT_TEXTREL" not in flags
    assert "PT_GNU_RELRO" in {segment["p_type"] for segment in elf.iter_segments()}


def test_neither_the_stack_nor_a_writable_segment_is_executable(elf: ELFFile) -> None:
    flags = [
        segment["p_flags"]
        for segment in elf.iter_segments()
        if segment["p_type"] in ("PT_LOAD", "PT_GNU_STACK")
    ]
    assert len(flags) > 2
    assert [each for each in flags if each & P_FLAGS.PF_W and each & P_FLAGS.PF_X] == []
    assert "PT_GNU_STACK" in {segment["p_type"] for segment in elf.iter_segments()}


def test_overflows_of_buffers_are_detected(elf: ELFFile) -> None:
    imported = {symbol.name for symbol in symbols(elf).iter_symbols()}
    assert "__stack_chk_fail" in imported
    assert {name for name in imported if name.endswith("_chk")}, "no call is fortified"


def test_large_frames_cannot_jump_over_the_guard_page(elf: ELFFile) -> None:
    if not elf.has_dwarf_info():
        pytest.fail("built without -g: the compiler's options are not to be seen")
    producers = {
        str(unit.get_top_DIE().attributes["DW_AT_producer"].value)
        for unit in elf.get_dwarf_info().iter_CUs()
    }
    assert producers
    assert [each for each in producers if "-fstack-clash-protection" not in each] == []


def test_calls_through_pointers_land_only_where_they_may(elf: ELFFile) -> None:
    (entry,) = symbols(elf).get_symbol_by_name("PyInit__pump") or []
    elf.stream.seek(next(elf.address_offsets(entry["st_value"])))
    machine = platform.machine()
    assert machine not in LANDINGS or elf.stream.read(4) in LANDINGS[machine]


@pytest.mark.parametrize(
    ("compiler", "level"),
    [
        (["-U__GNUC__", "-D__GNUC__=11"], 2),
        (["-U__GNUC__", "-D__GNUC__=12"], 3),
        (["-fsanitize=address"], 0),
    ],
)
def test_older_compilers_get_what_they_have_without_a_warning(
    compiler: list[str], level: int
) -> None:
    command = ["cc", "-O2", "-Werror", "-E", "-dM", "-include", "features.h", "-xc", "/dev/null"]
    options = ["-U_FORTIFY_SOURCE", f"-D_FORTIFY_SOURCE={FORTIFY}", *compiler]
    result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"#define __USE_FORTIFY_LEVEL {level}\n" in result.stdout
