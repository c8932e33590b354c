"""Where prepared data lie."""

import os
from pathlib import Path
from typing import Final

from equiscale._files import user_cache
from equiscale.errors import SettingError

ROOT_VARIABLE: Final = "EQUISCALE_DATA_DIR"


def data_root(root: Path | str | None = None) -> Path:
    """The folder of prepared data sets.

    Args:
        root: The folder, or None for the environment variable ``EQUISCALE_DATA_DIR``, or else ``equiscale``
            in ``XDG_CACHE_HOME``, or else ``~/.cache/equiscale``.

    Raises:
        SettingError: If it is the home of a user who is not there.

    Example:
        >>> data_root("somewhere").name
        'somewhere'
    """
    chosen = root or os.environ.get(ROOT_VARIABLE)
    if chosen:
        return absolute_path(Path(chosen))
    return user_cache()


def absolute_path(path: Path) -> Path:
    """The whole path, ``~`` and ``~user`` replaced.

    Raises:
        SettingError: If there is no such user, or the path holds what no path can.
    """
    try:
        os.fsencode(path)
        return path.expanduser().absolute()
    except (RuntimeError, ValueError) as error:
        raise SettingError(f"expected the path of a folder, got {str(path)!r}: {error}") from error


def prepare_command(name: str, root: Path) -> str:
    """The command that prepares a data set, to be shown in error messages."""
    return f"equiscale data prepare {name} --root {root}"
