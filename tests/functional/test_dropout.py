import pytest
import torch

from equiscale.errors import SettingError, ShapeError
from equiscale.functional import scale_channel_dropout, scale_dropout2d, value_dropout
from tests.memory import MAP_ORDERS, laid

COVERS = {"scale_dropout2d", "scale_channel_dropout", "value_dropout"}

DROPOUTS = [(scale_dropout2d, 1), (scale_channel_dropout, 2)]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize(("dropout", "axis"), DROPOUTS)
def test_the_mask_is_constant_over_all_other_axes(dropout, axis: int) -> None:
    y = dropout(torch.ones(40, 5, 6, 3, 4), 0.3, generator=seeded())
    mask = y.select(3 - axis, 0)[..., 0, 0]  # (B, C) or (B, S)
    assert torch.equal(y, mask.reshape(40, *(5, 1) if axis == 1 else (1, 6), 1, 1).expand_as(y))
    assert mask.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    for along in (0, 1):  # images differ from one another, and so do the channels or scales of one
        assert (mask.amax(along) != mask.amin(along)).any()


@pytest.mark.parametrize(("dropout", "axis"), DROPOUTS)
@pytest.mark.parametrize("p", [0.2, 0.7])
def test_the_expectation_is_preserved(dropout, axis: int, p: float) -> None:
    draws = 20_000
    mean = dropout(torch.ones(draws, 1, 1, 1, 1), p, generator=seeded()).mean().item()
    deviation = (p / (1 - p) / draws) ** 0.5
    assert abs(mean - 1) < 4 * deviation


@pytest.mark.parametrize(("dropout", "axis"), DROPOUTS)
def test_a_generator_makes_it_reproducible(dropout, axis: int) -> None:
    x = torch.rand(8, 5, 6, 3, 4, generator=seeded())
    generator = seeded()
    first, second = dropout(x, generator=generator), dropout(x, generator=generator)
    assert torch.equal(dropout(x, generator=seeded()), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    dropout(x, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("dropout", "axis"), DROPOUTS)
def test_evaluation_and_p_zero_are_the_identity(dropout, axis: int) -> None:
    x = torch.rand(2, 3, 4, 5, 6, generator=seeded())
    assert dropout(x, 0.9, training=False) is x
    assert dropout(x, 0.0) is x


def test_channel_mask_commutes_with_shifts_along_scales_and_scale_mask_does_not() -> None:
    x = torch.rand(4, 5, 6, 3, 4, generator=seeded()) + 1
    for dropout, commutes in ((scale_dropout2d, True), (scale_channel_dropout, False)):
        rolled = dropout(x.roll(1, 2), generator=seeded())
        assert torch.equal(rolled, dropout(x, generator=seeded()).roll(1, 2)) == commutes


@pytest.mark.parametrize(("dropout", "axis"), DROPOUTS)
def test_derivatives(dropout, axis: int) -> None:
    x = torch.rand(3, 2, 2, 2, 2, dtype=torch.float64, generator=seeded()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dropout(x, generator=seeded()), (x,))


@pytest.mark.parametrize(("dropout", "axis"), DROPOUTS)
def test_refusals(dropout, axis: int) -> None:
    text = rf"{dropout.__name__}: expected a scale map \(B, C, S, H, W\), got \(2, 3, 8, 8\)"
    with pytest.raises(ShapeError, match=text):
        dropout(torch.zeros(2, 3, 8, 8))
    for p in (1.0, -0.1, float("nan")):
        with pytest.raises(SettingError, match=f"probability p with 0 <= p < 1, got {p}"):
            dropout(torch.zeros(1, 1, 1, 1, 1), p, training=False)


@pytest.mark.parametrize("p", [0.3, 0.7, 1e-3, 1 - 1e-9])
def test_single_values_are_dropped_as_often_as_told_and_the_others_raised(p: float) -> None:
    draws = 300_001  # several blocks, and no multiple of four
    y = value_dropout(torch.ones(draws, dtype=torch.float64), p, generator=seeded())
    rounded = min(round(p * 2**16), 2**16 - 1) / 2**16
    assert abs(rounded - p) <= 2**-16
    assert set(y.unique().tolist()) <= {0.0, 1 / (1 - rounded)}
    deviation = (rounded * (1 - rounded) / draws) ** 0.5
    assert abs((y == 0).double().mean().item() - rounded) < 4 * deviation


def test_single_values_are_dropped_independently() -> None:
    dropped = (value_dropout(torch.ones(200_000), 0.5, generator=seeded()) == 0).double() - 0.5
    for lag in (1, 2, 3, 4, 5, 7, 8, 64, 65536):
        correlation = (dropped[lag:] * dropped[:-lag]).mean().item() * 4
        assert abs(correlation) < 4 / (200_000 - lag) ** 0.5
    first, second = (value_dropout(torch.ones(1000), 0.5, generator=seeded()) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, value_dropout(torch.ones(1000), 0.5, generator=seeded().manual_seed(4)))


def test_single_values_draw_from_the_given_generator_or_from_torchs() -> None:
    x, generator, state = torch.rand(3, 5, generator=seeded()) + 1, seeded(), torch.get_rng_state()
    results = [value_dropout(x, generator=generator) for _ in range(8)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(result.flatten().tolist()) for result in results}) > 1
    torch.manual_seed(3)
    assert torch.equal(value_dropout(x), results[0])
    assert not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)


@pytest.mark.parametrize("order", MAP_ORDERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_of_single_values_has_their_mask_in_every_memory_order(
    order, dtype: torch.dtype
) -> None:
    x = laid(torch.rand(2, 33, 4, 47, 51, generator=seeded()).to(dtype) + 1, order).requires_grad_()
    y = value_dropout(x, 0.5, generator=seeded())
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(gradient, 2 * (y != 0).to(dtype))
    assert torch.equal(y, 2 * x * (y != 0))
    assert x.stride() == y.stride() == gradient.stride()


def test_single_values_have_second_derivatives_and_keep_a_byte_each() -> None:
    x = torch.rand(3, 2, 2, dtype=torch.float64, generator=seeded()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: value_dropout(x**3, generator=seeded()), (x,))
    assert torch.autograd.gradgradcheck(lambda x: value_dropout(x**3, generator=seeded()), (x,))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        value_dropout(x, generator=seeded())
    assert kept == [torch.uint8]


def test_single_values_where_nothing_is_dropped_and_refusals() -> None:
    x = torch.rand(2, 3, generator=seeded())
    assert value_dropout(x, 0.9, training=False) is x
    assert value_dropout(x, 0.0) is x
    assert value_dropout(x[:0], 0.5).shape == (0, 3)
    assert value_dropout(x[0, 0], 0.5).shape == ()
    for p in (1.0, -0.1, float("nan")):
        with pytest.raises(SettingError, match=f"value_dropout: expected a probability p .*, got {p}"):
            value_dropout(x, p, training=False)


def test_single_values_are_dropped_where_the_network_is_compiled() -> None:
    compiled = torch.compile(value_dropout, fullgraph=True, backend="aot_eager")
    y = compiled(torch.ones(4000), 0.5)
    assert set(y.unique().tolist()) == {0.0, 2.0}
