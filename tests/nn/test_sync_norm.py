"""Batch norm over two processes: each layer with unequal shares equals itself on the joined batch."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from equiscale.errors import SettingError, ShapeError
from equiscale.nn import (
    ColumnBatchNorm2d,
    ImageBatchNorm2d,
    ScaleBatchNorm1d,
    ScaleBatchNorm2d,
    ScaleBatchNorm3d,
    VectorFieldBatchNorm2d,
)
from equiscale.nn.sync_norm import shared_statistics
from tests.memory import MAP_ORDERS, laid
from tests.processes import together

BATCH, OWN = 5, (3, 2)  # unequal shares

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "scale map": (lambda: ScaleBatchNorm2d(4), (4, 3, 5, 6)),
    "scale map, cumulative": (lambda: ScaleBatchNorm2d(4, momentum=None), (4, 3, 5, 6)),
    "scale map, bare": (lambda: ScaleBatchNorm2d(4, affine=False), (4, 3, 5, 6)),
    "scale map, untracked": (lambda: ScaleBatchNorm2d(4, track_running_stats=False), (4, 3, 5, 6)),
    "image": (lambda: ImageBatchNorm2d(4), (4, 5, 6)),
    "column": (lambda: ColumnBatchNorm2d(4, 3), (4, 3, 5, 6)),
    "signal": (lambda: ScaleBatchNorm1d(4), (4, 3, 7)),
    "volume": (lambda: ScaleBatchNorm3d(4), (4, 3, 2, 3, 4)),
    "vector field": (lambda: VectorFieldBatchNorm2d(4), (4, 2, 5, 6)),
    "torch, features": (lambda: nn.BatchNorm1d(4), (4,)),
    "torch, image": (lambda: nn.BatchNorm2d(4), (4, 5, 6)),
    "torch, scale map": (lambda: nn.BatchNorm3d(4), (4, 3, 5, 6)),
}
FLAT = {"flat": (lambda: ScaleBatchNorm2d(4), (4, 3, 5, 6))}  # a mean far above the deviation
TOLERANCE = 1e-12


def make(name: str) -> nn.Module:
    layer = ({**CASES, **FLAT})[name][0]().double()
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.rand(parameter.shape, generator=seeded(7 + index)) + 0.5)
    return layer


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """The joined batch, whose images are far from one another, and the gradient of its output."""
    shape = (BATCH, *({**CASES, **FLAT})[name][1])
    x, gradient = (torch.randn(shape, dtype=torch.float64, generator=seeded(seed + i)) for i in range(2))
    x = x * 2 + torch.arange(BATCH).view(-1, *[1] * (x.ndim - 1))
    return (x * 1e-3 + 1e3 if name == "flat" else x), gradient


def passes(layer: nn.Module, name: str, own: slice) -> dict[str, Tensor]:
    """Two steps in training and one pass in evaluation: outputs, gradients, buffers."""
    found = {}
    for step in range(2):
        x, gradient = (tensor[own] for tensor in batch(name, 10 * step))
        x = x.clone().requires_grad_()
        layer.zero_grad()
        y = layer.train()(x)
        y.backward(gradient)
        found |= {f"y{step}": y.detach(), f"dx{step}": x.grad}
        found |= {f"d{key}{step}": parameter.grad.clone() for key, parameter in layer.named_parameters()}
    found["evaluation"] = layer.eval()(batch(name, 99)[0][own]).detach()
    return found | {f"state {key}": value.clone() for key, value in layer.state_dict().items()}


def own_slice(rank: int) -> slice:
    return slice(0, OWN[0]) if rank == 0 else slice(OWN[0], None)


def work(rank: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in {**CASES, **FLAT}:
        layer = make(name)
        with shared_statistics(layer, dist.group.WORLD):
            found[name] = passes(layer, name, own_slice(rank))
        found[f"{name}, alone"] = passes(make(name), name, own_slice(rank))
        found[f"{name}, afterwards"] = "forward" in vars(layer) or "process_group" in vars(layer)
    found["slopes"] = slopes(rank)
    found["orders"] = [in_order(rank, order) for order in MAP_ORDERS]
    found["bfloat16"] = in_bfloat16(rank)
    found["single"] = single_value(rank)
    return found


def energy(layer: nn.Module, x: Tensor) -> Tensor:
    """A function of the joined batch that is not linear in the layer's output, and its sum over all."""
    joined = layer(x).tanh().square().sum()
    dist.all_reduce(value := joined.detach().clone())
    joined.data.copy_(value)
    return joined


def slopes(rank: int) -> list[tuple[float, float]]:
    """For each layer a derivative of the joint function by differences, and from the gradients of both."""
    found = []
    for name in ("scale map", "vector field", "torch, features"):
        layer = make(name).train()
        x = batch(name, 3)[0][own_slice(rank)].clone().requires_grad_()
        direction = torch.randn(x.shape, dtype=x.dtype, generator=seeded(20 + rank))
        with shared_statistics(layer, dist.group.WORLD):
            energy(layer, x).backward()
            slope = (x.grad * direction).sum()
            dist.all_reduce(slope)
            step = 1e-5
            with torch.no_grad():
                ahead, behind = (energy(layer, x + sign * step * direction) for sign in (1, -1))
        found.append((float(slope), float((ahead - behind) / (2 * step))))
    return found


