import pytest
import torch

from equiscale.errors import SettingError, ShapeError
from equiscale.functional import scale_channel_dropout, scale_dropout2d

COVERS = {"scale_dropout2d", "scale_channel_dropout"}

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
