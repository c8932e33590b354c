"""Scale equivariance with vector fields (SEVF): convolutions, pooling, batch norm, dropout."""

import math

import torch
from torch import Tensor, nn

from equiscale._typing import Image
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.checks import check_odd, check_probability, is_number, is_whole
from equiscale.functional.geometry import ConvGeometry
from equiscale.functional.pool import check_window
from equiscale.functional.vector_field import (
    Padding,
    ScaleAngles,
    Turn,
    VectorField,
    check_scale_angles,
    check_vector_field,
    turn_sign,
    vector_field_batch_norm2d,
    vector_field_conv2d,
    vector_field_dropout,
    vector_field_lift2d,
    vector_field_magnitude,
    vector_field_max_pool2d,
    vector_field_variance,
)
from equiscale.nn.sync_norm import SharesStatistics, shared_variance

_DEFAULT_SCALES = ScaleAngles()


class VectorFieldLift2d(nn.Module):
    r"""From an image to a vector field: length is the strongest answer over scales, angle its scale.

    .. math:: r_{c' k} = R_{1/s_k} \Bigl( \sum_c w_{c' c} \star R_{s_k} x_c \Bigr), \quad
        k^* = \arg\max_k r_{c' k}, \quad
        y_{c'} = \max(r_{c' k^*}, 0) \, (\cos \theta_{k^*}, \sin \theta_{k^*})

    with R bilinear resizing. The published layer has no bias.

    Shapes:
        input ``(B, C, H, W)``; output ``(B, C', 2, H', W')``; weight ``(C', C, K, K)``.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, odd.
        scales: The factors s and their angles θ.
        padding: Zeros on each side of every resized copy, or "same". With any other than "same" the
            answers of the factors do not lie on top of one another.

    Raises:
        SettingError: For illegal channels, kernel or padding.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        With an odd whole base b, enlarging by b as the layer resizes turns the result by −θ₁ exactly, at
        the pixels that have a partner and where the strongest factors are on the list before and after.
        Otherwise approximate, under shifts too: ``tests/nn/test_vector_field.py`` measures it.

    Source:
        Marcos, Kellenberger, Lobry, Tuia, *Scale equivariance in CNNs with vector fields*, 2018.

    Example:
        >>> VectorFieldLift2d(3, 8, kernel_size=7)(torch.randn(2, 3, 28, 32)).shape
        torch.Size([2, 8, 2, 28, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        scales: ScaleAngles = _DEFAULT_SCALES,
        padding: Padding = "same",
    ) -> None:
        super().__init__()
        _check_sizes(in_channels, out_channels, kernel_size, padding)
        check_scale_angles(type(self).__name__, scales)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.scales, self.padding = kernel_size, scales, padding
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights from U(−b, b) with b = 1/√(C·K²), as published.

        Args:
            generator: Source of randomness; None: torch's default, as in torch.nn.
        """
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> VectorField:
        """Lift an image ``(B, C, H, W)`` to a vector field ``(B, C', 2, H', W')``."""
        return vector_field_lift2d(x, self.weight, scales=self.scales, padding=self.padding)

    def extra_repr(self) -> str:
        """Channels, kernel, padding and scales."""
        return _shown(self)


class VectorFieldConv2d(nn.Module):
    r"""From a vector field to a vector field: as the lift, with filters whose vectors turn with the scale.

    .. math:: r_{c' k} = R_{1/s_k} \Bigl( \sum_c (T_k w_{c' c})_u \star R_{s_k} u_c
        + (T_k w_{c' c})_v \star R_{s_k} v_c \Bigr), \quad
        T_k = \begin{pmatrix} \cos \theta_k & -\sin \theta_k \\ \sin \theta_k & \cos \theta_k
        \end{pmatrix}

    and of these the strongest as a vector. The published layer has no bias.

    Shapes:
        input ``(B, C, 2, H, W)``; output ``(B, C', 2, H', W')``; weight_u and weight_v
        ``(C', C, K, K)``, under their published names.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: K, odd.
        scales: The factors s and their angles θ.
        padding: As in `VectorFieldLift2d`.
        turn: "equivariant": T as above; "published": its inverse, as in the public code. A network with
            published weights or claims needs the latter.

    Raises:
        SettingError: For illegal channels, kernel, padding or turn.
        ShapeError: From the forward pass, for an input that does not fit.

    Exactness:
        As `VectorFieldLift2d`; with the published turn it is not equivariant:
        ``tests/nn/test_vector_field.py`` measures both.

    Source:
        Marcos, Kellenberger, Lobry, Tuia, *Scale equivariance in CNNs with vector fields*, 2018.
        Deviation: the public code turns the filters the other way.

    Example:
        >>> VectorFieldConv2d(8, 16, kernel_size=7)(torch.randn(2, 8, 2, 28, 32)).shape
        torch.Size([2, 16, 2, 28, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        scales: ScaleAngles = _DEFAULT_SCALES,
        padding: Padding = "same",
        turn: Turn = "equivariant",
    ) -> None:
        super().__init__()
        _check_sizes(in_channels, out_channels, kernel_size, padding)
        check_scale_angles(type(self).__name__, scales)
        turn_sign(turn)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.scales, self.padding, self.turn = kernel_size, scales, padding, turn
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight_u, self.weight_v = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Both weights from U(−b, b) with b = 1/√(C·K²), as published.

        Args:
            generator: Source of randomness; None: torch's default, as in torch.nn.
        """
        for weight in (self.weight_u, self.weight_v):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> VectorField:
        """Map ``(B, C, 2, H, W)`` to ``(B, C', 2, H', W')``."""
        weight = torch.stack([self.weight_u, self.weight_v], dim=2)  # (C', C, 2, K, K)
        return vector_field_conv2d(x, weight, scales=self.scales, padding=self.padding, turn=self.turn)

    def extra_repr(self) -> str:
        """Channels, kernel, padding, scales and turn."""
        return f"{_shown(self)}, turn={self.turn!r}"


