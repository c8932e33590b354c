"""The public SESN code, imported from a checkout of it; none of it is part of equiscale."""

import contextlib
import hashlib
import importlib
import io
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from equiscale.errors import BenchmarkError, SettingError
from equiscale.experiments import provenance


@dataclass(frozen=True)
class PublicCode:
    """A checkout of the public SESN code, whose networks are functions in ``models/*.py``.

    Its files are imported as they are, and run: give only a folder that you trust.

    Args:
        folder: The root of the checkout.

    Raises:
        SettingError: If there is no such code.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not any((self.folder / "models").glob("*.py")):
            raise SettingError(
                f"expected a checkout of the public SESN code with models/*.py in {self.folder}, got none"
            )

    @property
    def commit(self) -> str:
        """Its commit; "unknown" where it is no checkout of its own."""
        revision = provenance.revision(self.folder) if (self.folder / ".git").exists() else None
        return revision or "unknown"

    def build(self, model: str, num_classes: int) -> nn.Module:
        """A network of the public code under its published name, which is ours too.

        Raises:
            BenchmarkError: If it has no such network, or it does not run with the packages of today.
        """
        path = self._home(model)
        # Its constructors print, and use what numpy and torch have deprecated since.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                builder = getattr(self._import(path.stem), model)
                network: nn.Module = builder(num_classes=num_classes)
            except Exception as error:
                raise BenchmarkError(
                    f"expected {model} of {path.name} to run, got {type(error).__name__}: {error}"
                ) from error
        return network

    def _home(self, model: str) -> Path:
        """The file that defines a network."""
        for path in sorted((self.folder / "models").glob("*.py")):
            if re.search(rf"^def {re.escape(model)}\(", path.read_text(encoding="utf-8"), re.MULTILINE):
                return path
        raise BenchmarkError(f"expected {model} among the networks of the public code, got no such function")

    def _import(self, stem: str) -> ModuleType:
        """A file of its package ``models``, under a name of ours and without the package's own imports.

        One broken file would otherwise spoil all of them, and any other package ``models`` would be hidden.
        """
        folder = str((self.folder / "models").resolve())
        name = f"_public_code_{hashlib.sha256(folder.encode()).hexdigest()[:8]}"
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [folder]
            sys.modules[name] = package
        return importlib.import_module(f"{name}.{stem}")
