"""A picture that can be rendered at every size: equal balls on a floor, near and far."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]

FOCAL = 2.2  # the half height of the picture is 1
FLOOR = -0.62
RADIUS = 0.55
LIGHT = np.array([-0.55, 0.75, -0.42]) / np.linalg.norm([-0.55, 0.75, -0.42])
GREY = 0.7  # about the mean of the picture: what networks see is the rest
SAMPLES = 3  # rays a pixel along each axis

# Where a ball touches the floor is given by its distance and its place in the picture.
DISTANCES = (3.9, 5.515, 7.8, 11.03)  # by √2 each: so are the sizes in the picture
PLACES = (-0.80, 0.42, -0.15, 0.93)
PAINTS = ((0.72, 0.16, 0.12), (0.10, 0.32, 0.62), (0.80, 0.45, 0.05), (0.05, 0.42, 0.32))


@dataclass(frozen=True)
class Ball:
    """A ball on the floor: where it is in space, and its colour."""

    center: Values
    paint: Values


def balls() -> list[Ball]:
    """Equal balls, each √2 times as far away as the one before it."""
    return [
        Ball(np.array([place * distance / FOCAL, FLOOR + RADIUS, distance]), np.array(paint))
        for distance, place, paint in zip(DISTANCES, PLACES, PAINTS, strict=True)
    ]


def in_picture(ball: Ball) -> tuple[float, float, float]:
    """Row, column and radius of a ball, in half heights of the picture from its centre."""
    x, y, distance = ball.center
    return -FOCAL * y / distance, FOCAL * x / distance, FOCAL * RADIUS / distance


def render(size: tuple[int, int], *, scale: float = 1.0, center: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """The picture (1, 3, H, W) with values in 0…1, enlarged by ``scale`` about a row and column of it."""
    height, width = size
    fine = (height * SAMPLES, width * SAMPLES)
    rows, columns = ((np.arange(n) + 0.5 - n / 2) / (height * SAMPLES / 2) / scale for n in fine)
    up, right = np.meshgrid(-rows - center[0], columns + center[1], indexing="ij")
    rays = np.stack([right, up, np.full_like(up, FOCAL)], axis=-1)
    colors = _trace(rays / np.linalg.norm(rays, axis=-1, keepdims=True))
    pixels = colors.reshape(height, SAMPLES, width, SAMPLES, 3).mean(axis=(1, 3))
    return torch.from_numpy(pixels.clip(0, 1) ** (1 / 2.2)).movedim(-1, 0)[None]


def _trace(rays: Values) -> Values:
    colors, nearest = _behind(rays), np.full(rays.shape[:-1], np.inf)
    for ball in balls():
        distance = _hit(np.zeros(3), rays, ball)
        seen = distance < nearest
        point = distance[seen, None] * rays[seen]
        colors[seen] = _shade(point, ball, rays[seen])
        nearest[seen] = distance[seen]
    return colors


def _hit(origin: Values, rays: Values, ball: Ball) -> Values:
    """The distance along each ray to a ball, infinite where it misses."""
    offset = ball.center - origin
    along = (rays * offset).sum(-1)
    under = along**2 - (offset**2).sum(-1) + RADIUS**2
    distance = along - np.sqrt(np.maximum(under, 0))
    return np.where((under > 0) & (distance > 1e-6), distance, np.inf)


def _shade(points: Values, ball: Ball, rays: Values) -> Values:
    normal = (points - ball.center) / RADIUS
    facing = normal @ LIGHT
    mirrored = 2 * facing[:, None] * normal - LIGHT
    glint = np.maximum(-(mirrored * rays).sum(-1), 0) ** 40
    from_floor = 0.10 * np.maximum(-normal[:, 1], 0)
    diffuse = (0.16 + 0.75 * np.maximum(facing, 0) + from_floor)[:, None] * ball.paint
    return diffuse + 0.55 * glint[:, None]


def _behind(rays: Values) -> Values:
    """The wall of evening sky and the floor with the shadows of the balls."""
    height = np.clip(rays[..., 1] * 2.2, 0, 1)[..., None]
    sky = (1 - height) * np.array([0.86, 0.84, 0.78]) + height * np.array([0.52, 0.66, 0.80])
    down = rays[..., 1] < -1e-3
    distance = np.where(down, FLOOR / np.minimum(rays[..., 1], -1e-3), np.inf)
    points = np.where(down[..., None], distance[..., None], 0.0) * rays
    haze = np.exp(-0.055 * points[..., 2:])
    floor = haze * _floor(points)[..., None] * np.array([0.80, 0.74, 0.64]) + (1 - haze) * np.array(
        [0.86, 0.84, 0.78]
    )
    return np.where(down[..., None], floor, sky)


def _floor(points: Values) -> Values:
    boards = 1 + 0.05 * np.sin(points[..., 0] * 5.0) * np.exp(-0.25 * points[..., 2])
    lit = np.ones(points.shape[:-1])
    for ball in balls():
        lit *= np.where(np.isfinite(_hit_from(points, ball)), 0.36, 1.0)
    return boards * lit


def _hit_from(points: Values, ball: Ball) -> Values:
    return _hit(points, np.broadcast_to(LIGHT, points.shape), ball)
