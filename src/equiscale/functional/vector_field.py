"""Vector fields over images: the strongest scale becomes the angle of a vector (Marcos et al. 2018)."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, max_pool2d

from equiscale._typing import Image
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.checks import check_filled, check_operands, check_probability, is_number, is_whole
from equiscale.functional.geometry import ConvGeometry
from equiscale.functional.pool import check_pooling

VectorField: TypeAlias = Float[Tensor, "B C 2 H W"]

Padding: TypeAlias = int | Literal["same"]
Turn: TypeAlias = Literal["equivariant", "published"]


@dataclass(frozen=True)
class ScaleAngles:
    r"""The factors by which the image is resized, and the angle that stands for each of them.

    .. math:: s_k = b^k, \quad \theta_k = k \, \frac{\Theta}{n + m - 1}, \qquad k = 1 - n, \dots, m

    A large factor answers to a small object: an object larger by b turns every vector by −θ₁.

    Args:
        num_small: n, the number of factors of at most 1, the factor 1 among them.
        num_big: m, the number of factors above 1.
        base: b, the ratio of neighbouring factors, larger than 1.
        angle_range: Θ, the angle between the first and the last factor, in radians, in (0, 2π).

    Raises:
        SettingError: For a value outside its legal range.

    Source:
        Marcos, Kellenberger, Lobry, Tuia 2018; the defaults are those of the published
        MNIST-scale networks.

    Example:
        >>> scales = ScaleAngles(num_small=2, num_big=1, base=2.0, angle_range=1.0)
        >>> scales.factors, scales.angles
        ((0.5, 1.0, 2.0), (-0.5, 0.0, 0.5))
    """

    num_small: int = 5
    num_big: int = 3
    base: float = 1.26
    angle_range: float = 2 * math.pi / 3

    def __post_init__(self) -> None:
        if not (is_whole(self.num_small) and is_whole(self.num_big, 0)):
            raise SettingError(
                f"expected num_small of at least 1 and num_big of at least 0, got {self.num_small} and "
                f"{self.num_big}; num_small counts the factor 1"
            )
        if not (is_number(self.base) and 1 < self.base < math.inf):
            raise SettingError(f"expected a base larger than 1, got {self.base}")
        if not (is_number(self.angle_range) and 0 < self.angle_range < 2 * math.pi):
            raise SettingError(f"expected an angle_range in (0, 2π) radians, got {self.angle_range}")

    @property
    def step(self) -> float:
        """θ₁, the angle between neighbouring factors, in radians."""
        return self.angle_range / max(len(self) - 1, 1)

    @property
    def factors(self) -> tuple[float, ...]:
        """The factors s, increasing."""
        return tuple(self.base**exponent for exponent in self._exponents)

    @property
    def angles(self) -> tuple[float, ...]:
        """The angles θ, in radians, in the order of the factors."""
        return tuple(exponent * self.step for exponent in self._exponents)

    @property
    def _exponents(self) -> range:
        return range(1 - self.num_small, self.num_big + 1)

    def __len__(self) -> int:
        return self.num_small + self.num_big


_DEFAULT = ScaleAngles()


def vector_field_lift2d(
    x: Tensor, weight: Tensor, *, scales: ScaleAngles = _DEFAULT, padding: Padding = "same"
) -> VectorField:
    r"""Correlate resized copies of an image with one filter; keep the strongest answer as a vector.

    .. math:: r_{c' k} = R_{1/s_k} \Bigl( \sum_c w_{c' c} \star R_{s_k} x_c \Bigr), \quad
        k^* = \arg\max_k r_{c' k}, \quad
        y_{c'} = \max(r_{c' k^*}, 0) \, (\cos \theta_{k^*}, \sin \theta_{k^*})

    with R bilinear resizing of the whole image, without a filter against aliasing.

    Shapes:
        x: ``(B, C, H, W)``; weight: ``(C', C, K, K)``; result: ``(B, C', 2, H', W')`` with
        H' = H + 2·padding − K + 1.

    Args:
        x: The image.
        weight: w.
        scales: The factors s and their angles θ.
        padding: Zeros added on each side of every resized copy, in its own pixels, or "same". With any
            other than "same" the answers of the factors do not lie on top of one another.

    Returns:
        The vector field: components (u, v) on axis 2.

    Raises:
        ShapeError: If the shapes do not fit one another, or the smallest copy is smaller than K.
        SettingError: If the padding is illegal.

    Exactness:
        With an odd whole base b, enlarging by b as the layer resizes turns the result by −θ₁ exactly, at
        the pixels that have a partner and where the strongest factors are on the list before and after.
        Otherwise approximate, under shifts too, as the resizing is: ``tests/nn/test_vector_field.py``
        measures it. Exact under mirroring of image and filter.

    Source:
        Marcos et al. 2018. As published, copies have whole pixels: the factor that is in
        effect for a side of H pixels is round(s·H) / H.

    Example:
        >>> vector_field_lift2d(torch.randn(2, 3, 12, 14), torch.randn(4, 3, 5, 5)).shape
        torch.Size([2, 4, 2, 12, 14])
    """
    name = "vector_field_lift2d"
    _check_operands(name, x, weight, scales, "(C', C, K, K)")
    if x.ndim != 4 or x.shape[1] != weight.shape[1]:
        raise ShapeError(f"{name}: expected an image (B, {weight.shape[1]}, H, W), got {tuple(x.shape)}")
    margin = _checked_margin(name, x, weight, scales, padding)
    responses = [_response(x, weight, factor, margin) for factor in scales.factors]
    return _strongest(torch.stack(responses, dim=2), scales)


def vector_field_conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    scales: ScaleAngles = _DEFAULT,
    padding: Padding = "same",
    turn: Turn = "equivariant",
) -> VectorField:
    r"""As `vector_field_lift2d`, for a vector field: the filter's vectors turn with its scale.

    .. math:: r_{c' k} = R_{1/s_k} \Bigl( \sum_c (T_k w_{c' c})_u \star R_{s_k} u_c
        + (T_k w_{c' c})_v \star R_{s_k} v_c \Bigr), \quad
        T_k = \begin{pmatrix} \cos \theta_k & -\sin \theta_k \\ \sin \theta_k & \cos \theta_k
        \end{pmatrix}

    and of these the strongest as a vector, as in the lift. An object larger by b turns the input's
    vectors by −θ₁ and is found at the factor before; the filters turned by θ then give the same answer.

    Shapes:
        x: ``(B, C, 2, H, W)``; weight: ``(C', C, 2, K, K)``; result: ``(B, C', 2, H', W')`` with
        H' = H + 2·padding − K + 1.

    Args:
        x: The vector field.
        weight: w, the components (w_u, w_v) on axis 2.
        scales: The factors s and their angles θ.
        padding: As in `vector_field_lift2d`.
        turn: "equivariant": T as above; "published": its inverse, as in the public code.

    Returns:
        The vector field of C' channels.

    Raises:
        ShapeError: If the shapes do not fit one another, or the smallest copy is smaller than K.
        SettingError: If padding or turn are illegal.

    Exactness:
        With an odd whole base b, enlarging by b as the layer resizes turns the result by −θ₁ exactly, at
        the pixels that have a partner and where the strongest factors are on the list before and after.
        Otherwise approximate, as the resizing is. With the published turn it is not equivariant:
        ``tests/nn/test_vector_field.py`` measures all three.

    Source:
        Marcos et al. 2018. Deviation: the public code turns the filters the other way.

    Example:
        >>> vector_field_conv2d(torch.randn(2, 3, 2, 12, 14), torch.randn(4, 3, 2, 5, 5)).shape
        torch.Size([2, 4, 2, 12, 14])
    """
    name = "vector_field_conv2d"
    _check_operands(name, x, weight, scales, "(C', C, 2, K, K)")
    if x.ndim != 5 or x.shape[1:3] != weight.shape[1:3]:
        raise ShapeError(
            f"{name}: expected a vector field (B, {weight.shape[1]}, 2, H, W), got {tuple(x.shape)}"
        )
    components = x.flatten(1, 2)  # (B, C*2, H, W)
    margin = _checked_margin(name, components, weight, scales, padding)
    sign = turn_sign(turn)
    responses = [
        _response(components, _turned(weight, sign * angle).flatten(1, 2), factor, margin)
        for factor, angle in zip(scales.factors, scales.angles, strict=True)
    ]
    return _strongest(torch.stack(responses, dim=2), scales)


def vector_field_magnitude(x: Tensor) -> Image:
    r"""The length of every vector.

    .. math:: y_c = \sqrt{u_c^2 + v_c^2}

    Shapes:
        x: ``(B, C, 2, H, W)``; result: ``(B, C, H, W)``.

    Args:
        x: The vector field.

    Returns:
        The lengths. Where a vector is zero the gradient is zero; what is not a number stays so.

    Raises:
        ShapeError: If x is not a vector field.

    Exactness:
        Invariant to turning all vectors, up to rounding.

    Source:
        Marcos et al. 2018. Deviation: the published code's gradient is not a number at zero vectors.

    Example:
        >>> vector_field_magnitude(torch.tensor([3.0, 4.0]).view(1, 1, 2, 1, 1)).item()
        5.0
    """
    check_vector_field("vector_field_magnitude", x)
    wide = x.float() if x.dtype == torch.float16 else x  # in half precision the square of 256 is infinite
    u, v = wide.unbind(2)
    size = torch.maximum(u, v).maximum(-torch.minimum(u, v)).detach()  # of the longer component
    # Any positive number would do as unit: this one keeps the squares from overflow and from vanishing.
    limits = torch.finfo(size.dtype)
    unit = size.clamp(limits.tiny, limits.max)
    u, v = u / unit, v / unit
    squares = u * u + v * v  # a norm along this axis takes tens of times as long
    present = squares != 0  # true of what is not a number
    root = torch.where(present, squares, 1).sqrt() * present  # no division by zero backwards
    return (root * unit).to(x.dtype)


def vector_field_max_pool2d(
    x: Tensor, kernel_size: int, *, stride: int | None = None, padding: int = 0
) -> VectorField:
    r"""Keep the longest vector of every window of pixels.

    .. math:: y_c(p) = x_c(q^*), \qquad q^* = \arg\max_{q \in \Omega(p)} |x_c(q)|

    Shapes:
        x: ``(B, C, 2, H, W)``; result: ``(B, C, 2, H', W')``, H' = (H + 2·padding − k) // stride + 1.

    Args:
        x: The vector field.
        kernel_size: k, the side of the window in pixels.
        stride: Step in pixels; None: k.
        padding: Pixels added on each side that are never chosen, at most k / 2.

    Returns:
        The chosen vectors; of equally long ones the first.

    Raises:
        ShapeError: If x is not a vector field, or smaller with its padding than the window.
        SettingError: If kernel_size, stride or padding are illegal.

    Exactness:
        Commutes with turning all vectors, and with shifts by multiples of the stride.

    Source:
        Marcos et al. 2018.

    Example:
        >>> field = torch.tensor([[1.0, 3.0], [0.0, 4.0]]).view(1, 1, 2, 1, 2)  # (1, 0) and (3, 4)
        >>> vector_field_max_pool2d(field.expand(1, 1, 2, 2, 2), 2).flatten().tolist()
        [3.0, 4.0]
    """
    check_vector_field("vector_field_max_pool2d", x)
    check_pooling("vector_field_max_pool2d", x, kernel_size, stride, padding)
    lengths = vector_field_magnitude(x.detach())
    _, index = max_pool2d(lengths, kernel_size, stride, padding, return_indices=True)
    chosen = index.flatten(2)[:, :, None].expand(-1, -1, 2, -1)  # (B, C, 2, H'*W')
    return x.flatten(3).gather(3, chosen).view(*x.shape[:3], *index.shape[2:])


def vector_field_variance(x: Tensor) -> Float[Tensor, "C"]:
    r"""The variance of the vectors' lengths in every channel, over images and pixels.

    .. math:: \sigma_c^2 = \tfrac{1}{n} \sum_i (|x_{c i}| - \mu_c)^2, \quad
        \mu_c = \tfrac{1}{n} \sum_i |x_{c i}|

    Shapes:
        x: ``(B, C, 2, H, W)``; result: ``(C,)``.

    Args:
        x: The vector field.

    Returns:
        The biased variance, in float32 at least.

    Raises:
        ShapeError: If x is not a vector field.

    Exactness:
        Invariant to turning all vectors, up to rounding.

    Source:
        Marcos et al. 2018.

    Example:
        >>> field = torch.tensor([[1.0, 3.0], [0.0, 4.0]]).view(1, 1, 2, 1, 2)  # lengths 1 and 5
        >>> vector_field_variance(field).tolist()
        [4.0]
    """
    check_vector_field("vector_field_variance", x)
    if x.shape[0] == 0:
        raise ShapeError(
            f"vector_field_variance: expected at least one vector a channel, got {tuple(x.shape)}; "
            "a variance of nothing is no number"
        )
    lengths = vector_field_magnitude(x.to(torch.promote_types(x.dtype, torch.float32)))
    return lengths.var(dim=(0, 2, 3), correction=0)


def vector_field_batch_norm2d(
    x: Tensor, variance: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5
) -> VectorField:
    r"""Divide the vectors of every channel by the standard deviation of their lengths.

    .. math:: y_c = \gamma_c \frac{x_c}{\sqrt{\sigma_c^2 + \epsilon}}

    No mean is taken off: angles stay what they are.

    Shapes:
        x: ``(B, C, 2, H, W)``; variance and weight: ``(C,)``; result: as x.

    Args:
        x: The vector field.
        variance: σ², of the batch (`vector_field_variance`) or a running one.
        weight: γ, or None for ones.
        eps: ε.

    Returns:
        The vector field.

    Raises:
        ShapeError: If the shapes do not fit one another.

    Exactness:
        Commutes with scaling, with shifts, and with turning all vectors.

    Source:
        Marcos et al. 2018. Deviation: the published code has the weight, and never uses it.

    Example:
        >>> x = torch.ones(1, 1, 2, 1, 1)
        >>> vector_field_batch_norm2d(x, torch.tensor([4.0]), eps=0.0).flatten().tolist()
        [0.5, 0.5]
    """
    name = "vector_field_batch_norm2d"
    check_vector_field(name, x)
    if not (is_number(eps) and 0 <= eps < math.inf):
        raise SettingError(f"{name}: expected a finite eps of at least 0, got {eps!r}")
    check_filled(name, variance)
    channels = x.shape[1:2]
    for role, values in (("variance", variance), ("weight", weight)):
        if values is None:
            continue
        check_filled(name, values)
        if values.shape != channels:
            raise ShapeError(
                f"{name}: expected a {role} ({channels[0]},), one number a channel, got {tuple(values.shape)}"
            )
    gain = (variance + eps).rsqrt()
    gain = gain if weight is None else gain * weight
    return x * gain.to(x.dtype).view(-1, 1, 1, 1)


def vector_field_dropout(
    x: Tensor,
    p: float = 0.5,
    *,
    whole_channels: bool = False,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> VectorField:
    r"""Drop whole vectors, never one component alone; or whole channels of vectors.

    .. math:: y = \tfrac{m}{1 - p} \, (u, v), \quad m \sim \text{Bernoulli}(1 - p)

    Shapes:
        x: ``(B, C, 2, H, W)``; result: the same.

    Args:
        x: The vector field.
        p: The probability of dropping a vector.
        whole_channels: One m for all pixels of a channel, rather than one for every vector.
        training: False: the identity.
        generator: Source of randomness on x's device; None: torch's default, as in torch.nn.

    Returns:
        The vector field.

    Raises:
        ShapeError: If x is not a vector field.
        SettingError: If p is not in [0, 1).

    Exactness:
        For a given mask it commutes with turning all vectors; that of channels also with scaling.

    Source:
        The public code of Sosnovik et al. 2020 for single vectors; whole channels are ours.

    Example:
        >>> vector_field_dropout(torch.ones(1, 2, 2, 4, 4), 0.5, training=False).sum().item()
        64.0
    """
    check_vector_field("vector_field_dropout", x)
    check_probability("vector_field_dropout: ", p)
    if not training or p == 0:
        return x
    pixels = (1, 1) if whole_channels else x.shape[3:]
    shape = (*x.shape[:2], 1, *pixels)
    kept = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - p, generator=generator)
    return x * (kept / (1 - p))


def check_vector_field(name: str, x: Tensor) -> None:
    """Raise a ShapeError unless x has the axes of a vector field, two components on axis 2."""
    check_filled(name, x)
    if x.ndim != 5 or x.shape[2] != 2:
        raise ShapeError(f"{name}: expected a vector field (B, C, 2, H, W), got {tuple(x.shape)}")


def turn_sign(turn: Turn) -> int:
    """The direction in which filters turn with their angle; a SettingError for another word."""
    if turn not in get_args(Turn):
        raise SettingError(f"expected a turn of {', '.join(get_args(Turn))}, got {turn!r}")
    return 1 if turn == "equivariant" else -1


def _response(x: Tensor, weight: Tensor, factor: float, margin: int) -> Image:
    """Resize, correlate, and resize to what the correlation of the original would give."""
    rows, columns = x.shape[-2:]
    shrunk = 2 * margin - weight.shape[-1] + 1
    resized = _resize(x, (_resized(rows, factor), _resized(columns, factor)))
    return _resize(conv2d(resized, weight, padding=margin), (rows + shrunk, columns + shrunk))


def _resized(size: int, factor: float) -> int:
    return max(round(size * factor), 1)


def _resize(x: Tensor, size: tuple[int, int]) -> Image:
    return x if x.shape[-2:] == size else interpolate(x, size=size, mode="bilinear", align_corners=False)


def _turned(weight: Tensor, angle: float) -> Tensor:
    u, v = weight.unbind(2)
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([cos * u - sin * v, sin * u + cos * v], dim=2)


def _strongest(responses: Float[Tensor, "B C A H W"], scales: ScaleAngles) -> VectorField:
    """The largest positive answer, in the direction of its factor's angle."""
    strongest, index = responses.max(2)
    angle = index.to(strongest.dtype) * scales.step + scales.angles[0]
    directions = torch.stack([angle.cos(), angle.sin()], dim=2)
    return strongest.relu()[:, :, None] * directions


def check_scale_angles(name: str, scales: object) -> None:
    """Raise a SettingError for what are no factors with their angles."""
    if not isinstance(scales, ScaleAngles):
        raise SettingError(f"{name}: expected ScaleAngles, got {scales!r}; write scales=ScaleAngles(...)")


def _check_operands(name: str, x: Tensor, weight: Tensor, scales: ScaleAngles, layout: str) -> None:
    check_operands(name, x, weight)
    check_scale_angles(name, scales)
    wrong_axes = weight.ndim != layout.count(",") + 1 or (weight.ndim == 5 and weight.shape[2] != 2)
    if wrong_axes or weight.shape[-1] != weight.shape[-2] or weight.shape[-1] % 2 == 0:
        raise ShapeError(f"{name}: expected weights {layout} with odd K, got {tuple(weight.shape)}")


def _checked_margin(name: str, x: Tensor, weight: Tensor, scales: ScaleAngles, padding: Padding) -> int:
    kernel_size = weight.shape[-1]
    margin = ConvGeometry(padding=padding).margin(kernel_size)
    smallest = min(_resized(size, scales.factors[0]) for size in x.shape[-2:])
    if smallest + 2 * margin < kernel_size:
        raise ShapeError(
            f"{name}: expected the smallest copy, padded, to be at least the kernel's {kernel_size} pixels, "
            f"got {smallest} of {tuple(x.shape[-2:])} with padding {margin}; use padding='same' or a larger "
            "image"
        )
    return margin
