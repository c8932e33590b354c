"""One run of several processes: claimed by the first for all. `tests/train/ddp` starts real ones."""

import os
from pathlib import Path

import pytest

from equiscale.errors import SettingError
from equiscale.experiments import together as module
from equiscale.experiments.claims import Claims, Lease, claims_of, machine_id
from equiscale.experiments.execute import RunOptions
from equiscale.experiments.plan import plan_runs
from equiscale.experiments.records import RunSettings
from equiscale.experiments.spec import load_suite

QUICK = Lease(beat=0.1, expires=1.0)


class FirstOfOne:
    rank = 0

    def any(self, flag: bool) -> bool:
        return flag


@pytest.fixture
def run(small_suite: Path) -> RunSettings:
    return plan_runs(load_suite(str(small_suite)))[0]


def test_is_refused_at_once_while_a_worker_of_this_machine_does_it(tmp_path: Path, run: RunSettings) -> None:
    claim = Claims(claims_of(tmp_path, "small")).claim(run.run_id)
    with (
        pytest.raises(SettingError, match="expected a run that nobody else does, got mnist_cnn_28"),
        module._claimed(run, RunOptions(tmp_path), FirstOfOne()),
    ):
        pass
    claim.release()
    with module._claimed(run, RunOptions(tmp_path), FirstOfOne()) as is_lost:
        assert Claims(claims_of(tmp_path, "small")).is_held(run.run_id)
        assert not is_lost()
    assert not Claims(claims_of(tmp_path, "small")).is_held(run.run_id)


@pytest.mark.parametrize("lives", [True, False])
def test_another_machine_is_watched_for_a_sign_of_life(
    tmp_path: Path, run: RunSettings, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    """As after a node's death, when the job starts anew on another one."""
    claim = Claims(claims_of(tmp_path, "small"), Lease(beat=1000, expires=2000)).claim(run.run_id)
    claim.path.write_text(claim.path.read_text().replace(machine_id(), "elsewhere"))
    waited: list[float] = []
    sleep = module.time.sleep

    def beat(seconds: float) -> None:
        waited.append(seconds)
        sleep(seconds)
        if lives:
            os.utime(claim.path, ns=(len(waited), len(waited)))

    monkeypatch.setattr(module.time, "sleep", beat)
    options = RunOptions(tmp_path, lease=QUICK)
    if lives:
        with (
            pytest.raises(SettingError, match="which another worker has claimed"),
            module._claimed(run, options, FirstOfOne()),
        ):
            pass
        assert len(waited) == 1
        return
    with module._claimed(run, options, FirstOfOne()):
        assert sum(waited) >= QUICK.expires
    assert not claim.path.exists()
