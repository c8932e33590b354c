"""The wide residual network that all methods share, and its ordinary layers."""

import math
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from equiscale.citations import WIDE_RESNET, Citation
from equiscale.errors import ModelError, ShapeError
from equiscale.models.registry import ModelEntry, register
from equiscale.nn import ImageBatchNorm2d, ScaleProjection, ValueDropout

# The stem, and per unit of width the three stages.
_CHANNELS = (16, 16, 32, 64)
_STRIDES = (1, 2, 2)
# The published network, and a sibling that trains on two cores: depth and width.
_SIZES = ((16, 8), (10, 2), (10, 1))


@dataclass(frozen=True)
class WideResNetSettings:
    """The network that all methods share: a stem, three stages of residual blocks, one linear layer.

    Args:
        depth: 6 n + 4, for n blocks a stage.
        width: The factor k that widens the stages to 16 k, 32 k and 64 k channels.
        dropout: Probability of dropping a value between the two convolutions of a block.
        kernel_size: Side of the filters, on the largest scale where there are scales.
        in_channels: Channels of the images.
        num_classes: Number of outputs.
    """

    depth: int = 16
    width: int = 8
    dropout: float = 0.3
    kernel_size: int = 3
    in_channels: int = 3
    num_classes: int = 10

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ModelError(
                f"expected a depth of 10, 16, 22, … (6 n + 4, for n blocks in each of three stages), "
                f"got {self.depth}"
            )
        if self.width < 1:
            raise ModelError(f"expected a width of at least 1, got {self.width}")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"expected a dropout with 0 <= p < 1, got {self.dropout}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ModelError(f"expected an odd kernel_size, got {self.kernel_size}")

    @property
    def blocks(self) -> int:
        """n, the number of blocks a stage."""
        return (self.depth - 4) // 6


@dataclass(frozen=True)
class Place:
    """Where a convolution stands.

    Args:
        in_channels: C.
        out_channels: C'.
        stride: Step in pixels.
        stage: 0, 1 or 2.
        entry: Is it the first convolution of its stage?
    """

    in_channels: int
    out_channels: int
    stride: int
    stage: int
    entry: bool

    @property
    def changes_channels(self) -> bool:
        """Does the block need a shortcut of its own?"""
        return self.in_channels != self.out_channels

    @property
    def next(self) -> "Place":
        """The second convolution of the same block."""
        return replace(self, in_channels=self.out_channels, stride=1, entry=False)


S = TypeVar("S", bound=WideResNetSettings)


class PlainMethod(Generic[S]):
    """The ordinary layers of the network; a scale-equivariant method replaces some of them.

    Args:
        settings: What the layers are built from.
    """

    # In front of which layer of the head the scale axis is reduced, if there is one.
    project_before: Literal["norm", "pool", "linear"] | None = None

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the stem and of the three stages."""
        stem, *stages = _CHANNELS
        first, second, third = (self.settings.width * channels for channels in stages)
        return stem, first, second, third

    def lift(self) -> nn.Module:
        """What is in front of the stem and has no weights."""
        return nn.Identity()

    def stem(self, in_channels: int, out_channels: int) -> nn.Module:
        """The first convolution of the network."""
        return self.conv(Place(in_channels, out_channels, stride=1, stage=0, entry=False))

    def conv(self, place: Place) -> nn.Module:
        """A convolution of a block."""
        size = self.settings.kernel_size
        options: dict[str, Any] = {"stride": place.stride, "padding": size // 2, "bias": False}
        return nn.Conv2d(place.in_channels, place.out_channels, size, **options)

    def shortcut(self, place: Place) -> nn.Module | None:
        """What is beside a block: a 1×1 convolution where it changes the number of channels, or None."""
        return self.pointwise(place) if place.changes_channels else None

    def pointwise(self, place: Place) -> nn.Module:
        """The 1×1 convolution of a shortcut."""
        return nn.Conv2d(place.in_channels, place.out_channels, 1, stride=place.stride, bias=False)

    def norm(self, channels: int) -> nn.Module:
        """Batch norm in a block."""
        return ImageBatchNorm2d(channels)

    def last_norm(self, channels: int) -> nn.Module:
        """Batch norm in the head."""
        return ImageBatchNorm2d(channels) if self.project_before == "norm" else self.norm(channels)

    def published_names(self, network: nn.Module) -> dict[str, str]:
        """Where the public code calls a module otherwise: its name there to its name here."""
        return {}

    def reset(self, conv: nn.Module, generator: torch.Generator | None) -> None:
        """Draw the weights of a convolution as published: normal, of variance 2 / (weights an input)."""
        weight: nn.Parameter = conv.weight  # type: ignore[assignment]
        fan_out = weight.numel() / weight.shape[1]
        nn.init.normal_(weight, 0.0, math.sqrt(2 / fan_out), generator=generator)


class WideBlock(nn.Module):
    """A residual block with batch norm and ReLU in front of each of its two convolutions.

    Where the number of channels changes, the shortcut is a convolution of the activated input;
    elsewhere it is the input itself.
    """

    def __init__(self, method: PlainMethod[Any], place: Place) -> None:
        super().__init__()
        self.bn1 = method.norm(place.in_channels)
        self.conv1 = method.conv(place)
        self.bn2 = method.norm(place.out_channels)
        self.dropout = ValueDropout(method.settings.dropout)
        self.conv2 = method.conv(place.next)
        self.changes_channels = place.changes_channels
        self.convShortcut = method.shortcut(place)  # the published key

    def forward(self, x: Tensor) -> Tensor:
        """Images or scale maps to the same of C' channels."""
        activated = relu(self.bn1(x))
        inner = relu(self.bn2(self.conv1(activated)))
        change: Tensor = self.conv2(self.dropout(inner))
        kept = activated if self.changes_channels else x
        return change + (kept if self.convShortcut is None else self.convShortcut(kept))


