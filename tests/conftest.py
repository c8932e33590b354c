"""What all tests share: run-time shape checks, one thread, an empty data cache, seeded generators."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

# Two cores run two workers; threads of their own would only get in each other's way.
torch.set_num_threads(1)

HOOKED = ("equiscale.functional", "equiscale.basis", "equiscale.nn")


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype on the arrays and the result only: settings are for the library's own errors to refuse."""
    from beartype import beartype
    from jaxtyping import AbstractArray

    def has_shape(hint: object) -> bool:
        return isinstance(hint, type) and issubclass(hint, AbstractArray)

    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if name == "return" or has_shape(hint)
    }
    return beartype(function)


# Before the packages are imported.
install_import_hook(HOOKED, "tests.conftest.check_shapes")


@pytest.fixture(scope="session", autouse=True)
def _own_data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the developer's cache unless it asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUISCALE_DATA_DIR", str(tmp_path_factory.mktemp("data_cache")))
        yield


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Modules are built in float64, so that their bases are not rounded to float32."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)
