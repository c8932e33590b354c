"""Memory that stays with the process, and compilers."""

import ctypes
import os
import resource
import subprocess
import sys

import pytest

from equiscale import _machine
from equiscale._machine import has_compiler, keep_memory

needs_glibc = pytest.mark.skipif(not _machine._is_glibc(), reason="the C library is not glibc")

PAGES = 10 * 2**26 // resource.getpagesize()

# Page faults of ten tensors of 64 MB, one after the other, when ten others have found their places.
FAULTS = """
import resource, torch
from equiscale._machine import keep_memory
{first}
for _ in range(10):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(first: str) -> int:
    code = FAULTS.format(first=first)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


@needs_glibc
def test_freed_tensors_are_used_again() -> None:
    assert faults("") > 0.9 * PAGES, "the control: without it, each tensor is new memory"
    assert faults("assert keep_memory()") < 0.02 * PAGES
    assert faults("assert keep_memory() and keep_memory()") < 0.02 * PAGES


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("looked for mallopt"))
    for answer in (None, "musl 1.2"):
        monkeypatch.setattr(os, "confstr", lambda name, answer=answer: answer, raising=False)
        assert not keep_memory()
    monkeypatch.delattr(os, "confstr")
    assert not keep_memory()


@pytest.mark.parametrize("error", [ValueError("unrecognized configuration name"), OSError()])
def test_a_system_that_does_not_know_its_library_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(name: str) -> str:
        raise error

    monkeypatch.setattr(os, "confstr", fail, raising=False)
    assert not keep_memory()


def test_a_glibc_without_mallopt_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_machine, "_is_glibc", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_memory()


def test_a_compiler_is_found_where_torch_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    assert has_compiler("cpu")
    monkeypatch.setattr(_machine, "find_spec", lambda name: None)
    assert not has_compiler("cuda"), "there Triton is needed too"
    monkeypatch.setattr(_machine, "find_spec", lambda name: object())
    assert has_compiler("cuda")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not has_compiler("cpu")
    assert not has_compiler("cuda")


@needs_glibc
def test_importing_the_package_changes_nothing() -> None:
    assert faults("import equiscale.experiments.runner") > 0.9 * PAGES
