"""Shape aliases. Axes are always ``B C S H W``; bases are ``F S K K``.

The annotations are checked at run time in the tests only (``tests/conftest.py``).
"""

from typing import Literal, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

Image: TypeAlias = Float[Tensor, "B C H W"]
ScaleMap: TypeAlias = Float[Tensor, "B C S H W"]
BasisTensor: TypeAlias = Float[Tensor, "F S K K"]
Indices: TypeAlias = Int[Tensor, "..."]

PaddingMode: TypeAlias = Literal["zeros", "circular", "reflect", "replicate"]
ScalePadding: TypeAlias = Literal["zeros", "replicate"]
Projection: TypeAlias = Literal["max", "mean", "logsumexp", "argmax-scale"]
FusedProjection: TypeAlias = Literal["max"]