class VectorFieldMagnitude(nn.Module):
    r"""From a vector field to an image: the length of every vector; see `functional.vector_field_magnitude`.

    .. math:: y_c = \sqrt{u_c^2 + v_c^2}

    Shapes:
        input ``(B, C, 2, H, W)``; output ``(B, C, H, W)``.

    Raises:
        ShapeError: From the forward pass, if the input is not a vector field.

    Exactness:
        Invariant to turning all vectors, up to rounding.

    Source:
        Marcos et al. 2018. Deviation: the gradient is zero, and not NaN, where a vector is zero.

    Example:
        >>> VectorFieldMagnitude()(torch.ones(1, 1, 2, 1, 1)).item()
        1.41421...
    """

    def forward(self, x: Tensor) -> Image:
        """The lengths ``(B, C, H, W)`` of ``(B, C, 2, H, W)``."""
        return vector_field_magnitude(x)


class VectorFieldMaxPool2d(nn.Module):
    r"""Keep the longest vector of every window of pixels; see `functional.vector_field_max_pool2d`.

    .. math:: y_c(p) = x_c(q^*), \qquad q^* = \arg\max_{q \in \Omega(p)} |x_c(q)|

    Shapes:
        input ``(B, C, 2, H, W)``; output ``(B, C, 2, H', W')``, H' = (H + 2·padding − k) // stride + 1.

    Args:
        kernel_size: k, the side of the window in pixels.
        stride: Step in pixels; None: k.
        padding: Pixels added on each side that are never chosen, at most k / 2.

    Raises:
        SettingError: For illegal sizes.
        ShapeError: From the forward pass, if the input is not a vector field.

    Exactness:
        Commutes with turning all vectors, and with shifts by multiples of the stride.

    Source:
        Marcos et al. 2018.

    Example:
        >>> VectorFieldMaxPool2d(2)(torch.ones(2, 3, 2, 8, 8)).shape
        torch.Size([2, 3, 2, 4, 4])
    """

    def __init__(self, kernel_size: int, *, stride: int | None = None, padding: int = 0) -> None:
        super().__init__()
        check_window(kernel_size, stride, padding)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor) -> VectorField:
        """Pool ``(B, C, 2, H, W)``."""
        return vector_field_max_pool2d(x, self.kernel_size, stride=self.stride, padding=self.padding)

    def extra_repr(self) -> str:
        """Kernel, stride and padding."""
        return f"{self.kernel_size}, stride={self.stride or self.kernel_size}, padding={self.padding}"


