"""Packages that only the making of data sets needs."""

import importlib
from types import ModuleType

from equiscale.errors import MissingExtraError


def import_extra(module: str) -> ModuleType:
    """Import a module of the extra ``data``.

    Raises:
        MissingExtraError: If it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"expected the package of {module!r} to be installed, got: {error}; "
            'install it with: pip install "equiscale[data]"'
        ) from error
