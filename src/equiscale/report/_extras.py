"""Packages that only the report needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from equiscale.errors import MissingExtraError


@contextmanager
def report_extra() -> Iterator[None]:
    """Around imports of packages of the extra ``report``.

    Raises:
        MissingExtraError: If one is not installed; the message says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"expected the package {error.name!r} to be installed, got: {error}; "
            'install it with: pip install "equiscale[report]"'
        ) from error