class WideStage(nn.Module):
    """A sequence of blocks, under the published key ``layer``."""

    def __init__(self, method: PlainMethod[Any], first: Place) -> None:
        super().__init__()
        later = replace(first.next, stride=1)
        places = [first, *[later] * (method.settings.blocks - 1)]
        self.layer = nn.Sequential(*(WideBlock(method, place) for place in places))

    def forward(self, x: Tensor) -> Tensor:
        """All blocks in turn."""
        y: Tensor = self.layer(x)
        return y


class WideResNet(nn.Module):
    """A wide residual network with the layers of one method.

    Shapes:
        input ``(B, C, H, W)`` of any size; output ``(B, num_classes)``, logits.

    Args:
        method: What supplies the layers; its ``settings`` hold the sizes.

    Raises:
        ShapeError: From the forward pass, for images of another channel count.

    Source:
        Zagoruyko, Komodakis, *Wide Residual Networks*, BMVC 2016; with scale-equivariant layers:
        Sosnovik et al. 2020, section 6.2. The state dict's keys are the published ones, but for
        ``published_names``. Deviation: the average runs over all pixels, where some published networks
        expect images of 96×96.
    """

    def __init__(self, method: PlainMethod[Any]) -> None:
        super().__init__()
        self.method, self.settings = method, method.settings
        stem, *stages = method.channels()
        self.lift = method.lift()
        self.conv1 = method.stem(self.settings.in_channels, stem)
        places = [
            Place(before, after, stride, stage, entry=True)
            for stage, (before, after, stride) in enumerate(
                zip([stem, *stages], stages, _STRIDES, strict=False)
            )
        ]
        self.block1, self.block2, self.block3 = (WideStage(method, place) for place in places)
        self.bn1 = method.last_norm(stages[-1])
        self.proj = nn.Identity() if method.project_before is None else ScaleProjection()
        self.fc = nn.Linear(stages[-1], self.settings.num_classes)
        self.reset_parameters()

    @property
    def published_names(self) -> dict[str, str]:
        """Where the published state dict calls a module otherwise: published name to ours."""
        return self.method.published_names(self)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights as published: the method's for convolutions, torch's for the classifier without bias.

        Args:
            generator: Source of randomness; None: torch's default.
        """
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
                nn.init.zeros_(module.bias)
            elif next(module.parameters(recurse=False), None) is not None:
                self.method.reset(module, generator)

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of images that it takes: those of STL-10."""
        return self.settings.in_channels, 96, 96

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of images ``(B, C, H, W)``."""
        if x.ndim != 4 or x.shape[1] != self.settings.in_channels:
            raise ShapeError(
                f"WideResNet: expected images (B, {self.settings.in_channels}, H, W), got {tuple(x.shape)}"
            )
        return self._classify(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """What the three stages make of images: images, or scale maps."""
        y: Tensor = self.block3(self.block2(self.block1(self.conv1(self.lift(x)))))
        return y

    def _classify(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self._project(x, "norm")))
        x = self._project(x, "pool").mean((-2, -1), keepdim=True)
        logits: Tensor = self.fc(self._project(x, "linear").flatten(1))
        return logits

    def _project(self, x: Tensor, before: str) -> Tensor:
        projected: Tensor = self.proj(x) if self.method.project_before == before else x
        return projected


def register_sizes(
    suffix: str,
    method: type[PlainMethod[Any]],
    settings: WideResNetSettings,
    *,
    name: str,
    citation: Citation,
) -> None:
    """Register the published network of a method, and its small siblings."""

    def build(settings: Any) -> WideResNet:
        return WideResNet(method(settings))

    for depth, width in _SIZES:
        sized = replace(settings, depth=depth, width=width)
        register(ModelEntry(f"wrn_{depth}_{width}{suffix}", name, sized, build, citation))


register_sizes("", PlainMethod, WideResNetSettings(), name="WRN", citation=WIDE_RESNET)
