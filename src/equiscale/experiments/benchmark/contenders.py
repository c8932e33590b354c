"""What is measured of a network: ours, the published formulation, the public code, a plain CNN."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from equiscale.deploy import load_published_state_dict
from equiscale.errors import BenchmarkError, CheckpointError, ModelError, SettingError
from equiscale.experiments.benchmark.dense import as_published, has_published_form
from equiscale.experiments.benchmark.peer import PublicCode
from equiscale.experiments.benchmark.record import Kind, Precision
from equiscale.models import create_model, list_models, model_entry
from equiscale.models.mnist import MnistSettings
from equiscale.models.registry import ModelSettings
from equiscale.models.scale_generalisation import AnySizeSettings
from equiscale.models.unet import UNetSettings
from equiscale.models.wide_resnet import WideResNetSettings
from equiscale.train import OptimizerSettings

DEFAULT_MODELS: Final = (
    "mnist_ses_scalar_28",
    "mnist_ses_vector_28",
    "mnist_ses_scalar_56",
    "mnist_ses_vector_56",
    "wrn_16_8_ses_b",
)
_PROTOCOL_BATCH: Final = 128
_PHOTOGRAPHS_BATCH: Final = 4  # on a CPU: one map of the widest network takes 14 MB an image
# Outputs of two formulations differ by rounding: of float32, or of operands with 11 or 8 bits.
_TOLERANCES: Final[dict[Precision, float]] = {"float32": 1e-4, "tf32": 5e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Family:
    """What networks of one trunk are measured with.

    Args:
        image_size: Side of the images in pixels.
        optimizer: As in the published protocol.
        plain: From a network's settings to the name and the settings of the plain network of its size.
        cpu_batch: Images a step on a CPU; on a GPU they are the protocol's 128.
        every_pixel: Whether every pixel has a label, not the image as a whole.
    """

    image_size: int
    optimizer: OptimizerSettings
    plain: Callable[[Any], tuple[str, dict[str, Any]]]
    cpu_batch: int = _PROTOCOL_BATCH
    every_pixel: bool = False


def _plain_mnist(settings: MnistSettings) -> tuple[str, dict[str, Any]]:
    same: dict[str, Any] = {"hidden": settings.hidden, "dropout": settings.dropout}
    if settings.channels != type(settings).channels:  # a method's own channels make up for its weights
        same["channels"] = settings.channels
    return f"mnist_cnn_{28 * settings.upsample}", same


def _plain_wide_resnet(settings: WideResNetSettings) -> tuple[str, dict[str, Any]]:
    return f"wrn_{settings.depth}_{settings.width}", {"dropout": settings.dropout}


def _plain_any_size(settings: AnySizeSettings) -> tuple[str, dict[str, Any]]:
    return "scale_cnn", {"channels": settings.channels}


def _plain_unet(settings: UNetSettings) -> tuple[str, dict[str, Any]]:
    return "ses_unet", {}  # there is no plain one: as a network that is one itself


_FAMILIES: Final[dict[type, Family]] = {
    MnistSettings: Family(28, OptimizerSettings(), _plain_mnist),
    WideResNetSettings: Family(
        96, OptimizerSettings("sgd", weight_decay=5e-4), _plain_wide_resnet, cpu_batch=_PHOTOGRAPHS_BATCH
    ),
    AnySizeSettings: Family(112, OptimizerSettings(), _plain_any_size),
    UNetSettings: Family(
        64, OptimizerSettings(), _plain_unet, cpu_batch=_PHOTOGRAPHS_BATCH, every_pixel=True
    ),
}


@dataclass(frozen=True)
class Subject:
    """One network to be measured, and the images it sees.

    Args:
        model: Its name.
        batch_size: Images a step.
        peer: The public code; None: it is not measured.
    """

    model: str
    batch_size: int
    peer: PublicCode | None = None

    @property
    def settings(self) -> ModelSettings:
        """The network's settings."""
        return model_entry(self.model).settings

    @property
    def method(self) -> str:
        """The method's name in tables."""
        return model_entry(self.model).method

    @property
    def family(self) -> Family:
        """What it is measured with.

        Raises:
            SettingError: For a network whose images are not known.
        """
        for settings, family in _FAMILIES.items():
            if isinstance(self.settings, settings):
                return family
        raise SettingError(
            "expected a network of MNIST-scale, of photographs, for images of any size or a U-Net, "
            f"got {self.model!r}, whose images are not known"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        size = self.family.image_size
        return self.settings.in_channels, size, size

    @property
    def plain(self) -> str | None:
        """The name of the plain network of its size; None where it is that itself."""
        name, _ = self.family.plain(self.settings)
        return None if model_entry(name).builder is model_entry(self.model).builder else name

    def batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images of noise, and labels, the same on every machine."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch_size, *self.image_shape, generator=generator)
        labelled = (self.batch_size, *(self.image_shape[1:] if self.family.every_pixel else ()))
        labels = torch.randint(self.settings.num_classes, labelled, generator=generator)
        return images.to(device), labels.to(device)


@dataclass(frozen=True)
class Contender:
    """One kind of a network, built.

    Args:
        kind: Which.
        network: With its weights.
    """

    kind: Kind
    network: nn.Module


def choose_models(names: Iterable[str]) -> tuple[str, ...]:
    """The models of names and shell patterns, in the order of their first mention.

    Raises:
        ModelError: For an unknown name, or a pattern that fits none.
        SettingError: For a network whose images are not known.

    Example:
        >>> choose_models(["wrn_10_1", "mnist_cnn_*"])
        ('wrn_10_1', 'mnist_cnn_28', 'mnist_cnn_56')
    """
    chosen: dict[str, None] = {}
    for name in names:
        found = list_models(name) if any(sign in name for sign in "*?[") else [model_entry(name).name]
        if not found:
            raise ModelError(f"expected a pattern that fits a model of 'equiscale list model', got {name!r}")
        chosen |= dict.fromkeys(found)
    for model in chosen:
        _ = Subject(model, _PROTOCOL_BATCH).family
    return tuple(chosen)


def default_batch(model: str, device: str) -> int:
    """Images a step where nobody says: the protocol's 128, of photographs on a CPU 4.

    Example:
        >>> default_batch("wrn_10_1", "cpu"), default_batch("mnist_cnn_28", "cpu")
        (4, 128)
    """
    family = Subject(model, _PROTOCOL_BATCH).family
    return family.cpu_batch if device == "cpu" else _PROTOCOL_BATCH


def build(subject: Subject, kind: Kind) -> Contender:
    """One kind of a network, with fresh weights.

    Raises:
        BenchmarkError: If the public code cannot build it.
    """
    if kind == "cnn":
        name, same = subject.family.plain(subject.settings)
        classes, channels = subject.settings.num_classes, subject.settings.in_channels
        return Contender("cnn", create_model(name, num_classes=classes, in_channels=channels, **same))
    if kind == "peer":
        if subject.peer is None:
            raise BenchmarkError(f"expected the public code to build {subject.model}, got none")
        return Contender("peer", subject.peer.build(subject.model, subject.settings.num_classes))
    network = create_model(subject.model, num_classes=subject.settings.num_classes)
    return Contender(kind, network if kind == "ours" else as_published(network))


def line_up(subject: Subject, notes: list[str]) -> list[Contender]:
    """Every kind that there is of a network, ours first; ours, dense and peer with the same weights.

    Args:
        subject: The network.
        notes: Gets a line where the public code is missing.
    """
    ours = build(subject, "ours")
    found = [ours]
    peer = None if subject.peer is None else _peer(subject, ours.network, notes)
    if has_published_form(ours.network):
        found.append(Contender("dense", as_published(ours.network)))
    if peer is not None:
        found.append(peer)
    if subject.plain is not None:
        found.append(build(subject, "cnn"))
    return found


def _peer(subject: Subject, ours: nn.Module, notes: list[str]) -> Contender | None:
    """The public network, after ours has got its weights; None, and a note, where that cannot be."""
    try:
        contender = build(subject, "peer")
        load_published_state_dict(ours, contender.network.state_dict())
    except (BenchmarkError, CheckpointError) as error:
        notes.append(f"the public code was not measured: {error}")
        return None
    return contender


@torch.no_grad()
def check_equal(contenders: Sequence[Contender], images: Tensor, precision: Precision) -> None:
    """Raise unless the networks of the same weights give the same outputs; in evaluation mode after it.

    Raises:
        BenchmarkError: If outputs differ by more than rounding; the message says by how much.
    """
    ours, *others = (contender for contender in contenders if contender.kind != "cnn")
    expected = ours.network.eval()(images)
    for other in others:
        got = other.network.eval()(images)
        difference = float((got - expected).abs().max() / expected.abs().max())
        if not difference <= _TOLERANCES[precision]:
            raise BenchmarkError(
                f"expected equal outputs of ours and {other.kind}, got a difference of {difference:.1e} of "
                "the largest; they do not compute the same, and neither this network was measured nor any "
                "after it"
            )
