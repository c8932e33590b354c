"""Where prepared data lie."""

import os
from pathlib import Path
from typing import Final

from equiscale._files import user_cache

ROOT_VARIABLE: Final = "EQUISCALE_DATA_DIR"


def data_root(root: Path | str | None = None) -> Path:
    """The folder of prepared data sets.

    Args:
        root: The folder, or None for the environment variable ``EQUISCALE_DATA_DIR``, or else ``equiscale``
            in ``XDG_CACHE_HOME``, or else ``~/.cache/equiscale``.

    Example:
        >>> data_root("somewhere").name
        'somewhere'
    """
    chosen = root or os.environ.get(ROOT_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return user_cache()


def prepare_command(name: str, root: Path) -> str:
    """The command that prepares a data set, to be shown in error messages."""
    return f"equiscale data prepare {name} --root {root}"
