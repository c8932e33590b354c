"""The fixture in a test suite of its own, run by a pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

HEAD = """
import torch
from equiscale import ScaleGrid
from equiscale.nn import LiftConv2d
from equiscale.testing import BandLimitedImage

def network(kernel_size):
    torch.manual_seed(0)
    return LiftConv2d(1, 2, kernel_size=kernel_size, grid=ScaleGrid.geometric(1.0, 2**0.5, 3), padding="same")
"""

PASSES = """
def test_good(assert_equivariant):
    report = assert_equivariant(network(17), factors=[2**0.5], tolerance=0.5, size=40)
    assert report.size == (40, 40)
    assert 1e-3 < report.worst < 0.5
"""

FAILS = """
def test_broken(assert_equivariant):
    assert_equivariant(network(5), factors=[2**-0.5], tolerance=0.01, size=40)
"""


def run(pytester: pytest.Pytester, text: str) -> pytest.RunResult:
    pytester.makepyfile(HEAD + text)
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-q"]
    return pytester.runpytest_subprocess(*options)


def test_a_good_network_passes_and_a_broken_one_shows_the_table_and_what_to_change(
    pytester: pytest.Pytester,
) -> None:
    result = run(pytester, PASSES + FAILS)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "expected relative errors of at most 0.01, got 0.*",
            "layer *kind *total *adds *why",
            "LiftConv2d * LiftConv2d *%*K*",
            "K kernel: filters cut off by the kernel",
            "• LiftConv2d: * it cuts the filter at scale*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_the_fixture_is_documented(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(["assert_equivariant*", "*scale equivariance of a network*"])


def test_pytest_starts_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys, pytest; code = pytest.main(['-p', 'equiscale.testing.pytest_plugin', '--co', '-q']);"
        "assert 'equiscale.testing.pytest_plugin' in sys.modules;"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stderr
