"""Wide residual networks for natural images: one network, with the layers of each method."""

from equiscale.models.wide_resnet import network, others, ses
from equiscale.models.wide_resnet.network import PlainMethod, WideResNet, WideResNetSettings
from equiscale.models.wide_resnet.ses import SesWideResNetSettings

__all__ = [
    "PlainMethod",
    "SesWideResNetSettings",
    "WideResNet",
    "WideResNetSettings",
    "network",
    "others",
    "ses",
]
