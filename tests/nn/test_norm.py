import math

import pytest
import torch
from torch import nn

from equiscale.errors import SettingError, ShapeError
from equiscale.nn import (
    ColumnBatchNorm2d,
    ImageBatchNorm2d,
    ScaleBatchNorm1d,
    ScaleBatchNorm2d,
    ScaleBatchNorm3d,
)
from tests.memory import IMAGE_ORDERS, MAP_ORDERS, laid

COVERS = {"ScaleBatchNorm2d", "ImageBatchNorm2d"}


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(3, 4, 5, 6, 7, dtype=torch.float64, generator=generator) * 2 + 1


def test_equals_batch_norm_in_three_dimensions_and_shares_its_keys(x: torch.Tensor) -> None:
    ours, theirs = ScaleBatchNorm2d(4, momentum=0.3).double(), nn.BatchNorm3d(4, momentum=0.3).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for mode in (True, True, False):
        assert torch.equal(ours.train(mode)(x), theirs.train(mode)(x))
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def test_one_mean_and_variance_a_channel_over_all_scales(x: torch.Tensor) -> None:
    y = ScaleBatchNorm2d(4).double()(x)
    torch.testing.assert_close(y.mean((0, 2, 3, 4)), torch.zeros(4).double(), rtol=0, atol=1e-12)
    assert y.mean((0, 3, 4)).abs().max() > 0.01  # a single scale keeps its own mean


def test_shifts_along_scales_commute_in_evaluation_but_for_what_leaves_in_training(x: torch.Tensor) -> None:
    norm = ScaleBatchNorm2d(4).double()
    norm(x)
    shifted = torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], dim=2)
    inside = (slice(None), slice(None), slice(1, None))
    for mode, commutes in ((False, True), (True, False)):
        norm.train(mode)
        assert torch.equal(norm(shifted)[inside], norm(x)[:, :, :-1]) == commutes


NORMS = [(ScaleBatchNorm2d, nn.BatchNorm3d, order) for order in MAP_ORDERS]
NORMS += [(ImageBatchNorm2d, nn.BatchNorm2d, order) for order in IMAGE_ORDERS]


@pytest.mark.parametrize(("ours", "theirs", "order"), NORMS)
@pytest.mark.parametrize("options", [{}, {"momentum": None, "affine": False}, {"track_running_stats": False}])
def test_equals_torch_in_every_memory_order_with_derivatives_and_statistics(
    ours, theirs, order, options: dict, x: torch.Tensor
) -> None:
    x = laid(x if len(order) == 5 else x[:, :, 0], order).requires_grad_()
    norm, reference = ours(4, **options).double(), theirs(4, **options).double()
    weights = torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    for mode in (True, True, False):
        y, expected = norm.train(mode)(x), reference.train(mode)(x.detach().contiguous())
        torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
        assert y.stride() == x.stride()
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[key], value, rtol=1e-14, atol=0)
    plain = x.detach().contiguous().requires_grad_()
    results = [norm.train()(x), reference.train()(plain)]
    gradients = [
        torch.autograd.grad(y.square(), (source, *module.parameters()), weights)
        for y, source, module in zip(results, (x, plain), (norm, reference), strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)
    assert gradients[0][0].stride() == x.stride()


@pytest.mark.parametrize("norm", [ScaleBatchNorm2d(2), ImageBatchNorm2d(2)])
def test_second_derivatives_in_an_unusual_memory_order(norm, generator: torch.Generator) -> None:
    order = MAP_ORDERS[2] if isinstance(norm, ScaleBatchNorm2d) else IMAGE_ORDERS[2]
    shape = (2, 2, 2, 2, 3) if len(order) == 5 else (2, 2, 2, 3)
    x = laid(torch.randn(shape, dtype=torch.float64, generator=generator), order).requires_grad_()
    assert torch.autograd.gradgradcheck(norm.double(), (x,))


def test_bfloat16_and_tensors_with_gaps_are_normalised_too(x: torch.Tensor) -> None:
    norm, gaps = ScaleBatchNorm2d(4).double(), x[..., ::2].permute(0, 1, 2, 4, 3)
    expected = nn.BatchNorm3d(4).double()(gaps.contiguous())
    torch.testing.assert_close(norm(gaps), expected, rtol=1e-13, atol=1e-13)
    half = laid(x.bfloat16(), MAP_ORDERS[2])
    y, expected = ScaleBatchNorm2d(4)(half), nn.BatchNorm3d(4)(half.contiguous())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)


EVERY_NORM = pytest.mark.parametrize(
    ("norm", "axes"),
    [(ScaleBatchNorm2d, 3), (ImageBatchNorm2d, 2), (ScaleBatchNorm1d, 2), (ScaleBatchNorm3d, 4)],
)


