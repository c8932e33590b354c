"""Claims: one worker does a run, whatever other processes and machines work on the same folder.

A claim is a file that only one can create. It stands as long as its worker lives: on the same machine the
kernel knows, because the worker holds a lock on the file, and lets go of it however it dies; on another
machine the file's time moves at every beat, and who sees it stand still for a whole lease, by its own clock,
takes the run over, itself or by a process to which it tells what it saw. No clock is compared with another.

A run is taken over by a claim of the next number, which again only one can create; the highest number counts.
"""

import json
import os
import platform
import re
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from equiscale.errors import SettingError

try:
    import fcntl as _fcntl
except ImportError:  # a system without flock has leases alone
    _fcntl = None  # type: ignore[assignment]
_LOCKS: Final[ModuleType | None] = _fcntl

_NAME: Final = re.compile(r"(?P<run>.+)\.(?P<number>[1-9][0-9]{0,8})\.claim")
_MOST_BYTES: Final = 4096
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Lease:
    """How a worker shows that it lives.

    Args:
        beat: Seconds between two signs of life.
        expires: Seconds without one after which another machine takes the run over. Shared folders show
            changes late, commonly up to a minute.

    Raises:
        SettingError: If a lease would expire between two beats.
    """

    beat: float = 10.0
    expires: float = 180.0

    def __post_init__(self) -> None:
        if not 0 < 2 * self.beat <= self.expires:
            raise SettingError(
                f"expected a lease of at least two beats, got {self.expires} s with one each {self.beat} s"
            )


@dataclass(frozen=True)
class Holder:
    """Who holds a claim.

    Args:
        machine: The same for all processes of one running system.
        host: Its name, for people.
        pid: The process, as its own system numbers it.
        locked: Whether it holds a lock on the claim's file.
    """

    machine: str
    host: str
    pid: int
    locked: bool


class Claim:
    """A run that is ours, until `release`.

    Args:
        path: Its file.
        descriptor: The open, locked file.
        lease: How often it shows that we live.
    """

    def __init__(self, path: Path, descriptor: int, lease: Lease) -> None:
        self.path, self.lease = path, lease
        self._descriptor = descriptor
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._beat = os.stat(descriptor).st_mtime_ns
        self._thread = threading.Thread(target=self._keep_beating, name="claim", daemon=True)
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """Whether another worker has taken the run over, because it saw no sign of life."""
        return self._lost.is_set()

    def release(self) -> None:
        """Give the run up, finished or not."""
        self._ended.set()
        self._thread.join()
        run, number = _parse(self.path.name)
        own = [path for path in _claims_of(self.path.parent, run) if _parse(path.name)[1] <= number]
        # The highest first: what is left, should we die here, is older and belongs to the dead.
        for path in reversed(own):
            with suppress(OSError):  # without the lock it counts for nothing
                path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _keep_beating(self) -> None:
        while not self._ended.wait(self.lease.beat):
            with suppress(OSError):  # the folder may be away for a while
                self._show_life()

    def _show_life(self) -> None:
        run, number = _parse(self.path.name)
        others = _claims_of(self.path.parent, run)
        if not others or _parse(others[-1].name)[1] != number:
            self._lost.set()
            return
        # The time only has to move, whatever the clock says.
        self._beat = max(self._beat + 1, time.time_ns())
        os.utime(self.path, ns=(self._beat, self._beat))


class _Sight(NamedTuple):
    """When a claim's file was first seen with its present time, and whether it was seen with another one."""

    time: int
    since: float
    has_moved: bool


