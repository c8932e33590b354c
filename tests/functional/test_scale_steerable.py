import math

import pytest
import torch
from torch.nn.functional import conv2d

from equiscale.errors import ShapeError
from equiscale.functional import ConvGeometry, scale_steered_conv2d, steer_in_scale

COVERS = {"scale_steered_conv2d", "steer_in_scale"}

OMEGA = [1.3, 2.9]


def harmonics(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / r exp(i ω ln r), two orders and two directions, zero at the centre."""
    x = torch.arange(size, dtype=torch.float64) - size // 2
    rows, columns = x[:, None].expand(size, size), x.expand(size, size)
    radius = torch.hypot(rows, columns).clamp_min(0.5)
    angles = torch.stack([1 + rows / radius, 2 - columns / radius]) * ((rows != 0) | (columns != 0))
    phase = torch.tensor(OMEGA, dtype=torch.float64)[:, None, None, None] * radius.log()
    return angles * phase.cos() / radius, angles * phase.sin() / radius


def steered(frequencies: list[float]) -> torch.Tensor:
    return steer_in_scale(*harmonics(27), frequencies=frequencies, ratios=[1.0, 3.0], windows=[9, 27])


def test_steering_scales_the_harmonics_but_for_the_amplitude() -> None:
    """Size 27 at every third pixel is size 9: exact, and not so where the phase is not turned."""
    basis = steered(OMEGA)
    small, large = basis[:, 0, 9:18, 9:18], basis[:, 1, 1::3, 1::3]
    torch.testing.assert_close(3 * large, small, rtol=0, atol=1e-14)
    unsteered = steered([0.0, 0.0])
    assert not torch.allclose(3 * unsteered[:, 1, 1::3, 1::3], unsteered[:, 0, 9:18, 9:18], atol=0.1)
    opposite = steered([-omega for omega in OMEGA])
    assert not torch.allclose(3 * opposite[:, 1, 1::3, 1::3], opposite[:, 0, 9:18, 9:18], atol=0.1)


def test_stays_on_the_device_of_the_harmonics() -> None:
    """On the device without values, where no other may take part."""
    real, imag = (part.to("meta") for part in harmonics(9))
    basis = steer_in_scale(real, imag, frequencies=OMEGA, ratios=[0.7, 1.0], windows=[7, 9])
    assert (basis.device.type, tuple(basis.shape)) == ("meta", (8, 2, 9, 9))


def test_filters_are_the_real_part_of_the_complex_product(generator: torch.Generator) -> None:
    real, imag = harmonics(7)
    a, b = torch.randn(2, 2, 2, dtype=torch.float64, generator=generator)
    basis = steer_in_scale(real, imag, frequencies=OMEGA, ratios=[0.6, 1.4], windows=[5, 7])
    weights = torch.cat([a, b]).flatten()
    for scale, (ratio, window) in enumerate([(0.6, 5), (1.4, 7)]):
        expected = torch.zeros(7, 7, dtype=torch.float64)
        for order, omega in enumerate(OMEGA):
            turn = torch.polar(
                torch.ones((), dtype=torch.float64),
                torch.tensor(-omega * math.log(ratio), dtype=torch.float64),
            )
            for direction in range(2):
                complex_weight = torch.complex(a[order, direction], b[order, direction]) * turn
                function = torch.complex(real[order, direction], imag[order, direction])
                expected += (complex_weight * function).real
        margin = (7 - window) // 2
        cut = torch.zeros_like(expected)
        inner = slice(margin, 7 - margin)
        cut[inner, inner] = expected[inner, inner]
        torch.testing.assert_close(
            torch.einsum("f,fhw->hw", weights, basis[:, scale]), cut, rtol=0, atol=1e-14
        )


@pytest.mark.parametrize("geometry", [{"padding": 2}, {"padding": "same", "stride": 2}, {"groups": 2}])
def test_convolution_is_the_strongest_of_all_sizes(geometry: dict, generator: torch.Generator) -> None:
    groups = geometry.get("groups", 1)
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64, generator=generator)
    real, imag = torch.randn(2, 3, 6, 4 // groups, 2, dtype=torch.float64, generator=generator)
    basis = torch.randn(12, 3, 5, 5, dtype=torch.float64, generator=generator)
    y = scale_steered_conv2d(x, real, imag, basis, geometry=ConvGeometry(**geometry))
    answers = []
    for scale in range(3):
        filters = torch.zeros(6, 4 // groups, 5, 5, dtype=torch.float64)
        for order in range(3):
            for direction in range(2):
                function = order * 2 + direction
                filters += real[order, :, :, direction, None, None] * basis[function, scale]
                filters += imag[order, :, :, direction, None, None] * basis[6 + function, scale]
        margin = 2 if geometry.get("padding") else 0
        answers.append(conv2d(x, filters, stride=geometry.get("stride", 1), padding=margin, groups=groups))
    torch.testing.assert_close(y, torch.stack(answers).amax(0), rtol=0, atol=1e-12)


def test_gradients(generator: torch.Generator) -> None:
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    real, imag = torch.randn(2, 1, 2, 2, 2, dtype=torch.float64, generator=generator)
    basis = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=generator)
    operands = (x, real.requires_grad_(), imag.requires_grad_(), basis.requires_grad_())
    assert torch.autograd.gradcheck(scale_steered_conv2d, operands)


ONES = torch.ones(2, 3, 5, 5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"imag": ONES[:1]}, r"one shape with odd K, got \(2, 3, 5, 5\) and \(1, 3, 5, 5\)"),
        ({"real": ONES[..., :4], "imag": ONES[..., :4]}, r"got \(2, 3, 5, 4\) and"),
        ({"frequencies": [1.0]}, "2 frequencies, one an order, got 1"),
        (
            {"ratios": [1.0]},
            r"as many positive ratios as odd windows of at most 5 pixels, got \[1\.0\] and \[3, 5\]",
        ),
        ({"ratios": [0.0, 1.0]}, r"positive ratios .* got \[0\.0, 1\.0\]"),
        ({"windows": [3, 7]}, r"odd windows of at most 5 pixels, got .* and \[3, 7\]"),
        ({"windows": [2, 5]}, r"odd windows of at most 5 pixels, got .* and \[2, 5\]"),
    ],
)
def test_steering_refuses_what_does_not_fit(change: dict, text: str) -> None:
    legal = {"real": ONES, "imag": ONES, "frequencies": [1.0, 2.0], "ratios": [0.6, 1.0], "windows": [3, 5]}
    options = {**legal, **change}
    with pytest.raises(ShapeError, match="steer_in_scale: expected .*" + text):
        steer_in_scale(options.pop("real"), options.pop("imag"), **options)


@pytest.mark.parametrize(
    ("real", "imag", "text"),
    [
        ((2, 4, 3, 5), (2, 4, 3, 4), r"of one shape, got \(2, 4, 3, 5\) and \(2, 4, 3, 4\)"),
        ((4, 3, 5), (4, 3, 5), r"two weights \(N, C', C / groups, J\) of one shape, got \(4, 3, 5\)"),
        ((2, 4, 3, 4), (2, 4, 3, 4), r"F=20 as in the basis, got \(4, 3, 16\)"),
    ],
)
def test_convolution_refuses_weights_that_do_not_fit(real, imag, text: str) -> None:
    with pytest.raises(ShapeError, match="expected .*" + text):
        scale_steered_conv2d(
            torch.zeros(1, 3, 8, 8), torch.zeros(real), torch.zeros(imag), torch.zeros(20, 2, 5, 5)
        )
