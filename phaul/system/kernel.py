"""What this kernel and these processors allow a program: limits, capabilities, instructions. Called by `agent.wiring`.

Reads only. A file that this kernel does not have gives "not known".
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from phaul.system.procfs import parse_keys

_KIB = 1024
# The flags of /proc/cpuinfo (arch/x86/include/asm/cpufeatures.h) that a program can use without asking the kernel:
# instructions and registers. Those that only say how the kernel works (mitigations, power, virtualisation) differ
# between hosts for no harm. x86 calls the line "flags", arm64 "Features", all of which are for programs.
_USER_FLAG_NAMES = """
    3dnow 3dnowext 3dnowprefetch abm adx aes amx_bf16 amx_complex amx_fp16 amx_int8 amx_tile apx avx avx10
    avx2 avx512_4fmaps avx512_4vnniw avx512_bf16 avx512_bitalg avx512_fp16 avx512_vbmi2 avx512_vnni
    avx512_vp2intersect avx512_vpopcntdq avx512bw avx512cd avx512dq avx512er avx512f avx512ifma avx512pf
    avx512vbmi avx512vl avx_ifma avx_ne_convert avx_vnni avx_vnni_int16 avx_vnni_int8 bmi1 bmi2 cldemote
    clflush clflushopt clwb clzero cmov cmpccxadd cx16 cx8 enqcmd erms f16c fma fma4 fsgsbase fsrm fxsr
    fxsr_opt gfni hle lahf_lm lwp misalignsse mmx mmxext monitorx movbe movdir64b movdiri mpx mwaitx ospke
    pclmulqdq pku pni popcnt ptwrite rdpid rdpru rdrand rdseed rdtscp rtm serialize sha512 sha_ni sm3 sm4 sse
    sse2 sse4_1 sse4_2 sse4a ssse3 tbm user_shstk vaes vpclmulqdq waitpkg xop xsave xsavec xsaveopt xgetbv1
"""
_USER_FLAGS = frozenset(_USER_FLAG_NAMES.split())


class KernelFacts(TypedDict):
    """The fields of `HostFacts` that this module fills."""

    cpu_features: tuple[str, ...]
    capabilities: int
    max_mappings: int
    max_open_files: int
    max_pid: int
    free_huge_page_bytes: int
    security_modules: tuple[str, ...]


def parse_cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """Give what programs may use of the first processor, sorted."""
    keys = parse_keys(cpuinfo)
    if "flags" in keys:
        return tuple(sorted(_USER_FLAGS.intersection(keys["flags"].split())))
    return tuple(sorted(keys.get("Features", "").split()))


def kernel_facts() -> KernelFacts:
    """Say what this host allows, as the agent sees it."""
    status = parse_keys(_read("/proc/self/status"))
    memory = parse_keys(_read("/proc/meminfo"))
    modules = _read("/sys/kernel/security/lsm").strip().split(",")
    return KernelFacts(
        cpu_features=parse_cpu_features(_read("/proc/cpuinfo")),
        capabilities=int(status.get("CapBnd", "0"), 16) & int(status.get("CapPrm", "0"), 16),
        max_mappings=_number("/proc/sys/vm/max_map_count"),
        max_open_files=_number("/proc/sys/fs/nr_open"),
        max_pid=_number("/proc/sys/kernel/pid_max"),
        free_huge_page_bytes=int(memory.get("HugePages_Free", "0"))
        * int(memory.get("Hugepagesize", "0 kB").removesuffix("kB"))
        * _KIB,
        security_modules=tuple(sorted({"apparmor", "selinux"}.intersection(modules))),
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _number(path: str) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else 0
