"""Padding "same" means half the kernel."""

import pytest
import torch

from equiscale.functional import ConvGeometry, lift_conv2d


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_same_is_half_the_kernel_whatever_the_stride(stride: int) -> None:
    x, weight, basis = torch.randn(1, 2, 11, 8), torch.randn(3, 2, 4), torch.randn(4, 2, 5, 5)
    same = lift_conv2d(x, weight, basis, geometry=ConvGeometry(stride=stride, padding="same"))
    half = lift_conv2d(x, weight, basis, geometry=ConvGeometry(stride=stride, padding=2))
    assert torch.equal(same, half)
    assert same.shape[-2:] == (-(-11 // stride), -(-8 // stride))
