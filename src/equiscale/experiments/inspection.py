"""What a trained network looks like: filters, features of an image at three sizes, equivariance."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from equiscale.data import Dataset, normalize
from equiscale.errors import EquiscaleError, ShapeError
from equiscale.experiments.records import LayerEquivariance
from equiscale.functional import ConvGeometry, synthesize_filters
from equiscale.functional.rescale import rescale
from equiscale.scales import ScaleGrid
from equiscale.testing import equivariance_error

_FILTERS = 8
_LAYERS = 6
_SAMPLES = 24
# Images that are compared for the equivariance error: so many pixels, but not more images than these.
_PROBE_PIXELS = 2**16
_PROBES = 32
# The factor between the sizes of a probe image where the network has no scale grid of its own.
_PLAIN_STEP = 1.5
# What the .npz beside a record may hold: pictures of this side, samples of so many bytes.
_LONGEST_SIDE = 56
_SAMPLE_BYTES = 96 * 2**10

Arrays = dict[str, NDArray[np.generic]]


@torch.no_grad()
def inspect_network(network: nn.Module, test: Dataset, predictions: Tensor) -> Arrays:
    """The arrays behind the report's pictures, small enough to keep beside a record.

    At most six convolutions are shown, evenly chosen; large pictures are reduced. Convolutions without
    a filter for every scale of their output are left out.

    Returns:
        ``samples`` ``(N, H, W)``, for colour images ``(N, 3, H, W)``, with ``sample_labels``,
        ``sample_predictions`` and ``sample_factors``; for every convolution ``filters/NAME``
        ``(n, S, K, K)``, ``filter_scales/NAME`` ``(S,)`` and ``features/NAME`` ``(3, S, H, W)`` for the
        image ``feature_inputs`` ``(3, H, W)`` at the sizes ``feature_factors``.
    """
    arrays = _samples(test, predictions)
    step = _scale_step(network)
    factors = torch.tensor([step**-2, step**-1, 1.0], dtype=torch.float64)
    image = test.images[int(test.factors.argmax())].float().to(_device(network))  # (C, H, W)
    sizes = rescale(image.expand(3, -1, -1, -1), factors).round().clamp(0, 255)
    arrays["feature_inputs"] = _small(sizes.mean(1)).round().byte().cpu().numpy()
    arrays["feature_factors"] = factors.numpy()
    for layer in _convolutions(network):
        arrays |= _layer_arrays(layer, _Upto(network, layer.module, test), sizes / 255)
    return arrays


def layer_equivariance(network: nn.Module, test: Dataset) -> list[LayerEquivariance]:
    """The relative equivariance error of the features behind at most six convolutions.

    The test images with the largest objects are shrunk by the network's own scale step, so that they
    stay inside the image; the error of a layer includes that of all layers before it. Layers whose
    features have no such error, because they are all zero or lie on no geometric grid, are left out.
    """
    images = test.images[_probes(test)].float().to(_device(network)) / 255
    factor = 1 / _scale_step(network)
    measured = []
    for layer in _convolutions(network):
        prefix = _Upto(network, layer.module, test)
        try:
            report = equivariance_error(prefix, images, [factor], grid=_grid(layer.module))
        except EquiscaleError:
            continue
        measured.append(LayerEquivariance(layer=layer.name, factor=factor, error=report.worst))
    return measured


@dataclass(frozen=True)
class _Layer:
    name: str
    module: nn.Module


def _layer_arrays(layer: _Layer, prefix: nn.Module, images: Tensor) -> Arrays:
    """Filters and features of one layer; nothing where they cannot be drawn beside each other."""
    drawn = _filters(layer.module)
    if drawn is None:
        return {}
    filters, scales = drawn
    try:
        features = _strongest_channel(prefix(images))
    except EquiscaleError:
        return {}
    if features.shape[:2] != (len(images), len(scales)):  # a pyramid's levels, for example
        return {}
    return {
        f"filters/{layer.name}": _half(filters),
        f"filter_scales/{layer.name}": scales,
        f"features/{layer.name}": _half(_small(features)),
    }


class _Upto(nn.Module):
    """The network from images in 0…1 up to and with one of its layers, where that is used first."""

    class _ReachedError(Exception):
        pass

    def __init__(self, network: nn.Module, layer: nn.Module, test: Dataset) -> None:
        super().__init__()
        self.network, self.layer, self.mean, self.std = network.eval(), layer, test.mean, test.std

    def forward(self, images: Tensor) -> Tensor:
        outputs: list[object] = []

        def stop(_: nn.Module, __: object, output: object) -> None:
            outputs.append(output)
            raise self._ReachedError

        handle = self.layer.register_forward_hook(stop)
        try:
            with _all_scales(self.layer):
                self.network(normalize(images * 255, self.mean, self.std))
        except self._ReachedError:
            pass
        finally:
            handle.remove()
        output = next(iter(outputs), None)
        if not isinstance(output, Tensor) or output.ndim not in (4, 5):
            raise ShapeError(
                f"expected the layer to give an image or a scale map, got {type(output).__name__}"
            )
        return output


@contextmanager
def _all_scales(layer: nn.Module) -> Iterator[None]:
    """Let a layer that takes maxima in passing show all scales and pixels."""
    geometry = getattr(layer, "geometry", None)
    if not isinstance(geometry, ConvGeometry):
        yield
        return
    layer.geometry = replace(geometry, projection=None, pooling=1)  # type: ignore[assignment]
    try:
        yield
    finally:
        layer.geometry = geometry  # type: ignore[assignment]


def _convolutions(network: nn.Module) -> list[_Layer]:
    """At most six of the network's convolutions, evenly chosen, the first and the last among them."""
    found = list(_walk(network, ""))
    if len(found) <= _LAYERS:
        return found
    return [found[round(index)] for index in np.linspace(0, len(found) - 1, _LAYERS)]


