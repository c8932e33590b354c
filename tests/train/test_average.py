"""The moving average of weights, against a loop over single numbers."""

import pytest
import torch
from torch import nn

from equiscale.train import WeightAverage, weights_of


def random_weights(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(seed)
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.9])
def test_the_average_is_that_of_a_slow_loop(decay: float) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).double()
    average = WeightAverage(model, decay)
    expected = {name: tensor.flatten().tolist() for name, tensor in model.state_dict().items()}
    for step in range(1, 40):
        random_weights(model, step)
        average.update(model)
        keep = min(decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            for index, value in enumerate(tensor.flatten().tolist()):
                counts = name.endswith("num_batches_tracked")
                old = expected[name][index]
                expected[name][index] = value if counts else keep * old + (1 - keep) * value
    assert average.steps == 39
    assert "1.running_var" in expected
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(
            tensor.flatten(), torch.tensor(expected[name], dtype=tensor.dtype), rtol=1e-12, atol=1e-12
        )


def test_weights_are_lent_and_come_back_even_after_an_error() -> None:
    model = nn.BatchNorm1d(2)
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    with weights_of(model, other):
        assert model.weight.tolist() == [2.0, 2.0]
    assert model.weight.tolist() == [1.0, 1.0]
    with pytest.raises(ZeroDivisionError), weights_of(model, other):
        raise ZeroDivisionError
    assert model.weight.tolist() == [1.0, 1.0]
    assert int(model.num_batches_tracked) == 0
    with weights_of(model, None):
        assert model.weight.tolist() == [1.0, 1.0]


def test_the_average_does_not_share_memory_with_the_weights() -> None:
    model = nn.Linear(1, 1)
    average = WeightAverage(model, 0.9)
    before = average.tensors["weight"].clone()
    nn.init.constant_(model.weight, 7.0)
    assert torch.equal(average.tensors["weight"], before)
