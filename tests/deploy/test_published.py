"""Checkpoints of the public code: outputs agree, and what does not fit is listed.

The golden outputs were computed once with the public code, in float32, from the weights that
`published_state_dict` makes: NumPy's legacy generator gives the same numbers everywhere.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from equiscale import create_model, list_models, load_published_state_dict
from equiscale.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "published_mnist_outputs.npz") as file:
        return dict(file)


def published_state_dict(name: str, keys: list[str]) -> dict[str, torch.Tensor]:
    """A state dict under the published keys, filled as it was for the golden outputs."""
    shapes = {key: tensor.shape for key, tensor in create_model(name).state_dict().items()}
    random, tensors = np.random.RandomState(0), {}
    for key in sorted(keys):
        last = key.rpartition(".")[2]
        if last == "basis":
            with np.load(GOLDEN / f"basis_hermite_b_{name}.npz") as file:
                tensors[key] = torch.from_numpy(file["basis"])
        elif last == "num_batches_tracked":
            tensors[key] = torch.tensor(7)
        else:
            values = random.standard_normal(tuple(shapes[key.removeprefix("1.")])).astype(np.float32) * 0.1
            tensors[key] = torch.from_numpy(1 + np.abs(values) if last == "running_var" else values)
    return tensors


@pytest.mark.parametrize("name", list_models("mnist_*"))
def test_outputs_agree_with_the_public_code(name: str, published: dict[str, np.ndarray]) -> None:
    model = create_model(name)
    load_published_state_dict(model, published_state_dict(name, published[f"{name}/keys"].tolist()))
    images = np.random.RandomState(1).standard_normal((4, 1, 28, 28)).astype(np.float32)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(images))
    torch.testing.assert_close(logits, torch.from_numpy(published[name]), rtol=1e-4, atol=1e-4)


def test_data_parallel_prefixes_are_taken_off(published: dict[str, np.ndarray]) -> None:
    state = published_state_dict("mnist_cnn_56", published["mnist_cnn_56/keys"].tolist())
    model = create_model("mnist_cnn_56")
    load_published_state_dict(model, {f"module.{key}": tensor for key, tensor in state.items()})
    assert torch.equal(model.main[0].weight, state["1.main.0.weight"])


def test_a_checkpoint_of_another_grid_is_refused_although_its_shapes_fit(published) -> None:
    state = published_state_dict("mnist_ses_vector_28", published["mnist_ses_vector_28/keys"].tolist())
    other = create_model("mnist_ses_vector_28", mult=1.4)
    before = other.main[0].weight.clone()
    with pytest.raises(CheckpointError, match=r"main\.0\.basis: another basis .* the scales or mult differ"):
        load_published_state_dict(other, state)
    assert torch.equal(other.main[0].weight, before), "nothing may be loaded"


def test_everything_that_does_not_fit_is_listed(published) -> None:
    state = published_state_dict("mnist_cnn_28", published["mnist_cnn_28/keys"].tolist())
    state["main.0.weight"] = torch.zeros(32, 1, 5, 5)
    state["main.0.bias"] = torch.full((32,), torch.nan)
    state["extra"] = torch.zeros(1)
    del state["linear.4.bias"]
    with pytest.raises(CheckpointError) as caught:
        load_published_state_dict(create_model("mnist_cnn_28"), state)
    message = str(caught.value)
    for complaint in (
        "got 4 tensors that do not fit",
        "linear.4.bias: missing, expected (10,)",
        "extra: not part of this network",
        "main.0.weight: expected (32, 1, 7, 7), got (32, 1, 5, 5)",
        "main.0.bias: expected finite values, got 32 that are not",
    ):
        assert complaint in message


def test_a_wrapped_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match="expected tensors in the state dict, got dict as 'state_dict'"):
        load_published_state_dict(create_model("mnist_cnn_28"), {"state_dict": {}})
