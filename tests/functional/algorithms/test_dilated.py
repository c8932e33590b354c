"""Dilated filters: found where they are, and nowhere else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from equiscale.basis import DiscoBasis, HermiteBasis
from equiscale.functional import ConvGeometry, scale_conv2d, support_windows
from equiscale.functional.algorithms import Convolution, algorithm
from equiscale.functional.algorithms import dilated as module
from equiscale.functional.algorithms.dilated import dilations
from equiscale.nn import LiftConv2d
from equiscale.scales import ScaleGrid


def convolution(basis: Tensor, size: int = 12, padding: int | str = "same") -> Convolution:
    scales, generator = basis.shape[1], torch.Generator().manual_seed(0)
    return Convolution(
        torch.randn(2, 2, scales, size, size - 1, dtype=basis.dtype, generator=generator),
        torch.randn(3, 2, 1, len(basis), dtype=basis.dtype, generator=generator),
        basis,
        None,
        ConvGeometry(padding=padding),
        support_windows(basis),
    )


def on_grid(step: int, side: int = 13) -> Tensor:
    """One function on one scale that is not zero on every multiple of the step from the centre."""
    basis, first = torch.zeros(1, 1, side, side, dtype=torch.float64), side // 2 % step
    values = torch.arange(1.0, side**2 + 1, dtype=torch.float64).sin().view(side, side)
    basis[..., first::step, first::step] = values[first::step, first::step]
    return basis


class Convolved:
    """What was given to torch's convolution: kernel sizes and dilations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int]] = []
        original = module.conv2d

        def spy(x, filters, bias, stride, padding, dilation, groups):
            self.calls.append((filters.shape[-1], dilation))
            return original(x, filters, bias, stride, padding, dilation, groups)

        monkeypatch.setattr(module, "conv2d", spy)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6])
def test_finds_the_step_of_the_grid(step: int) -> None:
    assert dilations(convolution(on_grid(step))) == (step,)


@pytest.mark.parametrize("step", [2, 3, 6])
def test_a_single_value_off_the_grid_counts(step: int) -> None:
    basis = on_grid(step)
    basis[..., 6, 7] = 1e-30
    assert dilations(convolution(basis)) == (1,)


def test_a_pixel_and_nothing_at_all_need_one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    basis = torch.zeros(1, 2, 5, 5)
    basis[:, 0, 2, 2] = 1
    convolved = Convolved(monkeypatch)
    with algorithm("dilated"):
        y = scale_conv2d(*operands_of(convolution(basis)), windows=(5, 5))
    assert [size for size, _ in convolved.calls] == [1, 1]
    assert y[:, :, 1].abs().max() == 0
    assert y[:, :, 0].abs().max() > 0


def operands_of(operands: Convolution) -> tuple[Tensor, Tensor, Tensor]:
    return operands.x, operands.weight, operands.basis


def test_integer_scales_of_disco_are_small_dilated_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LiftConv2d(2, 3, kernel_size=9, grid=ScaleGrid([1.0, 1.5, 2.0, 3.0, 4.0]), basis=DiscoBasis(3))
    convolved = Convolved(monkeypatch)
    with algorithm("dilated"):
        layer(torch.randn(1, 2, 12, 12))
    ratios = [1, 2, 3, 4]
    assert [call for call in convolved.calls if call[0] == 3] == [(3, ratio) for ratio in ratios]
    assert len(convolved.calls) == 5
    assert next(call for call in convolved.calls if call[0] > 3)[1] == 1


def test_other_families_go_as_cropped(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LiftConv2d(2, 3, kernel_size=7, grid=ScaleGrid([0.9, 1.4]), basis=HermiteBasis(3))
    convolved = Convolved(monkeypatch)
    with algorithm("dilated"):
        layer(torch.randn(1, 2, 12, 12))
    assert convolved.calls == [(window, 1) for window in layer.windows]


@pytest.mark.parametrize("padding", [0, 1, 3, "same", 8])
@pytest.mark.parametrize("mode", ["zeros", "replicate", "circular"])
@pytest.mark.parametrize("cut", [13, 11, 9])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_windows_that_end_between_the_grids_pixels(
    step: int, cut: int, mode: str, padding: int | str
) -> None:
    """A window may be wider than its outermost pixel on the grid."""
    basis = on_grid(step)
    margin = (13 - cut) // 2
    basis[..., :margin, :] = basis[..., 13 - margin :, :] = 0
    basis[..., :margin] = basis[..., 13 - margin :] = 0
    operands = convolution(basis, size=14, padding=padding)
    geometry = replace(operands.geometry, padding_mode=mode)
    results = []
    for name in ("dense", "dilated"):
        with algorithm(name):  # type: ignore[arg-type]
            results.append(scale_conv2d(*operands_of(operands), geometry=geometry, windows=(cut,)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-10)


def test_a_learned_basis_has_gradients_off_the_grid() -> None:
    basis = on_grid(3).requires_grad_()
    operands = convolution(basis)
    assert dilations(operands) == (1,)
    with torch.no_grad():
        assert dilations(operands) == (3,)
    with algorithm("dilated"):
        scale_conv2d(*operands_of(operands), geometry=operands.geometry).square().sum().backward()
    assert basis.grad is not None
    assert (basis.grad != 0).all()


def test_the_step_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LiftConv2d(2, 3, kernel_size=5, grid=ScaleGrid([1.0, 2.0]), basis=DiscoBasis(3))
    count: list[Tensor] = []
    original = module._dilation
    monkeypatch.setattr(module, "_dilation", lambda occupied: count.append(occupied) or original(occupied))
    with algorithm("dilated"):
        for _ in range(3):
            layer(torch.randn(1, 2, 8, 8))
    assert len(count) == 2
