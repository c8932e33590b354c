from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from equiscale.errors import ScaleGridError, SettingError, ShapeError
from equiscale.functional import input_pyramid
from equiscale.functional.rescale import rescale

COVERS = {"input_pyramid"}

FACTORS = [0.5, 1.0, 2.0]


@pytest.fixture
def random(generator: torch.Generator):
    return partial(torch.randn, dtype=torch.float64, generator=generator)


def features(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 2): something that does not treat all sizes alike."""
    return torch.stack([x.sin().mean((1, 2, 3)), x.square().amax((1, 2, 3))], dim=1)


def copies_of(x: Tensor, **options) -> list[Tensor]:
    seen: list[Tensor] = []

    def function(together: Tensor) -> Tensor:
        seen.extend(together.split(len(x)))
        return features(together)

    input_pyramid(function, x, FACTORS, **options)
    return seen


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("pool", "reduce"), [("max", torch.amax), ("mean", torch.mean)])
@pytest.mark.parametrize("canvas", ["same", "resized"])
def test_equals_one_copy_after_the_other(pool, reduce, canvas, method, random) -> None:
    x = random(3, 2, 8, 11)
    outputs = []
    for factor in FACTORS:
        copy = rescale(x, factor, method=method)
        if canvas == "resized":
            size = [round(side * factor) for side in (8, 11)]
            copy = interpolate(x, size, mode=method, align_corners=False, antialias=factor < 1)
            copy = x if factor == 1 else copy
        outputs.append(torch.cat([features(image[None]) for image in copy]))
    y = input_pyramid(features, x, FACTORS, pool=pool, canvas=canvas, method=method)
    torch.testing.assert_close(y, reduce(torch.stack(outputs), 0), rtol=1e-12, atol=1e-12)


def test_copies_of_one_size_share_a_call_and_factor_one_is_the_input(random) -> None:
    x = random(3, 2, 8, 11)
    calls: list[tuple[int, ...]] = []

    def function(together: Tensor) -> Tensor:
        calls.append(tuple(together.shape))
        return features(together)

    input_pyramid(function, x, FACTORS)
    assert calls == [(9, 2, 8, 11)]
    calls.clear()
    input_pyramid(function, x, [0.5, 1.0, 1.01, 2.0], canvas="resized")
    assert calls == [(3, 2, 4, 6), (6, 2, 8, 11), (3, 2, 16, 22)]
    for canvas in ("same", "resized"):
        assert torch.equal(copies_of(x, canvas=canvas)[1], x)


def test_scaling_by_the_step_moves_the_copies_by_one(random) -> None:
    """The copy of factor 1 of the scaled image is the next copy of the image, bit for bit."""
    x = random(2, 1, 8, 8)
    assert torch.equal(copies_of(rescale(x, 2.0))[1], copies_of(x)[2])
    assert torch.equal(copies_of(rescale(x, 0.5))[1], copies_of(x)[0])
    assert not torch.equal(copies_of(rescale(x, 1.5))[1], copies_of(x)[2])


def test_any_shape_of_output_is_pooled(random) -> None:
    x = random(2, 3, 6, 7)
    assert input_pyramid(lambda x: x.mean((1, 2, 3)), x, FACTORS).shape == (2,)
    assert input_pyramid(lambda x: x, x, FACTORS).shape == x.shape
    assert input_pyramid(lambda x: x[:, :, None], x, FACTORS, pool="mean").shape == (2, 3, 1, 6, 7)


def test_outputs_in_any_memory_layout_are_pooled(random) -> None:
    x = random(2, 3, 6, 7)
    y = input_pyramid(lambda x: x.contiguous(memory_format=torch.channels_last), x, FACTORS)
    assert torch.equal(y, input_pyramid(lambda x: x, x, FACTORS))


class _Resized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return input_pyramid(features, x, [0.5, 1.0, 1.01, 2.0], canvas="resized")


def test_copies_of_several_sizes_are_exported_with_a_batch_of_any_size(random) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(_Resized(), (random(2, 1, 6, 7),), dynamic_shapes=shapes).module()
    x = random(5, 1, 6, 7)
    torch.testing.assert_close(exported(x), _Resized()(x))


@pytest.mark.parametrize("canvas", ["same", "resized"])
def test_derivatives(canvas, random) -> None:
    function = partial(input_pyramid, features, factors=FACTORS, canvas=canvas)
    assert torch.autograd.gradcheck(lambda x: function(x=x), (random(1, 1, 4, 5).requires_grad_(),))


def test_refuses_outputs_that_do_not_fit(random) -> None:
    x = random(2, 3, 6, 8)
    text = r"outputs of one shape at all factors, got \[\(3, 3, 4\), \(3, 6, 8\), .*; pool over all pixels"
    with pytest.raises(ShapeError, match=text):
        input_pyramid(lambda x: x, x, FACTORS, canvas="resized")
    with pytest.raises(ShapeError, match=r"one output for each of 6 images, got \(\)"):
        input_pyramid(torch.sum, x, FACTORS)
    with pytest.raises(ShapeError, match=r"one output for each of 6 images, got \(1, 3, 6, 8\)"):
        input_pyramid(lambda x: x[:1], x, FACTORS)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pool": "sum"}, "a pool of max, mean, got 'sum'"),
        ({"canvas": "cut"}, "a canvas of same, resized, got 'cut'"),
        ({"method": "nearest"}, "a method of bicubic, bilinear, got 'nearest'"),
    ],
)
def test_refuses_other_settings(options: dict, text: str) -> None:
    with pytest.raises(SettingError, match=text):
        input_pyramid(features, torch.zeros(1, 1, 4, 4), FACTORS, **options)


def test_refuses_other_inputs() -> None:
    with pytest.raises(ShapeError, match=r"input_pyramid: expected an image \(B, C, H, W\), got \(1, 4, 4\)"):
        input_pyramid(features, torch.zeros(1, 4, 4), FACTORS)
    with pytest.raises(ScaleGridError, match="strictly increasing"):
        input_pyramid(features, torch.zeros(1, 1, 4, 4), [1.0, 0.5])
