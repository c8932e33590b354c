"""Optional packages: what to say where one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from equiscale.errors import MissingExtraError


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Around imports of packages that one of equiscale's extras installs.

    Raises:
        MissingExtraError: If one is not installed; the message says how to install it.

    Example:
        >>> try:
        ...     with needs_extra("report"):
        ...         import no_such_package
        ... except MissingExtraError as error:
        ...     print(str(error).split("; ")[1])
        install it with: pip install "equiscale[report]"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f'expected the package {error.name!r}, got none; install it with: pip install "equiscale[{name}]"'
        ) from error
