"""Files that appear under their final name only when they are complete, and what is asked of files first."""

import io
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Final

try:
    import fcntl as _fcntl
except ImportError:  # a system without flock
    _fcntl = None  # type: ignore[assignment]
_LOCKS: Final[ModuleType | None] = _fcntl

_FOLDERS_OPEN: Final = os.name == "posix"  # elsewhere a folder cannot be opened
_MANY: Final = 1_000
_LONGEST_INDEX: Final = 4 << 20  # of a .zip: tens of thousands of members
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{32}\.tmp", re.DOTALL)


def user_cache() -> Path:
    """The folder ``equiscale`` in ``XDG_CACHE_HOME``, or else in ``~/.cache``.

    Example:
        >>> user_cache().name
        'equiscale'
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "equiscale"


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it to ``target`` on success, remove it on failure.

    The body writes a file, or makes a folder, at the yielded path. A reader sees the old target or the
    complete new one, never a part. Everything is flushed to the disk before the rename. A folder replaces an
    older folder.

    Args:
        target: The final path; its folder is made when it is missing.

    Yields:
        A path in the same folder that does not exist yet.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with atomic_path(target) as path:
        ...     _ = path.write_text("1 2 3")
        >>> target.read_text()
        '1 2 3'
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        publish(temporary, target)
    finally:
        _remove(temporary)


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Wait until no other process or thread is at work on ``target``, and keep them waiting.

    The lock is on a file beside the target, and the kernel's: who dies lets go of it. Where a system or a
    file system has no locks nobody waits.

    Args:
        target: The path that is about to be made; its folder is made when it is missing.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers"
        >>> with alone(target):
        ...     [path.name for path in target.parent.iterdir()]
        ['.numbers.lock']
        >>> list(target.parent.iterdir())
        []
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.lock")
    descriptor = _lock(path)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(descriptor)


def check_zip_index(path: Path) -> None:
    """Refuse a .zip whose list of members is longer than any that is read here, before it is in memory.

    Raises:
        BadZipFile: If it is longer, or the file is no .zip.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.zip"
        >>> zipfile.ZipFile(path, "w").close()
        >>> check_zip_index(path)
    """
    with _ShortReads(path) as file, zipfile.ZipFile(file):
        pass


class _ShortReads(io.FileIO):
    """Opening a .zip reads its whole index in one step, whose length the file announces in several ways."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LONGEST_INDEX:
            raise zipfile.BadZipFile(f"an index of {size} bytes, more than {_LONGEST_INDEX}")
        return super().read(size)


def _lock(path: Path) -> int | None:
    """The descriptor of the locked file; None where there are no locks."""
    if _LOCKS is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _LOCKS.flock(descriptor, _LOCKS.LOCK_EX)
        except OSError:  # this file system has none
            path.unlink(missing_ok=True)
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # who held it before has removed the file


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def is_temporary(path: Path) -> bool:
    """Whether a path is one that `atomic_path` gave, and a process that died left behind.

    Example:
        >>> is_temporary(Path(".numbers.txt.5d41402abc4b2a76b9719d911017c592.tmp"))
        True
    """
    return _TEMPORARY.fullmatch(path.name) is not None


def publish(temporary: Path, target: Path) -> None:
    """Flush the finished ``temporary`` to the disk and rename it to ``target`` in the same folder."""
    if temporary.is_dir():
        _flush_folder(temporary)
        _remove(target)
    else:
        _flush(temporary, os.O_RDWR)
    os.replace(temporary, target)
    if _FOLDERS_OPEN:
        _flush(target.parent, os.O_RDONLY)


def _flush_folder(folder: Path) -> None:
    inside = list(folder.rglob("*"))
    if _FOLDERS_OPEN and len(inside) > _MANY:
        os.sync()  # tens of thousands of files one by one take minutes
        return
    for path in (folder, *inside):
        if path.is_dir():
            if _FOLDERS_OPEN:
                _flush(path, os.O_RDONLY)
        else:
            _flush(path, os.O_RDWR)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
