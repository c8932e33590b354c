"""What a trained network looks like: filters, features of a digit at three sizes, equivariance."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equiscale.data import Dataset, normalize
from equiscale.errors import SettingError
from equiscale.experiments.records import LayerEquivariance
from equiscale.functional import synthesize_filters
from equiscale.functional.rescale import rescale
from equiscale.models.mnist import MnistNetwork
from equiscale.nn import SteerableConv2d
from equiscale.testing import equivariance_error

_FILTERS = 8
_SAMPLES = 24
_PROBES = 32
# The factor between the sizes of a probe digit where the network has no scale grid of its own.
_PLAIN_STEP = 1.5

Arrays = dict[str, NDArray[np.generic]]


@torch.no_grad()
def inspect_network(network: MnistNetwork, test: Dataset, predictions: Tensor) -> Arrays:
    """The arrays behind the report's pictures, small enough to keep beside a record.

    Returns:
        ``samples``, ``sample_labels``, ``sample_predictions``, ``sample_factors``; for every
        convolution ``filters/NAME`` ``(n, S, K, K)``, ``filter_scales/NAME`` ``(S,)`` and
        ``features/NAME`` ``(3, S, H, W)`` for the digit ``feature_inputs`` at the sizes
        ``feature_factors``.
    """
    arrays: Arrays = {
        "samples": test.images[:_SAMPLES, 0].numpy(),
        "sample_labels": test.labels[:_SAMPLES].numpy(),
        "sample_predictions": predictions[:_SAMPLES].numpy(),
        "sample_factors": test.factors[:_SAMPLES].numpy(),
    }
    step = _scale_step(network)
    factors = torch.tensor([step**-2, step**-1, 1.0], dtype=torch.float64)
    digit = test.images[int(test.factors.argmax())].float()  # (1, H, W)
    sizes = rescale(digit.expand(3, -1, -1, -1), factors).round().clamp(0, 255)
    arrays["feature_inputs"], arrays["feature_factors"] = sizes[:, 0].byte().numpy(), factors.numpy()
    for name, conv, prefix in _convolutions(network, test):
        filters, scales = _filters(conv)
        arrays[f"filters/{name}"], arrays[f"filter_scales/{name}"] = _half(filters), scales
        arrays[f"features/{name}"] = _half(_strongest_channel(prefix(sizes / 255)))
    return arrays


def layer_equivariance(network: MnistNetwork, test: Dataset) -> list[LayerEquivariance]:
    """The relative equivariance error of the features behind every convolution.

    The largest test digits are shrunk by the network's own scale step, so that they stay inside the
    image; the error of a layer includes that of all layers before it. Layers whose features are all
    zero are left out.
    """
    largest = test.factors.argsort(descending=True)[:_PROBES]
    images = test.images[largest].float() / 255
    factor = 1 / _scale_step(network)
    measured = []
    for name, conv, prefix in _convolutions(network, test):
        try:
            report = equivariance_error(prefix, images, [factor], grid=getattr(conv, "grid", None))
        except SettingError:  # a dead layer, whose features are zero, has no relative error
            continue
        measured.append(LayerEquivariance(layer=name, factor=factor, error=report.worst))
    return measured


class _Input(nn.Module):
    """What stands in front of a trunk: normalisation, and the upsampling of the 56×56 networks."""

    def __init__(self, test: Dataset, upsample: int) -> None:
        super().__init__()
        self.mean, self.std, self.upsample = test.mean, test.std, upsample

    def forward(self, images: Tensor) -> Tensor:
        images = normalize(images * 255, self.mean, self.std)
        return torch.nn.functional.interpolate(images, scale_factor=self.upsample, mode="nearest")


def _convolutions(
    network: MnistNetwork, test: Dataset
) -> Iterator[tuple[str, nn.Conv2d | SteerableConv2d, nn.Module]]:
    """Name, convolution, and the network from images in 0…1 up to and with it."""
    network.eval()
    front = _Input(test, network.settings.upsample)
    layers = list(network.main)
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d | SteerableConv2d):
            yield f"main.{index}", layer, nn.Sequential(front, *layers[: index + 1])


def _scale_step(network: MnistNetwork) -> float:
    grids = [layer.grid for layer in network.main if isinstance(layer, SteerableConv2d)]
    return (grids[0].step if grids else None) or _PLAIN_STEP


def _filters(conv: nn.Conv2d | SteerableConv2d) -> tuple[Tensor, NDArray[np.float64]]:
    """Filters (n, S, K, K) between the first input channel and the first outputs, and their scales."""
    if isinstance(conv, SteerableConv2d):
        weight = conv.weight[:_FILTERS, 0]
        weight = weight[:, 0] if weight.ndim == 3 else weight  # (n, N, F): the filter's own scale
        return synthesize_filters(weight, conv.basis), np.array(conv.grid.values)
    return conv.weight[:_FILTERS, :1], np.ones(1)


def _strongest_channel(features: Tensor) -> Tensor:
    """The channel that varies most: (3, S, H, W), with S = 1 for images."""
    if features.ndim == 4:
        features = features.unsqueeze(2)  # (3, C, 1, H, W)
    strongest = int(features.transpose(0, 1).flatten(1).var(1).argmax())
    return features[:, strongest]


def _half(tensor: Tensor) -> NDArray[np.float16]:
    return tensor.detach().cpu().half().numpy()
