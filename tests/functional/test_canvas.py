import math

import pytest
import torch
from torch.nn.functional import interpolate, pad

from equiscale.errors import ShapeError
from equiscale.functional.canvas import canvas_matrix

PUBLISHED = [0.3, 0.45, 0.67, 1.0, 1.49, 2.23, 3.33]
SCALES = [*PUBLISHED, *(1 / scale for scale in PUBLISHED), 0.5, 1.5, 2.0]
CASES = [(n, s) for n in (1, 2, 5, 14, 23, 28, 96) for s in SCALES if math.floor(n * s) >= 1]


@pytest.mark.parametrize(("size", "scale"), CASES)
@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_equals_torch_padded_or_cut_about_the_middle(size: int, scale: float, method) -> None:
    pixels = torch.eye(size, dtype=torch.float64)[None, :, :, None]  # one pixel a channel, one column
    corners = {"align_corners": True} if method == "bilinear" else {}
    resized = interpolate(pixels, scale_factor=(scale, 1.0), mode=method, **corners)
    missing = size - resized.shape[2]
    expected = pad(resized, (0, 0, missing // 2, missing - missing // 2))[0, :, :, 0].mT
    torch.testing.assert_close(canvas_matrix(size, scale, method=method), expected, rtol=0, atol=1e-13)


def test_is_the_identity_at_scale_one() -> None:
    assert torch.equal(canvas_matrix(7, 1.0), torch.eye(7, dtype=torch.float64))


@pytest.mark.parametrize(("size", "scale", "factor"), [(28, 0.3, 7 / 27), (28, 1 / 0.3, 92 / 27)])
def test_the_true_factor_is_that_of_the_corners(size: int, scale: float, factor: float) -> None:
    """Why the way back does not come back: 7/27 · 92/27 is 0.88, not 1."""
    ramp = canvas_matrix(size, scale) @ torch.arange(size, dtype=torch.float64)
    middle = ramp[size // 2 - 2 : size // 2 + 2].diff()
    torch.testing.assert_close(middle, torch.full((3,), 1 / factor, dtype=torch.float64), rtol=0, atol=1e-12)


def test_refuses_to_lose_the_last_pixel() -> None:
    text = r"expected at least 4 pixels, so that one is left at scale 0.3, got 3; use a larger image"
    with pytest.raises(ShapeError, match=text):
        canvas_matrix(3, 0.3)
    assert canvas_matrix(4, 0.3).any()
