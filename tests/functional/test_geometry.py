"""Padding "same" means half the kernel."""

import pytest
import torch

from equiscale.functional import ConvGeometry, lift_conv2d, synthesize_filters


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_same_is_half_the_kernel_whatever_the_stride(stride: int) -> None:
    x, weight, basis = torch.randn(1, 2, 11, 8), torch.randn(3, 2, 4), torch.randn(4, 2, 5, 5)
    same = lift_conv2d(x, weight, basis, geometry=ConvGeometry(stride=stride, padding="same"))
    half = lift_conv2d(x, weight, basis, geometry=ConvGeometry(stride=stride, padding=2))
    assert torch.equal(same, half)
    assert same.shape[-2:] == (-(-11 // stride), -(-8 // stride))


@pytest.mark.parametrize("padding", [3, 4, 6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(3, 4), (4, 3), (6, 5)])
def test_filters_larger_than_the_map_lose_nothing(size: tuple[int, int], stride: int, padding: int) -> None:
    """Only the part of a filter that meets pixels is computed."""
    x, weight, basis = torch.randn(2, 2, *size), torch.randn(3, 2, 4), torch.randn(4, 1, 9, 9)
    x, weight, basis = x.double(), weight.double(), basis.double()
    whole = torch.nn.functional.conv2d(
        x, synthesize_filters(weight, basis)[:, :, 0], stride=stride, padding=padding
    )
    actual = lift_conv2d(x, weight, basis, geometry=ConvGeometry(stride=stride, padding=padding))
    torch.testing.assert_close(actual[:, :, 0], whole)
