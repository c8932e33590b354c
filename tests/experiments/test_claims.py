"""Claims: one holder at a time, gone with its process, taken over after a lease from another machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from equiscale.errors import SettingError
from equiscale.experiments import claims as module
from equiscale.experiments.claims import Claim, Claims, Lease

QUICK = Lease(beat=0.1, expires=1.0)
HOLD = """
import sys, time
from pathlib import Path
from equiscale.experiments.claims import Claims
claim = Claims(Path(sys.argv[1])).claim(sys.argv[2])
print("held" if claim else "busy", flush=True)
time.sleep(60)
"""


@contextmanager
def another_process(folder: Path, run: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has claimed a run."""
    command = [sys.executable, "-c", HOLD, str(folder), run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def on_another_machine(claim: Claim) -> Path:
    """Its file, as if somebody else had signed it whom no lock can show."""
    signed = json.loads(claim.path.read_text())
    claim.path.write_text(json.dumps(signed | {"machine": "elsewhere", "host": "far"}))
    return claim.path


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    ours, others = Claims(tmp_path), Claims(tmp_path)
    claim = ours.claim("a")
    assert claim is not None
    assert others.claim("a") is None
    assert ours.claim("a") is None
    assert others.is_held("a")
    assert not others.is_held("b")
    holder = others.held()["a"]
    assert holder is not None
    assert holder.pid == os.getpid()
    claim.release()
    assert others.held() == {}
    again = others.claim("a")
    assert again is not None
    again.release()
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_claim_at_once_one_gets_it(tmp_path: Path) -> None:
    for run in map(str, range(20)):
        got: list[Claim | None] = []
        barrier = threading.Barrier(8)

        def claim(run: str = run, barrier: threading.Barrier = barrier, got: list = got) -> None:
            claims = Claims(tmp_path)
            barrier.wait()
            got.append(claims.claim(run))

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [claim for claim in got if claim]
        assert len(winners) == 1
        winners[0].release()


def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    with another_process(tmp_path, "a") as process:
        assert claims.claim("a") is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not claims.is_held("a"), "at once, without any lease"
        claim = claims.claim("a")
    assert claim is not None
    assert claim.path.name == "a.2.claim"
    claim.release()
    assert list(tmp_path.iterdir()) == [], "the dead one's file too"


def test_a_stopped_process_keeps_its_claim_on_the_same_machine(tmp_path: Path) -> None:
    claims = Claims(tmp_path, QUICK)
    with another_process(tmp_path, "a") as process:
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(2 * QUICK.expires)
        assert claims.claim("a") is None


def test_another_machines_claim_stands_while_it_beats(tmp_path: Path) -> None:
    claim = Claims(tmp_path, QUICK).claim("a")
    on_another_machine(claim)
    watching = Claims(tmp_path, QUICK)
    end = time.monotonic() + 2 * QUICK.expires
    while time.monotonic() < end:
        assert watching.claim("a") is None
        time.sleep(QUICK.beat)
    claim.release()


def test_another_machines_claim_falls_after_a_lease_without_a_beat(tmp_path: Path) -> None:
    dead = on_another_machine(Claims(tmp_path, Lease(beat=100, expires=300)).claim("a"))
    watching = Claims(tmp_path, QUICK)
    assert watching.claim("a") is None
    time.sleep(QUICK.expires / 4)
    assert watching.claim("a") is None
    time.sleep(QUICK.expires)
    claim = watching.claim("a")
    assert claim is not None
    assert dead.exists()
    claim.release()
    assert not dead.exists()


def test_what_one_process_has_seen_to_be_dead_another_one_believes(tmp_path: Path) -> None:
    dead = on_another_machine(Claims(tmp_path, Lease(beat=100, expires=300)).claim("a"))
    watching = Claims(tmp_path, QUICK)
    assert not watching.is_undecided("a"), "it has not been looked at"
    assert watching.is_held("a")
    assert watching.is_undecided("a")
    assert watching.seen_dead() == {}
    time.sleep(1.1 * QUICK.expires)
    assert not watching.is_undecided("a")
    seen = watching.seen_dead()
    assert list(seen) == [dead]
    assert Claims(tmp_path).is_held("a"), "by itself it would have to watch"
    os.utime(dead, ns=(1, 1))
    assert Claims(tmp_path, dead=seen).is_held("a"), "it has moved since"
    os.utime(dead, ns=(seen[dead], seen[dead]))
    claim = Claims(tmp_path, dead=seen).claim("a")
    assert claim is not None
    claim.release()


def test_a_claim_that_has_moved_is_decided(tmp_path: Path) -> None:
    claim = on_another_machine(Claims(tmp_path, Lease(beat=100, expires=300)).claim("a"))
    watching = Claims(tmp_path)
    watching.is_held("a")
    os.utime(claim, ns=(1, 1))
    assert watching.is_undecided("a")
    assert watching.is_held("a")
    assert not watching.is_undecided("a")


@pytest.mark.parametrize("jump", [-(10**18), 10**18])
def test_clocks_that_jump_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: int) -> None:
    """The time of the file only has to move, and is compared with no clock."""
    claim = Claims(tmp_path, QUICK).claim("a")
    on_another_machine(claim)
    watching = Claims(tmp_path, QUICK)
    watching.claim("a")
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + jump)
    end = time.monotonic() + 2 * QUICK.expires
    while time.monotonic() < end:
        assert watching.claim("a") is None
        time.sleep(QUICK.beat)
    claim.release()


