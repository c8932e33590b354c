"""No test or doctest reads or fills the caches of the user who runs it."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUISCALE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("EQUISCALE_AUTOTUNE", "off")
        yield
