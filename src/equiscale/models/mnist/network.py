"""The network that all methods of the MNIST-scale comparison share: a trunk, and the classifier on top."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equiscale.citations import SESN
from equiscale.errors import ModelError, ShapeError
from equiscale.models.registry import ModelEntry, register
from equiscale.nn import ImageBatchNorm2d, ImageMaxPool2d, ValueDropout

IMAGE_SIZE = 28
UPSAMPLINGS = {28: 1, 56: 2}  # by the side of the images that the trunk sees


@dataclass(frozen=True)
class MnistSettings:
    """The trunk that all methods share: three convolutions, pooling, one hidden layer.

    Args:
        upsample: 1 for the 28×28 networks, 2 for the 56×56 ones (nearest neighbour, in front).
        channels: Output channels of the three convolutions.
        effective_size: Side of the ordinary filter with the same number of weights.
        hidden: Units of the hidden layer.
        dropout: Probability of dropping a hidden unit.
        in_channels: Channels of the images.
        num_classes: Number of outputs.
    """

    upsample: int = 1
    channels: tuple[int, int, int] = (32, 63, 95)
    effective_size: int = 7
    hidden: int = 256
    dropout: float = 0.7
    in_channels: int = 1
    num_classes: int = 10

    def __post_init__(self) -> None:
        if len(self.channels) != 3 or min(self.channels) < 1:
            raise ModelError(f"expected three positive channel counts, got {self.channels}")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"expected a dropout with 0 <= p < 1, got {self.dropout}")

    @property
    def last_pool(self) -> int:
        """The last pooling window: the trunk ends with 2×2 pixels at both input sizes."""
        return 4 * self.upsample


class MnistNetwork(nn.Module):
    """A trunk from images to 2×2 pixels, and the classifier on top.

    Shapes:
        input ``(B, C, 28, 28)``; output ``(B, num_classes)``, logits.

    Args:
        main: The trunk.
        settings: The sizes of the classifier, and the upsampling in front.
        hidden_bias: Give the hidden layer a bias, as the published networks of SEVF and SS-CNN have.
        published_names: Where the published state dict calls a module otherwise: published name to
            ours.

    Raises:
        ShapeError: From the forward pass, for images of another size or channel count.

    Source:
        Sosnovik et al. 2020, section 6.1; the state dict's keys are the published ones where all
        methods agree.
    """

    def __init__(
        self,
        main: nn.Sequential,
        settings: MnistSettings,
        *,
        hidden_bias: bool = False,
        published_names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.published_names = dict(published_names or {})
        self.main = main
        self.linear = nn.Sequential(
            nn.Linear(4 * settings.channels[-1], settings.hidden, bias=hidden_bias),
            nn.BatchNorm1d(settings.hidden),
            nn.ReLU(),
            ValueDropout(settings.dropout),
            nn.Linear(settings.hidden, settings.num_classes),
        )

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it takes."""
        return self.settings.in_channels, IMAGE_SIZE, IMAGE_SIZE

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of images ``(B, C, 28, 28)``."""
        expected = self.example_shape
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ShapeError(
                f"MnistNetwork: expected images (B, {', '.join(map(str, expected))}), got {tuple(x.shape)}"
            )
        if self.settings.upsample > 1:
            x = torch.nn.functional.interpolate(x, scale_factor=self.settings.upsample, mode="nearest")
        logits: Tensor = self.linear(self.main(x).flatten(1))
        return logits


def build_cnn(settings: MnistSettings) -> MnistNetwork:
    """The plain CNN."""
    return MnistNetwork(cnn_trunk(settings), settings)


def cnn_trunk(settings: MnistSettings) -> nn.Sequential:
    """The plain CNN without its classifier."""
    if settings.effective_size % 2 == 0:
        raise ModelError(f"expected an odd effective_size for a plain CNN, got {settings.effective_size}")

    def conv(in_channels: int, out_channels: int) -> list[nn.Module]:
        padding = settings.effective_size // 2
        return [nn.Conv2d(in_channels, out_channels, settings.effective_size, padding=padding)]

    return image_trunk(settings, conv)


def image_trunk(
    settings: MnistSettings,
    conv: Callable[[int, int], list[nn.Module]],
    pooled: Callable[[int, int], list[nn.Module]] | None = None,
) -> nn.Sequential:
    """The trunk of the methods whose features are images.

    Pooling stands in front of the ReLU, with which it commutes, so that there are fewer pixels to do.

    Args:
        settings: The sizes.
        conv: Makes one convolution.
        pooled: Makes one together with a pooling of 2×2 pixels and what stands in its place; None:
            the convolution and the pooling.
    """
    c0, (c1, c2, c3) = settings.in_channels, settings.channels
    pooled = pooled or (lambda inputs, outputs: [*conv(inputs, outputs), ImageMaxPool2d(2)])
    return nn.Sequential(
        *(*pooled(c0, c1), nn.ReLU(), ImageBatchNorm2d(c1)),
        *(*pooled(c1, c2), nn.ReLU(), ImageBatchNorm2d(c2)),
        *(*conv(c2, c3), *last_stage(settings)),
    )


def last_stage(settings: MnistSettings) -> list[nn.Module]:
    """What follows the last convolution, down to 2×2 pixels."""
    pool = ImageMaxPool2d(settings.last_pool, padding=2)
    return [pool, nn.ReLU(), ImageBatchNorm2d(settings.channels[-1])]


for _size, _upsample in UPSAMPLINGS.items():
    register(ModelEntry(f"mnist_cnn_{_size}", "CNN", MnistSettings(upsample=_upsample), build_cnn, SESN))