def test_who_was_thought_dead_learns_that_its_run_was_taken_over(tmp_path: Path) -> None:
    slow = Claims(tmp_path, Lease(beat=2.0, expires=4.0)).claim("a")
    on_another_machine(slow)
    watching = Claims(tmp_path, QUICK)
    watching.claim("a")
    time.sleep(1.5 * QUICK.expires)
    taken = watching.claim("a")
    assert taken is not None
    deadline = time.monotonic() + 5
    while not slow.is_lost:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not taken.is_lost
    slow.release()
    assert taken.path.exists(), "only its own claim is given up"
    taken.release()


def test_a_takeover_from_the_dead_has_one_winner(tmp_path: Path) -> None:
    with another_process(tmp_path, "a") as process:
        pass
    process.wait()
    got: list[Claim | None] = []
    threads = [threading.Thread(target=lambda: got.append(Claims(tmp_path).claim("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [claim for claim in got if claim]
    assert len(winners) == 1
    winners[0].release()


def test_without_locks_leases_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOCKS", None)
    claim = Claims(tmp_path, QUICK).claim("a")
    watching = Claims(tmp_path, QUICK)
    assert watching.claim("a") is None
    time.sleep(2 * QUICK.expires)
    assert watching.claim("a") is None
    claim.release()
    assert watching.claim("a") is not None


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 5000, b"\xff\xfe", b'{"machine": 1'])
def test_a_claim_that_nobody_can_read_is_believed_for_a_lease(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.1.claim").write_bytes(content)
    claims = Claims(tmp_path, QUICK)
    assert claims.claim("a") is None
    time.sleep(1.5 * QUICK.expires)
    assert claims.claim("a") is not None


def test_a_stale_view_of_the_folder_gives_no_second_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's folder may be seen without the newest files; what was made is looked at once more."""
    first = Claims(tmp_path).claim("a")
    first.path.rename(tmp_path / "a.2.claim")
    views = iter([[], None])
    seen = module._claims_of

    def stale(folder: Path, run: str) -> list[Path]:
        view = next(views, None)
        return seen(folder, run) if view is None else view

    monkeypatch.setattr(module, "_claims_of", stale)
    assert Claims(tmp_path).claim("a") is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.2.claim"]


def test_the_dead_are_told_from_the_living(tmp_path: Path) -> None:
    with another_process(tmp_path, "dead") as process:
        pass
    process.wait()
    claims = Claims(tmp_path)
    living = claims.claim("living")
    assert [path.name for path in claims.dead()] == ["dead.1.claim"]
    assert set(claims.held()) == {"living"}
    living.release()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="file"):
        Claims(file / "claims").claim("a")


@pytest.mark.parametrize(("beat", "expires"), [(10.0, 19.0), (0.0, 1.0), (-1.0, 5.0), (float("nan"), 1.0)])
def test_leases_that_would_expire_by_themselves(beat: float, expires: float) -> None:
    with pytest.raises(SettingError, match="expected a lease of at least two beats, got"):
        Lease(beat=beat, expires=expires)
