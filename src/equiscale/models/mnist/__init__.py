"""The networks of the MNIST-scale comparison: one trunk, with the convolution of each method."""

from equiscale.models.mnist import families, network, others, ses
from equiscale.models.mnist.network import MnistNetwork, MnistSettings
from equiscale.models.mnist.ses import SesSettings

__all__ = ["MnistNetwork", "MnistSettings", "SesSettings", "families", "network", "others", "ses"]