class Claims:
    """The claims in a folder, as this process sees them.

    Args:
        folder: Where the files lie; made when something is claimed.
        lease: How a claim shows that it is alive.
        dead: Claims that another process has seen to be dead, as its own `seen_dead` gives them.

    Example:
        >>> import tempfile
        >>> claims = Claims(Path(tempfile.mkdtemp()))
        >>> claim = claims.claim("a-run")
        >>> claims.claim("a-run") is None, claims.is_held("a-run")
        (True, True)
        >>> claim.release()
        >>> claims.is_held("a-run")
        False
    """

    def __init__(
        self, folder: Path, lease: Lease | None = None, *, dead: Mapping[Path, int] | None = None
    ) -> None:
        self.folder, self.lease = folder, lease or Lease()
        self._dead = dict(dead or {})
        self._seen: dict[Path, _Sight] = {}

    def claim(self, run: str) -> Claim | None:
        """The claim of a run that nobody holds; None if somebody does.

        Raises:
            OSError: If the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        before = _claims_of(self.folder, run)
        if before and self._is_alive(before[-1]):
            return None
        number = _parse(before[-1].name)[1] + 1 if before else 1
        path = self.folder / f"{run}.{number}.claim"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return None
        try:
            _sign(descriptor)
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        claim = Claim(path, descriptor, self.lease)
        if _claims_of(self.folder, run)[-1:] != [path]:  # the folder was seen as it had been
            claim.release()
            return None
        return claim

    def is_held(self, run: str) -> bool:
        """Whether a living worker holds a run, as far as can be seen from here."""
        claims = _claims_of(self.folder, run)
        return bool(claims) and self._is_alive(claims[-1])

    def is_undecided(self, run: str) -> bool:
        """Whether a run's claim, of another machine, has not been watched for long enough.

        It has not moved yet, nor stood still for a lease, since this process saw it first.
        """
        claims = _claims_of(self.folder, run)
        sight = self._seen.get(claims[-1]) if claims else None
        return sight is not None and not sight.has_moved and self._is_fresh(sight)

    def seen_dead(self) -> dict[Path, int]:
        """The files of claims that stood still for a lease, and their times: for other processes."""
        return {path: sight.time for path, sight in self._seen.items() if not self._is_fresh(sight)}

    def held(self) -> dict[str, Holder | None]:
        """All runs that living workers hold; None: it cannot be said who."""
        newest: dict[str, Path] = {}
        for path in sorted(self.folder.glob("*.claim"), key=lambda path: _parse(path.name)[1]):
            newest[_parse(path.name)[0]] = path
        return {run: _holder(path) for run, path in newest.items() if run and self._is_alive(path)}

    def dead(self) -> list[Path]:
        """The files of claims whose workers are dead."""
        held = self.held()
        return [path for path in sorted(self.folder.glob("*.claim")) if _parse(path.name)[0] not in held]

    def _is_alive(self, path: Path) -> bool:
        holder = _holder(path)
        if holder is not None and holder.locked and holder.machine == machine_id():
            return _is_locked(path)
        return self._moves(path)

    def _moves(self, path: Path) -> bool:
        """Whether the file's time has moved within a lease, as far as we have watched it."""
        try:
            found = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        except OSError:
            return True  # it cannot be said; then it is left alone
        if self._dead.get(path) == found:
            return False
        seen = self._seen.get(path)
        if seen is None or seen.time != found:
            self._seen[path] = _Sight(found, time.monotonic(), has_moved=seen is not None)
            return True
        return self._is_fresh(seen)

    def _is_fresh(self, sight: _Sight) -> bool:
        return time.monotonic() - sight.since < self.lease.expires


def claims_of(folder: Path, suite: str) -> Path:
    """Where the claims of a suite's runs lie in a results folder."""
    return folder / suite / "claims"


def machine_id() -> str:
    """The same for all processes of one running system, also in its containers."""
    with suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return f"{platform.node()} {uuid.getnode():x}"


def _parse(name: str) -> tuple[str, int]:
    """The run and the number of a claim's file; of another file nothing and 0."""
    match = _NAME.fullmatch(name)
    return (match["run"], int(match["number"])) if match else ("", 0)


def _claims_of(folder: Path, run: str) -> list[Path]:
    """All claims of a run, the highest number last."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = sorted(
        (number, name) for name in names for found_run, number in [_parse(name)] if found_run == run
    )
    return [folder / name for _, name in found]


def _sign(descriptor: int) -> None:
    """Lock the file where that is possible, and write who we are."""
    locked = _try_lock(descriptor, exclusive=True)
    holder = Holder(machine_id(), socket.gethostname(), os.getpid(), locked)
    os.write(descriptor, json.dumps(asdict(holder)).encode())
    os.fsync(descriptor)


def _try_lock(descriptor: int, *, exclusive: bool) -> bool:
    if _LOCKS is None:
        return False
    kind: int = _LOCKS.LOCK_EX if exclusive else _LOCKS.LOCK_SH
    try:
        _LOCKS.flock(descriptor, kind | _LOCKS.LOCK_NB)
    except OSError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it cannot be said; then it is left alone
    try:
        return not _try_lock(descriptor, exclusive=False)
    finally:
        os.close(descriptor)


def _holder(path: Path) -> Holder | None:
    """Who signed a claim; None while it is being written, or if it is no claim."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MOST_BYTES))
        machine, host, pid, locked = (found[key] for key in ("machine", "host", "pid", "locked"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Holder(str(machine), str(host), int(pid) if isinstance(pid, int) else 0, locked is True)
