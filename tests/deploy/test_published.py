"""Checkpoints of the public code: outputs agree, and what does not fit is listed.

The golden outputs were computed once with the public code, in float32, from the weights that
`published_state_dict` makes: NumPy's legacy generator gives the same numbers everywhere.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ive

from equiscale import HermiteBasis, ScaleGrid, create_model, list_models, load_published_state_dict
from equiscale.errors import BasisError, CheckpointError
from tests.golden import golden_case

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "published_mnist_outputs.npz") as file:
        return dict(file)


DISCO_REPOSITORY = {
    "mnist_disco",
    "mnist_hermite",
    "mnist_bspline",
    "mnist_fourier_bessel",
    "mnist_log_radial",
}
# Families whose published functions are corrected here, and DISCO, whose were trained.
ADOPTED = {
    "mnist_bspline": "basis_bspline_mnist",
    "mnist_log_radial": "basis_lr_harmonics_mnist",
}
NOT_PUBLISHED = {
    "mnist_gaussian_derivative",
    *list_models("mnist_pyramid_*"),
    *list_models("mnist_rescaled_*"),
    *list_models("mnist_learnable_*"),
}
PUBLISHED = [name for name in list_models("mnist_*") if name not in NOT_PUBLISHED]


def published_state_dict(
    name: str, keys: list[str], shapes: list[str] | None = None
) -> dict[str, torch.Tensor]:
    """A state dict under the published keys, filled as it was for the golden outputs."""
    own = {key: tuple(tensor.shape) for key, tensor in create_model(name).state_dict().items()}
    random, tensors = np.random.RandomState(0), {}
    published = dict(zip(keys, shapes or [""] * len(keys), strict=True))
    for key in sorted(keys):
        last = key.rpartition(".")[2]
        shape = (
            tuple(map(int, published[key].split(","))) if published[key] else own.get(key.removeprefix("1."))
        )
        if (constant := published_constant(name, last, shape)) is not None:
            tensors[key] = constant
        elif last == "num_batches_tracked":
            tensors[key] = torch.tensor(7)
        else:
            assert shape is not None
            values = random.standard_normal(shape).astype(np.float32) * 0.1
            tensors[key] = torch.from_numpy(1 + np.abs(values) if last == "running_var" else values)
    return tensors


def published_constant(name: str, last: str, shape: tuple[int, ...] | None) -> torch.Tensor | None:
    """What the public code computes itself: bases, and the two blurs of the scale space (σ² = 0.1875)."""
    if last.startswith("filter_"):
        return create_model(name).main[0].published_constants()[last].float()  # compared in tests/nn
    if last.startswith("kernel"):
        assert shape is not None
        kernel = torch.from_numpy(ive(np.arange(-4, 5), 0.1875)).float()
        kernel = kernel if last.startswith("kernelx") else kernel[:, None]
        return torch.eye(shape[0])[:, :, None, None] * kernel.expand(shape[2:])
    if last != "basis":
        return None
    if name == "mnist_disco":
        return disco_basis()
    if name in ADOPTED:
        return golden_case(ADOPTED[name])["basis"].float()
    if name in DISCO_REPOSITORY:
        return create_model(name).main[0].basis.clone()  # compared with the published ones in tests/basis
    return golden_case(f"basis_hermite_b_{name}")["basis"].float()


def disco_basis() -> torch.Tensor:
    """Kind B over the published pixels: the Hermite functions of width 1.9, 1.9 / 1.5, … on 7×7 pixels."""
    pixels = golden_case("basis_disco_published_15")["basis"].double()
    family = HermiteBasis(7, "B", max_order=4, mult=1.5, degenerate="allow")
    combinations = family.sample(7, ScaleGrid([1.9])).flatten(1)
    basis = (combinations @ pixels.flatten(1)).view(pixels.shape)
    return (basis / basis[:, :1].square().sum((2, 3), keepdim=True).sqrt()).float()


def golden_logits(name: str, published: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    shapes = published[f"{name}/shapes"].tolist() if f"{name}/shapes" in published else None
    return published_state_dict(name, published[f"{name}/keys"].tolist(), shapes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_outputs_agree_with_the_public_code(name: str, published: dict[str, np.ndarray]) -> None:
    model = create_model(name)
    adopt = name in ADOPTED or name == "mnist_disco"
    load_published_state_dict(model, golden_logits(name, published), adopt_bases=adopt)
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
    with pytest.raises(
        CheckpointError, match=r"main\.0\.basis: another constant .* the scales or the basis differ"
    ):
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


def test_trained_bases_are_adopted_on_request_alone(published) -> None:
    state = golden_logits("mnist_disco", published)
    model = create_model("mnist_disco")
    with pytest.raises(CheckpointError, match=r"main\.0\.basis: another constant .* adopt_bases=True"):
        load_published_state_dict(model, state)
    load_published_state_dict(model, state, adopt_bases=True)
    assert torch.equal(model.main[0].basis, state["main.1.basis.basis"])
    assert "AdoptedBasis" in repr(model.main[0])
    with pytest.raises(BasisError, match=r"expected the kernel of 15 pixels .* got 17 and"):
        model.main[0].family.sample(17, model.main[0].grid)


def test_adopted_bases_are_saved_and_not_forgotten(published) -> None:
    model = create_model("mnist_disco").eval()
    load_published_state_dict(model, golden_logits("mnist_disco", published), adopt_bases=True)
    saved = model.state_dict()
    fresh = create_model("mnist_disco").eval()
    with pytest.raises(RuntimeError, match=r"main\.0\.basis"):
        fresh.load_state_dict(saved)
    load_published_state_dict(fresh, saved, adopt_bases=True)
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(fresh(images), model(images))


def test_a_broken_basis_is_not_adopted(published) -> None:
    state = golden_logits("mnist_disco", published)
    state["main.1.basis.basis"][0, 0, 7, 7] = torch.nan
    with pytest.raises(CheckpointError, match=r"main\.0\.basis: expected finite values, got 1 that are not"):
        load_published_state_dict(create_model("mnist_disco"), state, adopt_bases=True)


def test_a_checkpoint_of_another_blur_is_refused_although_its_shapes_fit(published) -> None:
    state = golden_logits("mnist_dss_vector_28", published)
    with pytest.raises(CheckpointError, match=r"main\.0\.kernelx_0: (another|expected a) constant"):
        load_published_state_dict(create_model("mnist_dss_vector_28", zero_scale=0.26), state)


def test_the_unused_weight_of_published_vector_norms_is_one_and_that_of_ours_is_kept(published) -> None:
    name = "mnist_sevf_vector_28"
    state, model = golden_logits(name, published), create_model(name)
    assert not torch.equal(state["bn1.weight"], torch.ones(1, 23, 1, 1))
    load_published_state_dict(model, state)
    assert torch.equal(model.main[2].weight, torch.ones(1, 23, 1, 1))
    with torch.no_grad():
        model.main[2].weight.fill_(0.5)
    fresh = create_model(name)
    load_published_state_dict(fresh, model.state_dict())
    assert torch.equal(fresh.main[2].weight, model.main[2].weight)


def test_published_columns_are_put_into_our_order(published) -> None:
    state = golden_logits("mnist_xu_28", published)
    model = create_model("mnist_xu_28")
    load_published_state_dict(model, state)
    channel, scale = 5, 3
    assert model.main[3].bias[channel * 7 + scale] == state["main.3.bias"][scale * 32 + channel]
