"""Files that appear under their final name only when they are complete, and the folder for cached ones."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_FOLDERS_OPEN: Final = os.name == "posix"  # elsewhere a folder cannot be opened
_MANY: Final = 1_000
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