def _walk(module: nn.Module, name: str) -> Iterator[_Layer]:
    """The outermost modules that convolve, in the order of the network."""
    if _is_convolution(module):
        yield _Layer(name, module)
        return
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}".lstrip("."))


def _is_convolution(module: nn.Module) -> bool:
    """A layer with weights (O, C, ...) for more than one pixel; no 1×1 convolution, no linear layer."""
    return any(weight.shape[2:].numel() > 1 for weight in module.parameters(recurse=False) if weight.ndim > 2)


def _grid(module: nn.Module) -> ScaleGrid | None:
    grid = getattr(module, "grid", None)
    return grid if isinstance(grid, ScaleGrid) else None


def _scale_step(network: nn.Module) -> float:
    grids = (_grid(layer.module) for layer in _walk(network, ""))
    first = next((grid for grid in grids if grid is not None), None)
    return (first.step if first is not None else None) or _PLAIN_STEP


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _filters(conv: nn.Module) -> tuple[Tensor, NDArray[np.float64]] | None:
    """Filters (n, S, K, K) between the first input channel and the first outputs, and their scales."""
    weight, basis, grid = getattr(conv, "weight", None), getattr(conv, "basis", None), _grid(conv)
    if not isinstance(weight, Tensor):
        return None
    if grid is None:
        return (weight[:_FILTERS, :1], np.ones(1)) if weight.ndim == 4 else None
    if not isinstance(basis, Tensor) or basis.ndim != 4:
        return None
    if weight.shape[-1] != len(basis):  # the pixels of a small kernel are the weights: (O, C, ..., k, k)
        weight = weight.flatten(-2)
    if weight.ndim not in (3, 4) or weight.shape[-1] != len(basis):
        return None
    weight = weight[:_FILTERS, 0]
    weight = weight[:, 0] if weight.ndim == 3 else weight  # (n, N, F): the filter's own scale
    return synthesize_filters(weight, basis), np.array(grid.values)


def _samples(test: Dataset, predictions: Tensor) -> Arrays:
    """Test images from the whole split as thumbnails, with what is true and what was predicted."""
    count = max(1, min(_SAMPLES, _SAMPLE_BYTES // _small(test.images[0].float()).numel()))
    chosen = _spread(torch.arange(len(test)), count)
    images = _small(test.images[chosen].float()).round().byte()
    return {
        "samples": (images[:, 0] if images.shape[1] == 1 else images).numpy(),
        "sample_labels": test.labels[chosen].numpy(),
        "sample_predictions": predictions[chosen].numpy(),
        "sample_factors": test.factors[chosen].numpy(),
    }


def _probes(test: Dataset) -> Tensor:
    """Which images are compared: of the largest objects, where many are as large from the whole split."""
    pixels = test.images[0, 0].numel()
    count = min(len(test), _PROBES, max(4, _PROBE_PIXELS // pixels))
    smallest = test.factors.sort(descending=True).values[count - 1]
    return _spread((test.factors >= smallest).nonzero()[:, 0], count)


def _spread(indices: Tensor, count: int) -> Tensor:
    """So many of the indices, evenly chosen: the images of many data sets lie sorted by class."""
    count = min(count, len(indices))
    return indices[torch.linspace(0, len(indices) - 1, count, dtype=torch.float64).round().long()]


def _small(pictures: Tensor) -> Tensor:
    """Pictures (..., H, W) whose longer side is at most the longest, by averaging whole squares."""
    ratio = -(-max(pictures.shape[-2:]) // _LONGEST_SIDE)
    if ratio == 1:
        return pictures
    leading = pictures.shape[:-2]
    reduced = avg_pool2d(pictures.reshape(-1, 1, *pictures.shape[-2:]), ratio, ceil_mode=True)
    return reduced.reshape(*leading, *reduced.shape[-2:])


def _strongest_channel(features: Tensor) -> Tensor:
    """The channel that varies most: (B, S, H, W), with S = 1 for images."""
    if features.ndim == 4:
        features = features.unsqueeze(2)  # (B, C, 1, H, W)
    strongest = int(features.transpose(0, 1).flatten(1).var(1).argmax())
    return features[:, strongest]


def _half(tensor: Tensor) -> NDArray[np.float16]:
    return tensor.detach().cpu().half().numpy()
