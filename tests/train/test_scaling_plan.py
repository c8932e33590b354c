"""The plan for large machines: its table is that of its record, and its arithmetic is that of the page."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling_plan

    return scaling_plan


def test_the_table_of_the_page_is_that_of_the_record(tmp_path: Path) -> None:
    page = ROOT / "docs" / "distributed.md"
    copy = Path(shutil.copy(page, tmp_path))
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling_plan.py"), "--read", "--into", str(copy)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert copy.read_text() == page.read_text()
    assert "| ImageNet's size, one run | 450,450 |" in page.read_text()  # 90 · ⌈1,281,167 / 256⌉


LARGE = {"multiply_adds": 1e12, "parameters": 2.5e9, "norm_channels": 0}  # 0.0995 s an image


@pytest.mark.parametrize(
    ("gpus", "arithmetic", "told"),
    [
        (1, 128 * 1e12 / (33.5e12 * 0.3), 0.0),
        (8, 16 * 1e12 / (33.5e12 * 0.3), 2 * 7 / 8 * 1e10 / 1e11),
        (100, 2 * 1e12 / (33.5e12 * 0.3), 2 * 99 / 100 * 1e10 / 1e11),  # shares of one or two images
    ],
)
def test_a_step_is_its_largest_share_and_what_is_told(
    plan: ModuleType, gpus: int, arithmetic: float, told: float
) -> None:
    assert plan.seconds_of_step(LARGE, 128, gpus) == pytest.approx((arithmetic, told))


def test_small_steps_are_bound_by_their_launches(plan: ModuleType) -> None:
    small = {"multiply_adds": 1e6, "parameters": 1000, "norm_channels": 10}
    assert plan.seconds_of_step(small, 128, 1) == (0.01, 0.0)
    assert plan.told_bytes(small) == 4 * 1000 + 32 * 10


def test_runs_go_side_by_side_and_share_gpus_only_where_there_are_more(plan: ModuleType) -> None:
    run = {"suite": "stl10", "model": "large", "steps": 3600, "batch": 128}
    record = {"networks": {"large": LARGE}, "runs": [run] * 4}
    alone, shared = (sum(plan.seconds_of_step(LARGE, 128, gpus)) for gpus in (1, 2))
    assert plan.hours(record, "stl10", 1) == pytest.approx(4 * alone)
    assert plan.hours(record, "stl10", 4) == pytest.approx(alone)
    assert plan.hours(record, "stl10", 6) == pytest.approx(alone)
    assert plan.hours(record, "stl10", 8) == pytest.approx(shared)
