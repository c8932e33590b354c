import pytest
import torch
from torch import nn

from equiscale.nn import ScaleBatchNorm2d

COVERS = {"ScaleBatchNorm2d"}


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