def in_order(rank: int, order: tuple[int, ...]) -> tuple[Tensor, bool]:
    layer, x = make("scale map"), laid(batch("scale map", 0)[0][own_slice(rank)], order)
    with shared_statistics(layer, dist.group.WORLD):
        y = layer(x)
    return y.detach(), y.stride() == x.stride()


def in_bfloat16(rank: int) -> Tensor:
    layer = make("scale map").float()
    with shared_statistics(layer, dist.group.WORLD):
        return layer(batch("scale map", 0)[0][own_slice(rank)].bfloat16()).detach()


def single_value(rank: int) -> tuple[Tensor, str]:
    """One value a channel in each process is enough, of two; one of all together is not."""
    layer = nn.BatchNorm1d(4).double()
    with shared_statistics(layer, dist.group.WORLD):
        y = layer(batch("torch, features", 0)[0][rank : rank + 1]).detach()
        try:
            layer(torch.zeros(1 - rank, 4, dtype=torch.float64))
        except ShapeError as error:
            return y, str(error)
    return y, ""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return together(work, tmp_path_factory.mktemp("norms"))


def joined(processes: list[dict], name: str, key: str) -> Tensor:
    """What the processes found, as of one batch: images side by side, gradients of parameters added."""
    one, other = (found[name][key] for found in processes)
    if key.startswith(("y", "dx", "evaluation")):
        return torch.cat([one, other])
    if key.startswith("state"):
        assert torch.equal(one, other), key
        return one
    return one + other


@pytest.mark.parametrize("name", CASES)
def test_equals_the_layer_on_the_joined_batch(name: str, processes: list[dict]) -> None:
    expected = passes(make(name), name, slice(None))
    if name.endswith("untracked"):  # its evaluation is by the batch, of each process alone
        del expected["evaluation"]
    for key, value in expected.items():
        torch.testing.assert_close(
            joined(processes, name, key),
            value,
            rtol=TOLERANCE,
            atol=TOLERANCE,
            msg=lambda m, k=key: f"{k}: {m}",
        )


def test_loses_no_digits_where_the_mean_is_far_above_the_deviation(processes: list[dict]) -> None:
    """Sums of squares would lose twelve digits of sixteen."""
    expected = passes(make("flat"), "flat", slice(None))
    for key in ("y0", "dx0", "state running_var"):
        torch.testing.assert_close(joined(processes, "flat", key), expected[key], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("untracked")])
def test_without_sharing_it_is_another_function(name: str, processes: list[dict]) -> None:
    expected = passes(make(name), name, slice(None))
    alone = torch.cat([found[f"{name}, alone"]["y0"] for found in processes])
    assert (alone - expected["y0"]).abs().max() > 0.05


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_behind(name: str, processes: list[dict]) -> None:
    assert [found[f"{name}, afterwards"] for found in processes] == [False, False]
    assert [key for key in processes[0][name] if key.startswith("state")] == [
        f"state {key}" for key in make(name).state_dict()
    ]


def test_gradients_are_the_slopes_of_the_joint_function(processes: list[dict]) -> None:
    for found in processes:
        for slope, difference in found["slopes"]:
            assert abs(difference) > 0.01
            assert slope == pytest.approx(difference, rel=1e-6)


def test_results_keep_the_memory_order(processes: list[dict]) -> None:
    layer = make("scale map")
    expected = layer(batch("scale map", 0)[0])
    for (one, kept), (other, _) in zip(*(found["orders"] for found in processes), strict=True):
        torch.testing.assert_close(torch.cat([one, other]), expected, rtol=TOLERANCE, atol=TOLERANCE)
        assert kept


def test_half_precision_is_rounded_once(processes: list[dict]) -> None:
    y = torch.cat([found["bfloat16"] for found in processes])
    assert y.dtype == torch.bfloat16
    expected = make("scale map").float()(batch("scale map", 0)[0].bfloat16().float())
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-6)


def test_one_value_of_each_process_is_enough_and_one_of_all_is_not(processes: list[dict]) -> None:
    expected = nn.BatchNorm1d(4).double()(batch("torch, features", 0)[0][:2])
    torch.testing.assert_close(
        torch.cat([found["single"][0] for found in processes]), expected, rtol=TOLERANCE, atol=TOLERANCE
    )
    for found in processes:
        assert found["single"][1].startswith("expected more than one value a channel in training, got (")


class OwnBatchNorm(nn.BatchNorm2d):
    """Somebody else's, of which nobody knows what its forward pass does."""


@pytest.mark.parametrize("layer", [OwnBatchNorm(3), nn.InstanceNorm2d(3, track_running_stats=True)])
def test_refuses_layers_whose_statistics_it_cannot_share(layer: nn.Module) -> None:
    known, named = nn.BatchNorm2d(3), ScaleBatchNorm2d(3)
    with (
        pytest.raises(SettingError, match=f"can share, got {type(layer).__name__}; train it in one process"),
        shared_statistics(nn.Sequential(known, named, layer), object()),  # type: ignore[arg-type]
    ):
        pass
    assert "forward" not in vars(known)
    assert named.process_group is None


def test_layers_without_statistics_of_the_batch_are_left_alone() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(3), nn.LayerNorm(3), nn.Conv2d(3, 3, 1))
    with shared_statistics(model, object()):  # type: ignore[arg-type]
        assert all("forward" not in vars(module) for module in model.modules())