@EVERY_NORM
def test_one_value_a_channel_is_refused_where_the_statistics_are_the_batchs(norm, axes: int) -> None:
    one, two = torch.zeros(1, 4, *[1] * axes), torch.zeros(2, 4, *[1] * axes)
    untracked = norm(4, track_running_stats=False)
    message = (
        rf"{norm.__name__}: expected more than one value a channel in training, got \(1, 4(, 1){{{axes}}}\)"
    )
    for layer in (norm(4), untracked, untracked.eval()):
        with pytest.raises(ShapeError, match=message + "; a variance needs two, use larger batches or eval"):
            layer(one)
        assert torch.equal(layer(two), two)
    layer = norm(4)
    with pytest.raises(ShapeError, match=message):
        layer(one)
    assert int(layer.num_batches_tracked) == 0
    assert torch.equal(layer.eval()(one), one)
    assert layer.train()(one[:0]).shape == one[:0].shape


def test_one_value_a_channel_of_this_process_may_have_partners_in_others_but_in_evaluation() -> None:
    layer, one = ScaleBatchNorm2d(4, track_running_stats=False), torch.zeros(1, 4, 1, 1, 1)
    layer.process_group = object()  # only whether there is one counts here
    layer.check_values(one)
    with pytest.raises(ShapeError, match="expected more than one value a channel"):
        layer.eval().check_values(one)


def test_one_value_a_channel_is_refused_in_every_memory_order() -> None:
    for order in MAP_ORDERS:
        with pytest.raises(ShapeError, match="expected more than one value a channel"):
            ScaleBatchNorm2d(4)(laid(torch.zeros(1, 4, 1, 1, 1), order))


@EVERY_NORM
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_features": 0}, "expected num_features of at least 1, got 0"),
        ({"num_features": -1}, "expected num_features of at least 1, got -1"),
        ({"num_features": True}, "expected num_features of at least 1, got True"),
        ({"num_features": 4.0}, "expected num_features of at least 1, got 4.0"),
        ({"num_features": "4"}, "expected num_features of at least 1, got '4'"),
        ({"num_features": 2**31}, "expected num_features of at least 1, got 2147483648"),
        ({"eps": -1e-5}, "expected a finite eps of at least 0, got -1e-05"),
        ({"eps": math.nan}, "expected a finite eps of at least 0, got nan"),
        ({"eps": math.inf}, "expected a finite eps of at least 0, got inf"),
        ({"eps": "1e-5"}, "expected a finite eps of at least 0, got '1e-5'"),
        ({"eps": None}, "expected a finite eps of at least 0, got None"),
        ({"momentum": -0.1}, r"expected a momentum in \[0, 1\] or None, got -0.1"),
        ({"momentum": 1.1}, r"expected a momentum in \[0, 1\] or None, got 1.1"),
        ({"momentum": math.nan}, r"expected a momentum in \[0, 1\] or None, got nan"),
        ({"momentum": "0.1"}, r"expected a momentum in \[0, 1\] or None, got '0.1'"),
        ({"momentum": False}, r"expected a momentum in \[0, 1\] or None, got False"),
    ],
)
def test_illegal_settings_are_refused(norm, axes: int, settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        norm(**{"num_features": 4, **settings})


@EVERY_NORM
def test_inputs_that_are_no_filled_tensors_are_refused(norm, axes: int) -> None:
    shape = (2, 4, *[3] * axes)
    for wrong, error, message in (
        (torch.zeros(shape).numpy(), SettingError, "expected a tensor, got ndarray"),
        (torch.zeros(shape).long(), SettingError, "expected floating-point numbers, got torch.int64"),
        (torch.zeros(shape)[..., :0], ShapeError, r"expected no empty axis but the batch, got \(2, 4"),
        (torch.zeros(2, 5, *[3] * axes), ShapeError, r"expected (a scale map|an image) \(B, 4,"),
        (torch.zeros(shape)[0], ShapeError, r"expected (a scale map|an image) \(B, 4,"),
    ):
        for layer in (norm(4), norm(4).eval()):
            with pytest.raises(error, match=f"{norm.__name__}: {message}"):
                layer(wrong)
            assert int(layer.num_batches_tracked) == 0


@EVERY_NORM
def test_takes_torchs_arguments_in_torchs_order(norm, axes: int) -> None:
    ours = norm(4, 1e-3, None, False, False, "cpu", torch.float64)
    theirs = nn.BatchNorm2d(4, 1e-3, None, False, False, "cpu", torch.float64)
    names = ["num_features", "eps", "momentum", "affine", "track_running_stats", "weight", "running_mean"]
    assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]
    assert norm(4, dtype=torch.float64).weight.dtype == torch.float64
    assert norm(4, device="meta").running_var.is_meta
    with pytest.raises(TypeError, match="unexpected keyword argument 'gamma'"):
        norm(4, gamma=True)


def test_a_column_is_never_empty() -> None:
    norm = ColumnBatchNorm2d(4, 3)
    with pytest.raises(
        ShapeError, match=r"ColumnBatchNorm2d: expected no empty axis but the batch, got \(2, 4,"
    ):
        norm(torch.zeros(2, 4, 3, 5, 0))
    assert int(norm.num_batches_tracked) == 0