class VectorFieldBatchNorm2d(SharesStatistics, nn.Module):
    r"""Divide the vectors of every channel by the standard deviation of their lengths.

    .. math:: y_c = \gamma_c \frac{x_c}{\sqrt{\sigma_c^2 + \epsilon}}

    No mean is taken off: angles stay what they are. In training σ² is that of the batch, and moves the
    running (unbiased) one, which serves in evaluation.

    Shapes:
        input and output ``(B, C, 2, H, W)``; weight and running_var ``(1, C, 1, 1)``, as published.

    Args:
        num_features: C.
        momentum: Weight of the new variance in the running one.
        eps: ε.

    Raises:
        SettingError: For an illegal setting.
        ShapeError: From the forward pass, if the input is not a vector field of C channels, or in
            training holds a single vector a channel.

    Exactness:
        Commutes with turning all vectors; in evaluation also with scaling and shifts.

    Source:
        Marcos et al. 2018. Deviation: the published code has the weight γ, and never uses it; loaded
        from there it is 1.

    Example:
        >>> VectorFieldBatchNorm2d(3)(torch.randn(2, 3, 2, 5, 5)).shape
        torch.Size([2, 3, 2, 5, 5])
    """

    running_var: Tensor

    def __init__(self, num_features: int, *, momentum: float = 0.5, eps: float = 1e-5) -> None:
        super().__init__()
        legal = is_number(momentum) and 0 <= momentum <= 1 and is_number(eps) and 0 <= eps < math.inf
        if not (is_whole(num_features) and legal):
            raise SettingError(
                "expected at least 1 feature, a momentum in [0, 1] and an eps of at least 0, "
                f"got {num_features!r}, {momentum!r} and {eps!r}"
            )
        self.num_features, self.momentum, self.eps = num_features, momentum, eps
        self.weight = nn.Parameter(torch.empty(1, num_features, 1, 1))
        self.register_buffer("running_var", torch.empty(1, num_features, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight and running variance one."""
        nn.init.ones_(self.weight)
        nn.init.ones_(self.running_var)

    def forward(self, x: Tensor) -> VectorField:
        """Normalise ``(B, C, 2, H, W)``."""
        self._check_input(x)
        variance = self._tracked_variance(x) if self._learns_from(x) else self.running_var.flatten()
        return vector_field_batch_norm2d(x, variance, self.weight.flatten(), eps=self.eps)

    def _learns_from(self, x: Tensor) -> bool:
        """Whether there are vectors whose variance counts, here or in other processes."""
        return self.training and (self.process_group is not None or x.shape[0] > 0)

    def _tracked_variance(self, x: Tensor) -> Tensor:
        variance, count = self._variance(x)
        with torch.no_grad():
            unbiased = (variance * count / (count - 1)).to(self.running_var.dtype)
            self.running_var.lerp_(unbiased.view_as(self.running_var), self.momentum)
        return variance

    def _variance(self, x: Tensor) -> tuple[Tensor, int]:
        """Of the lengths, and how many there are a channel."""
        if self.process_group is None:
            return vector_field_variance(x), x[:, 0, 0].numel()
        lengths = vector_field_magnitude(x.to(torch.promote_types(x.dtype, torch.float32)))
        return shared_variance(lengths, self.process_group)

    def _check_input(self, x: Tensor) -> None:
        check_vector_field("VectorFieldBatchNorm2d", x)
        if x.shape[1] != self.num_features:
            raise ShapeError(
                f"VectorFieldBatchNorm2d: expected a vector field (B, {self.num_features}, 2, H, W), "
                f"got {tuple(x.shape)}"
            )
        if self.training and self.process_group is None and x[:, 0, 0].numel() == 1:
            raise ShapeError(
                "VectorFieldBatchNorm2d: expected more than one vector a channel in training, "
                f"got {tuple(x.shape)}; a variance needs two, use larger batches or eval()"
            )

    def extra_repr(self) -> str:
        """Features, momentum and eps."""
        return f"{self.num_features}, momentum={self.momentum}, eps={self.eps}"


class _VectorFieldDropout(nn.Module):
    whole_channels: bool

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_probability("", p)
        self.p = p

    def forward(self, x: Tensor) -> VectorField:
        """Drop vectors in training, the identity in evaluation."""
        return vector_field_dropout(x, self.p, whole_channels=self.whole_channels, training=self.training)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class VectorFieldDropout(_VectorFieldDropout):
    """Drop single vectors, both components together; see `functional.vector_field_dropout`.

    Shapes:
        input and output ``(B, C, 2, H, W)``.

    Args:
        p: The probability of dropping a vector.

    Raises:
        SettingError: If p is not in [0, 1).
        ShapeError: From the forward pass, if the input is not a vector field.

    Exactness:
        For a given mask it commutes with turning all vectors.

    Source:
        The public code of Sosnovik et al. 2020.

    Example:
        >>> VectorFieldDropout(0.3).eval()(torch.ones(1, 2, 2, 4, 4)).mean().item()
        1.0
    """

    whole_channels = False


class VectorFieldDropout2d(_VectorFieldDropout):
    """Drop whole channels of vectors, on all pixels together; see `functional.vector_field_dropout`.

    Shapes:
        input and output ``(B, C, 2, H, W)``.

    Args:
        p: The probability of dropping a channel.

    Raises:
        SettingError: If p is not in [0, 1).
        ShapeError: From the forward pass, if the input is not a vector field.

    Exactness:
        For a given mask it commutes with turning all vectors, with scaling and with shifts.

    Example:
        >>> VectorFieldDropout2d(0.3).eval()(torch.ones(1, 2, 2, 4, 4)).mean().item()
        1.0
    """

    whole_channels = True


def _check_sizes(in_channels: int, out_channels: int, kernel_size: int, padding: Padding) -> None:
    if not (is_whole(in_channels) and is_whole(out_channels)):
        raise SettingError(
            f"expected at least 1 channel in and out, got {in_channels!r} and {out_channels!r}"
        )
    check_odd("kernel_size", kernel_size)
    ConvGeometry(padding=padding)


def _shown(layer: VectorFieldLift2d | VectorFieldConv2d) -> str:
    return (
        f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, "
        f"padding={layer.padding!r}, {layer.scales}"
    )
