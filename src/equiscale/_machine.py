"""What the machine offers."""

import ctypes
import os
import platform
import shutil
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = -1
_GROW_BY = 64 * 2**20


def available_cores() -> int:
    """Cores that this process may use.

    Example:
        >>> available_cores() >= 1
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def processor_name() -> str:
    """The processor's model, as the system names it.

    Example:
        >>> processor_name() != ""
        True
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def keep_memory() -> bool:
    """Let this process keep the memory of large tensors that are freed, and use it again.

    By default glibc gives every block of more than 32 MiB back to the system when it is freed, and the
    next tensor of that size costs a page fault, and a zeroed page, for every 4 KiB. Here blocks of any
    size come from the heap, which grows by 64 MiB at a time and never shrinks. What is allocated and freed
    means the same as before, for everyone in the process; the process holds its peak of memory to its end,
    and the peak may be larger, because the heap has gaps.

    Returns:
        Whether it is so now: False where the C library is not glibc, which is no error.

    Example:
        >>> keep_memory() == keep_memory()
        True
    """
    if not _is_glibc():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _GROW_BY))
        return all(mallopt(name, value) == 1 for name, value in settings)
    except (OSError, AttributeError):
        return False


def has_compiler(device: str) -> bool:
    """Whether torch.compile finds what it needs for a device: a C++ compiler, on a GPU also Triton.

    Example:
        >>> isinstance(has_compiler("cpu"), bool)
        True
    """
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")  # as torch searches
    found = shutil.which(os.environ.get("CXX", usual)) is not None
    return found and (device == "cpu" or find_spec("triton") is not None)


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # no confstr, or not this name
        return False
