"""Ordinary networks of images as people write them, small."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equiscale.deploy import ConversionReport
from equiscale.deploy.conversion import ModuleFate

# --- residual networks ---


class BasicBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1 or channels != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(
            nn.Conv2d(channels, 2 * width, 1, stride, bias=False), nn.BatchNorm2d(2 * width)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """The stem and the stages of a ResNet-18, or with bottlenecks of a ResNet-50."""

    def __init__(self, block: Callable[..., nn.Module] = BasicBlock, *, stem: int = 7) -> None:
        super().__init__()
        last = 12 if block is Bottleneck else 6
        self.conv1 = nn.Conv2d(3, 4, stem, 2, stem // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        between = 8 if block is Bottleneck else 4
        self.layer1 = nn.Sequential(block(4, 4))
        self.layer2 = nn.Sequential(block(between, 6, 2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(last, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Preactivation(nn.Module):
    """Blocks that begin with functions, and a shortcut without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = _PreactivationBlock()
        self.layer2 = _PreactivationBlock()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(F.relu(x).mean([2, 3]))


class _PreactivationBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


# --- dense prediction ---


class UNet(nn.Module):
    """Up by a transposed convolution, with padding where sizes are odd."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = _double(3, 4)
        self.pool = nn.MaxPool2d(2)
        self.down2 = _double(4, 6)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.conv = _double(8, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        x = self.up(self.down2(self.pool(skip)))
        rows, columns = skip.shape[2] - x.shape[2], skip.size(3) - x.size(3)
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.head(self.conv(torch.cat([skip, x], dim=1)))


class TransposedTo(UNet):
    """Up to the size that it is told."""

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        x = self.up(self.down2(self.pool(skip)), output_size=skip.shape[2:])
        return self.head(self.conv(torch.cat([skip, x], dim=1)))


class UpsamplingUNet(nn.Module):
    """Up by interpolation, once as a module and once as a function; two outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.down3 = _double(3, 4), _double(4, 4), _double(4, 4)
        self.pool = nn.AvgPool2d(2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.conv2, self.conv1 = _double(8, 4), _double(8, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        one = self.down1(x)
        two = self.down2(self.pool(one))
        x = self.conv2(torch.cat((self.up(self.down3(self.pool(two))), two), 1))
        x = F.interpolate(x, size=one.shape[-2:], mode="nearest")
        features = self.conv1(torch.cat(tensors=[x, one], dim=-3))
        return {"out": self.head(features), "coarse": two}


def _double(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.GroupNorm(2, width),
        nn.PReLU(width),
        nn.Conv2d(width, width, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
    )


# --- classifiers ---


def vgg() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(True), nn.MaxPool2d(2, 2)),
        *(nn.Dropout2d(0.3), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten()),
        *(nn.Linear(24, 7), nn.ReLU(True), nn.Dropout(), nn.Linear(7, 5)),
    )


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.relu(self.fc1(self.avgpool(x))))) * x


class MobileNet(nn.Module):
    """Inverted residuals: depthwise convolutions, squeeze-excite, hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.Hardswish(inplace=True)),
            _Inverted(),
            *(nn.Conv2d(4, 6, 1), nn.ReLU6(inplace=True)),
        )
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class _Inverted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)),
            *(nn.Conv2d(8, 8, 5, 1, 2, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)),
            SqueezeExcite(8),
            *(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class DenseNet(nn.Module):
    """Features that are gathered in a list, and dropout as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 2 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 2 * i, 2, 3, padding=1) for i in range(3))
        self.transition = nn.Sequential(nn.Conv2d(10, 5, 1), nn.AvgPool2d(2, 2))
        self.fc = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            new = conv(F.relu(norm(torch.cat(features, 1))))
            features.append(F.dropout(new, p=0.5, training=self.training))
        x = self.transition(torch.cat(features, 1))
        return self.fc(F.relu(x, inplace=True).mean((2, 3)))


class Functional(nn.Module):
    """Everything but the layers is a function or a method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 5, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding="same")
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError("not an image")
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        x = torch.tanh(self.conv2(x)).add(0.5).clamp(min=0.1)
        batch, _, height, width = x.size()
        x = F.adaptive_max_pool2d(x, (2, 1)) * height / width
        return self.fc(x.sum(dim=(2, 3)).view(batch, -1))


class ConvNeXt(nn.Module):
    """Layer norm and linear layers over permuted axes, a layer's scale, a stem and a step of patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block1 = _ConvNeXtBlock(4)
        self.down = nn.Sequential(_LayerNorm2d(4), nn.Conv2d(4, 6, 2, 2))
        self.block2 = _ConvNeXtBlock(6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.down(self.block1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


class _LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class _ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.pwconv1, self.pwconv2 = nn.Linear(channels, 8), nn.Linear(8, channels)
        self.gamma = nn.Parameter(0.7 * torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(F.gelu(self.pwconv1(y))).permute(0, 3, 1, 2)
        return x + self.gamma * y


class ShuffleNet(nn.Module):
    """Halves of the channels, and channels in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.SiLU())
        self.shuffle = nn.ChannelShuffle(2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).chunk(2, dim=1)
        x = self.shuffle(torch.cat((first, self.branch(second)), 1))
        return self.fc(x.mean((2, 3)))


class Decides(nn.Module):
    """Goes one of two ways, as values tell: it has no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.pool, self.avgpool = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)
        self.between: Callable[[Tensor], Tensor] = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        if x.mean() > 1e3:
            x = 2 * x
        x = self.conv2(self.between(self.pool(x)))
        return self.fc(self.avgpool(x).flatten(1))


class Between(nn.Module):
    """A function of the features of one convolution, in front of another; it may use the module's tensors."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any], channels: int = 4) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(channels, 4, 3, padding=1)
        self.gamma = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.ones = nn.Parameter(torch.ones(4, 1, 1))
        self.register_buffer("shift", torch.arange(4.0).view(1, 4, 1, 1))
        self.register_buffer("rows", torch.arange(11, -1, -1).view(1, 1, 12, 1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y = self.after(self.function(self, self.conv(x)))
        return y.mean((2, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": ResNet,
    "resnet50": lambda: ResNet(Bottleneck),
    "preactivation": Preactivation,
    "unet": UNet,
    "unet-output-size": TransposedTo,
    "unet-upsampling": UpsamplingUNet,
    "vgg": vgg,
    "mobilenet": MobileNet,
    "densenet": DenseNet,
    "functional": Functional,
    "convnext": ConvNeXt,
    "shufflenet": ShuffleNet,
    "decides": Decides,
}


def stirred(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics, so that nothing is zero or one by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                plain = "running" not in name and tensor.ndim > 1 and min(tensor.shape[:2]) > 1
                tensor.copy_((noise - 0.5) if plain else 0.5 + noise)
    return network


# --- what tests ask of networks ---

SIZE = (2, 3, 21, 25)


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or SIZE, generator=torch.Generator().manual_seed(seed))


def fate(report: ConversionReport, name: str) -> ModuleFate:
    (found,) = (fate for fate in report.fates if fate.name == name)
    return found


def projections(report: ConversionReport) -> list[str]:
    return [fate.note for fate in report.fates if fate.after == "ScaleProjection"]


def features(network: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a module of the network gives."""
    seen: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda *args: seen.append(args[2].clone()))
    with torch.no_grad():
        network(x)
    handle.remove()
    return seen[-1]
