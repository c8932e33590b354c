"""What every layer promises: one row a layer, and the same tests for all."""

import copy
import io
import math
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import equiscale.nn
from equiscale import HermiteBasis, ScaleGrid
from equiscale.errors import EquiscaleError, SettingError, ShapeError
from equiscale.nn import (
    ColumnBatchNorm2d,
    ImageBatchNorm2d,
    ImageMaxPool2d,
    InputPyramid,
    LearnableLiftConv2d,
    LearnableScaleConv2d,
    LearnableScales,
    LiftConv2d,
    LocallyScaleInvariantConv2d,
    MultiColumnConv2d,
    MultiColumnLift2d,
    PointwiseScaleConv2d,
    RescaledKernelConv2d,
    RescaledKernelLift2d,
    ScaleAvgPool2d,
    ScaleBatchNorm2d,
    ScaleChannelDropout,
    ScaleConv2d,
    ScaleConvTranspose2d,
    ScaleDoubleConv2d,
    ScaleDropout2d,
    ScaleMaxPool2d,
    ScalePool,
    ScaleProjection,
    ScaleSpaceConv2d,
    ScaleSpaceLift2d,
    ScaleSteeredConv2d,
    ScaleSteering,
    ScaleUNetDown2d,
    ScaleUpsample2d,
    ScaleWise,
    SteerableConv2d,
    ValueDropout,
    VectorFieldBatchNorm2d,
    VectorFieldConv2d,
    VectorFieldDropout,
    VectorFieldDropout2d,
    VectorFieldLift2d,
    VectorFieldMagnitude,
    VectorFieldMaxPool2d,
)

GRID = ScaleGrid.geometric(1.0, 1.5, 3)
BASIS = HermiteBasis(2)
STEERABLE = {"kernel_size": 7, "grid": GRID, "basis": BASIS}

IMAGE, MAP = (2, 4, 8, 9), (2, 4, 3, 8, 9)
NOT_A_MAP = [((2, 4, 8, 9), r"got \(2, 4, 8, 9\)"), ((4, 3, 8, 9, 1, 1), r"got \(4, 3, 8, 9, 1, 1\)")]


FIELD = (2, 4, 2, 8, 9)
NOT_A_FIELD = [(IMAGE, r"got \(2, 4, 8, 9\)"), (MAP, r"got \(2, 4, 3, 8, 9\)")]


@dataclass(frozen=True)
class Row:
    """A layer as it is used, and as it refuses to be used."""

    build: Callable[[], nn.Module]
    input: tuple[int, ...] = MAP
    output: tuple[int, ...] = MAP
    state: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shown: str = ""
    wrong_inputs: list[tuple[tuple[int, ...], str]] = field(default_factory=lambda: NOT_A_MAP)
    wrong_settings: list[tuple[dict, str]] = field(default_factory=list)
    legal: dict | None = None  # the settings around a wrong one, where they are not the usual
    ndim: int = 2  # how many of the input's axes are pixels

    @property
    def layer(self) -> type[nn.Module]:
        return type(self.build())


WRONG_CHANNELS = [
    ({"in_channels": 0}, "in_channels to be a positive multiple of groups=1, got 0"),
    ({"out_channels": -1}, "out_channels to be a positive multiple of groups=1, got -1"),
    ({"in_channels": 4, "groups": 3}, "in_channels to be a positive multiple of groups=3, got 4"),
    ({"stride": 0}, "stride of at least 1, one number for both axes, got 0"),
    ({"stride": (1, 1)}, r"one number for both axes, got \(1, 1\)"),
    ({"pooling": 0}, "pooling windows of at least 1 pixel, got 0"),
    ({"pooling": 2.0}, "pooling windows of at least 1 pixel, got 2.0"),
    ({"grid": [1.0, 2.0]}, r"a ScaleGrid, got \[1.0, 2.0\]; write grid=ScaleGrid"),
    ({"padding_mode": "wrap"}, "padding_mode to be one of zeros, .*, got 'wrap'"),
]
WRONG_P = [({"p": 1.0}, r"p with 0 <= p < 1, got 1\.0"), ({"p": -0.5}, r"p with 0 <= p < 1, got -0\.5")]
WRONG_POOL = [
    ({"kernel_size": 0}, "kernel_size and stride of at least 1, got 0 and None"),
    ({"kernel_size": 2, "stride": 0}, "kernel_size and stride of at least 1, got 2 and 0"),
    ({"kernel_size": 3, "padding": 2}, "padding of 0 to 1, half the kernel, got 2"),
]
WRONG_FIELD_FILTERS = [
    ({"in_channels": 0}, "at least 1 channel in and out, got 0 and 6"),
    ({"kernel_size": 4}, "an odd kernel_size, got 4; a centred filter needs a central pixel"),
    ({"padding": -1}, "a padding of at least 0 or 'same', got -1"),
]

ROWS = {
    "LiftConv2d": Row(
        lambda: LiftConv2d(4, 6, **STEERABLE, padding="same", groups=2),
        input=IMAGE,
        output=(2, 6, 3, 8, 9),
        state={"weight": (6, 2, 4), "bias": (6,)},
        shown="4, 6, kernel_size=7, grid=ScaleGrid([1.0, 1.5, 2.25]), basis=HermiteBasis(effective_size=2",
        wrong_inputs=[
            (MAP, r"\(B, 4, H, W\), got \(2, 4, 3, 8, 9\)"),
            ((2, 3, 8, 9), r"\(B, 4, H, W\), got \(2, 3, 8, 9\)"),
        ],
        wrong_settings=[
            *WRONG_CHANNELS,
            ({"scale_padding": "replicate"}, "no scale_padding, .* got .replicate."),
        ],
    ),
    "ScaleConv2d": Row(
        lambda: ScaleConv2d(4, 6, **STEERABLE, scale_size=2, stride=2),
        output=(2, 6, 3, 1, 2),
        state={"weight": (6, 4, 2, 4), "bias": (6,)},
        shown="bias=True, stride=2, scale_size=2",
        wrong_inputs=[
            (IMAGE, r"\(B, 4, 3, H, W\), got \(2, 4, 8, 9\)"),
            ((2, 4, 2, 8, 9), r"\(B, 4, 3, H, W\), got \(2, 4, 2, 8, 9\)"),
            ((2, 4, 3, 6, 9), r"kernel's 7 pixels, got \(6, 9\) with padding 0"),
        ],
        wrong_settings=[
            *WRONG_CHANNELS,
            ({"scale_size": 4}, "scale_size of 1 to 3, the grid's scales, got 4"),
            ({"scale_size": 0}, "scale_size of 1 to 3, the grid's scales, got 0"),
        ],
    ),
    "PointwiseScaleConv2d": Row(
        lambda: PointwiseScaleConv2d(4, 6, stride=2, groups=2),
        output=(2, 6, 3, 4, 5),
        state={"weight": (6, 2, 1, 1), "bias": (6,)},
        shown="4, 6, stride=2, groups=2, bias=True",
        wrong_inputs=[*NOT_A_MAP, ((2, 5, 3, 8, 9), r"\(B, 4, S, H, W\), got \(2, 5, 3, 8, 9\)")],
        wrong_settings=[
            ({"stride": 0}, "stride and groups of at least 1, got 0 and 1"),
            ({"out_channels": 0}, "positive multiples of groups=1 as channels, got 4 and 0"),
            ({"groups": 4}, "positive multiples of groups=4 as channels, got 4 and 6"),
        ],
    ),
    "ScaleBatchNorm2d": Row(
        lambda: ScaleBatchNorm2d(4),
        state={
            "weight": (4,),
            "bias": (4,),
            "running_mean": (4,),
            "running_var": (4,),
            "num_batches_tracked": (),
        },
        shown="4, eps=1e-05, momentum=0.1",
        wrong_inputs=[*NOT_A_MAP, ((2, 3, 3, 8, 9), r"\(B, 4, S, H, W\), got \(2, 3, 3, 8, 9\)")],
    ),
    "ScaleMaxPool2d": Row(
        lambda: ScaleMaxPool2d(3, stride=2, padding=1),
        output=(2, 4, 3, 4, 5),
        shown="3, stride=2, padding=1",
        wrong_settings=WRONG_POOL,
    ),
    "ScaleAvgPool2d": Row(
        lambda: ScaleAvgPool2d(2), output=(2, 4, 3, 4, 4), shown="2, stride=2", wrong_settings=WRONG_POOL
    ),
    "ImageBatchNorm2d": Row(
        lambda: ImageBatchNorm2d(4),
        input=IMAGE,
        output=IMAGE,
        state={
            "weight": (4,),
            "bias": (4,),
            "running_mean": (4,),
            "running_var": (4,),
            "num_batches_tracked": (),
        },
        shown="4, eps=1e-05, momentum=0.1",
        wrong_inputs=[
            (MAP, r"an image \(B, 4, H, W\), got \(2, 4, 3, 8, 9\)"),
            ((2, 3, 8, 9), r"an image \(B, 4, H, W\), got \(2, 3, 8, 9\)"),
        ],
    ),
    "ImageMaxPool2d": Row(
        lambda: ImageMaxPool2d(3, stride=2, padding=1),
        input=IMAGE,
        output=(2, 4, 4, 5),
        shown="kernel_size=3, stride=2, padding=1",
        wrong_inputs=[(MAP, r"an image \(B, C, H, W\), got \(2, 4, 3, 8, 9\)")],
        wrong_settings=WRONG_POOL,
    ),
    "ScaleProjection": Row(
        lambda: ScaleProjection("mean"),
        output=IMAGE,
        shown="'mean'",
        wrong_settings=[({"mode": "min"}, "projection of max, mean, logsumexp, argmax-scale, got 'min'")],
    ),
    "ScaleWise": Row(
        lambda: ScaleWise(nn.Conv2d(4, 6, 3, stride=2)),
        output=(2, 6, 3, 3, 4),
        state={"module.weight": (6, 4, 3, 3), "module.bias": (6,)},
        shown="(module): Conv2d(4, 6, kernel_size=(3, 3), stride=(2, 2))",
    ),
    "ScaleDropout2d": Row(lambda: ScaleDropout2d(0.3), shown="p=0.3", wrong_settings=WRONG_P),
    "ScaleChannelDropout": Row(lambda: ScaleChannelDropout(0.3), shown="p=0.3", wrong_settings=WRONG_P),
    "ValueDropout": Row(lambda: ValueDropout(0.3), shown="p=0.3", wrong_inputs=[], wrong_settings=WRONG_P),
}


LEARNABLE = {"kernel_size": 7, "basis": BASIS}
LEARNED_STATE = {"scales.log_min_scale": (), "scales.log_range": ()}


def learnable_scales() -> LearnableScales:
    return LearnableScales(3, min_scale=1.0, scale_range=2.25)


WRONG_LEARNABLE = [
    ({"in_channels": 0}, "positive multiples of groups=1 as channels, got 0 and 6"),
    ({"groups": 4}, "positive multiples of groups=4 as channels, got 4 and 6"),
    ({"kernel_size": 6}, "an odd kernel_size, got 6; a centred filter needs a central pixel"),
    ({"scales": GRID}, r"LearnableScales, got ScaleGrid.*; write scales=LearnableScales"),
    ({"basis": "hermite"}, "a HermiteBasis, the one with a derivative, got 'hermite'"),
    ({"stride": 0}, "stride of at least 1, one number for both axes, got 0"),
]
ROWS |= {
    "LearnableLiftConv2d": Row(
        lambda: LearnableLiftConv2d(4, 6, **LEARNABLE, scales=learnable_scales(), padding="same", groups=2),
        input=IMAGE,
        output=(2, 6, 3, 8, 9),
        state={**LEARNED_STATE, "weight": (6, 2, 4), "bias": (6,)},
        shown="LearnableScales(3, grid=ScaleGrid([1.0, 1.5, 2.25]))",
        wrong_inputs=[
            (MAP, r"\(B, 4, H, W\), got \(2, 4, 3, 8, 9\)"),
            ((2, 3, 8, 9), r"\(B, 4, H, W\), got \(2, 3, 8, 9\)"),
        ],
        wrong_settings=[
            *(
                ({**LEARNABLE, "scales": learnable_scales(), **wrong}, text)
                for wrong, text in [
                    *WRONG_LEARNABLE,
                    ({"scale_padding": "replicate"}, "no scale_padding, .* got .replicate."),
                ]
            )
        ],
    ),
    "LearnableScaleConv2d": Row(
        lambda: LearnableScaleConv2d(4, 6, **LEARNABLE, scales=learnable_scales(), scale_size=2, stride=2),
        output=(2, 6, 3, 1, 2),
        state={**LEARNED_STATE, "weight": (6, 4, 2, 4), "bias": (6,)},
        shown="bias=True, stride=2, scale_size=2",
        wrong_inputs=[
            (IMAGE, r"\(B, 4, 3, H, W\), got \(2, 4, 8, 9\)"),
            ((2, 4, 3, 6, 9), r"kernel's 7 pixels, got \(6, 9\) with padding 0"),
        ],
        wrong_settings=[
            *(
                ({**LEARNABLE, "scales": learnable_scales(), **wrong}, text)
                for wrong, text in [
                    *WRONG_LEARNABLE,
                    ({"scale_size": 4}, "scale_size of 1 to 3, got 4"),
                ]
            )
        ],
    ),
}

RESCALING = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "scales": [0.5, 1.0, 2.0]}
RESIZED = {"in_channels": 4, "out_channels": 6, "kernel_sizes": [3, 5, 7]}
NO_SCALE_PADDING = ({"scale_padding": "replicate"}, "no scale_padding, .* got 'replicate'")
WRONG_CANONICAL = [
    ({"in_channels": 0}, "in_channels to be a positive multiple of groups=1, got 0"),
    ({"out_channels": 4, "groups": 4, "in_channels": 6}, "in_channels .* multiple of groups=4, got 6"),
    ({"kernel_size": 4}, "an odd kernel_size of at least 1, got 4"),
    ({"stride": 0}, "stride of at least 1, one number for both axes, got 0"),
    NO_SCALE_PADDING,
]
WRONG_RESIZED = [
    ({"out_channels": 0}, "out_channels to be a positive multiple of groups=1, got 0"),
    ({"kernel_sizes": [3, 4]}, r"odd increasing kernel_sizes, got \[3, 4\]"),
    ({"kernel_sizes": [5, 3]}, r"odd increasing kernel_sizes, got \[5, 3\]"),
    ({"kernel_sizes": []}, r"odd increasing kernel_sizes, got \[\]"),
    ({"interpolation": "cubic"}, "interpolation of nearest, bilinear, bicubic, area, got 'cubic'"),
    ({"border": "zeros"}, "a border of padded, blank, got 'zeros'"),
    ({"border": "blank", "stride": 2}, "neither stride, padding nor groups with .*, got stride=2"),
    NO_SCALE_PADDING,
]
WRONG_PYRAMID = [
    ({"pool": "sum"}, "a pool of max, mean, got 'sum'"),
    ({"canvas": "cut"}, "a canvas of same, resized, got 'cut'"),
    ({"method": "nearest"}, "a method of bicubic, bilinear, got 'nearest'"),
]
ROWS |= {
    "LocallyScaleInvariantConv2d": Row(
        lambda: LocallyScaleInvariantConv2d(**RESCALING, padding="same", stride=2, groups=2),
        input=IMAGE,
        output=(2, 6, 4, 5),
        state={"weight": (6, 2, 3, 3), "bias": (6,)},
        shown="4, 6, kernel_size=3, scales=[0.5, 1.0, 2.0], resampling='published', bias=True, stride=2",
        wrong_inputs=[
            (MAP, r"an image \(B, 4, H, W\), got \(2, 4, 3, 8, 9\)"),
            ((2, 3, 8, 9), r"an image \(B, 4, H, W\), got \(2, 3, 8, 9\)"),
        ],
        wrong_settings=[
            *WRONG_CANONICAL,
            ({"resampling": "exact"}, "a resampling of published, centred, got 'exact'"),
        ],
        legal=RESCALING,
    ),
    "MultiColumnLift2d": Row(
        lambda: MultiColumnLift2d(**RESCALING, bias=True, groups=2),
        input=IMAGE,
        output=(2, 6, 3, 8, 9),
        state={"weight": (6, 2, 3, 3), "bias": (6,)},
        shown="4, 6, kernel_size=3, scales=[0.5, 1.0, 2.0], bias=True, padding=same, groups=2",
        wrong_inputs=[
            (MAP, r"an image \(B, 4, H, W\), got \(2, 4, 3, 8, 9\); use MultiColumnConv2d"),
            ((2, 3, 8, 9), r"an image \(B, 4, H, W\) or .*, got \(2, 3, 8, 9\)"),
        ],
        wrong_settings=[
            *WRONG_CANONICAL,
            ({"scales": [0.2, 1.0]}, "leave something of a kernel of 3 pixels, got 0.2, which falls between"),
        ],
        legal=RESCALING,
    ),
    "MultiColumnConv2d": Row(
        lambda: MultiColumnConv2d(**RESCALING, stride=2),
        output=(2, 6, 3, 4, 5),
        state={"weight": (6, 4, 3, 3)},
        shown="bias=False, stride=2, padding=same",
        wrong_inputs=[
            (IMAGE, r"a scale map \(B, 4, 3, H, W\), got \(2, 4, 8, 9\); use MultiColumnLift2d"),
            ((2, 4, 2, 8, 9), r"a scale map \(B, 4, 3, H, W\), got \(2, 4, 2, 8, 9\)"),
        ],
        wrong_settings=WRONG_CANONICAL,
        legal=RESCALING,
    ),
    "ColumnBatchNorm2d": Row(
        lambda: ColumnBatchNorm2d(4, 3),
        state={
            "weight": (12,),
            "bias": (12,),
            "running_mean": (12,),
            "running_var": (12,),
            "num_batches_tracked": (),
        },
        shown="4, 3, eps=1e-05, momentum=0.1",
        wrong_inputs=[*NOT_A_MAP, ((2, 3, 4, 8, 9), r"\(B, 4, 3, H, W\), got \(2, 3, 4, 8, 9\)")],
        wrong_settings=[({"num_scales": 0}, "num_channels and num_scales of at least 1, got 4 and 0")],
        legal={"num_channels": 4, "num_scales": 3},
    ),
    "RescaledKernelLift2d": Row(
        lambda: RescaledKernelLift2d(**RESIZED, padding="same", groups=2),
        input=IMAGE,
        output=(2, 6, 3, 8, 9),
        state={"weight": (6, 2, 3, 3), "bias": (6,)},
        shown="4, 6, kernel_sizes=[3, 5, 7], interpolation='bilinear', border='padded', bias=True, padding",
        wrong_inputs=[
            (MAP, r"an image \(B, 4, H, W\), got \(2, 4, 3, 8, 9\); use RescaledKernelConv2d"),
            ((2, 3, 8, 9), r"\(B, 4, H, W\), got \(2, 3, 8, 9\)"),
        ],
        wrong_settings=WRONG_RESIZED,
        legal=RESIZED,
    ),
    "RescaledKernelConv2d": Row(
        lambda: RescaledKernelConv2d(**RESIZED, border="blank"),
        output=(2, 6, 3, 6, 7),
        state={"weight": (6, 4, 3, 3), "bias": (6,)},
        shown="border='blank', bias=True)",
        wrong_inputs=[
            (IMAGE, r"a scale map \(B, 4, 3, H, W\), got \(2, 4, 8, 9\)"),
            ((2, 4, 2, 8, 9), r"a scale map \(B, 4, 3, H, W\), got \(2, 4, 2, 8, 9\)"),
            ((2, 5, 3, 8, 9), r"a scale map \(B, 4, 3, H, W\), got \(2, 5, 3, 8, 9\)"),
        ],
        wrong_settings=WRONG_RESIZED,
        legal=RESIZED,
    ),
    "ScalePool": Row(
        lambda: ScalePool("slice"),
        output=IMAGE,
        shown="'slice'",
        wrong_settings=[({"kind": "max"}, "a pooling of pixel, slice, energy, got 'max'")],
    ),
    "InputPyramid": Row(
        lambda: InputPyramid(nn.Conv2d(4, 6, 3, padding=1), [0.5, 1.0, 2.0]),
        input=IMAGE,
        output=(2, 6, 8, 9),
        state={"module.weight": (6, 4, 3, 3), "module.bias": (6,)},
        shown="factors=[0.5, 1.0, 2.0], pool='max', canvas='same', method='bicubic'",
        wrong_inputs=[(MAP, r"an image \(B, C, H, W\), got \(2, 4, 3, 8, 9\)")],
        wrong_settings=WRONG_PYRAMID,
        legal={"module": nn.Identity(), "factors": [1.0]},
    ),
    "VectorFieldLift2d": Row(
        lambda: VectorFieldLift2d(4, 6, kernel_size=3),
        input=IMAGE,
        output=(2, 6, 2, 8, 9),
        state={"weight": (6, 4, 3, 3)},
        shown="4, 6, kernel_size=3, padding='same', ScaleAngles(num_small=5, num_big=3, base=1.26",
        wrong_inputs=[
            (FIELD, r"an image \(B, 4, H, W\), got \(2, 4, 2, 8, 9\)"),
            ((2, 3, 8, 9), r"an image \(B, 4, H, W\), got \(2, 3, 8, 9\)"),
        ],
        wrong_settings=WRONG_FIELD_FILTERS,
        legal={"in_channels": 4, "out_channels": 6, "kernel_size": 3},
    ),
    "VectorFieldConv2d": Row(
        lambda: VectorFieldConv2d(4, 6, kernel_size=3, padding=0),
        input=FIELD,
        output=(2, 6, 2, 6, 7),
        state={"weight_u": (6, 4, 3, 3), "weight_v": (6, 4, 3, 3)},
        shown="angle_range=2.0943951023931953), turn='equivariant'",
        wrong_inputs=[*NOT_A_FIELD, ((2, 3, 2, 8, 9), r"\(B, 4, 2, H, W\), got \(2, 3, 2, 8, 9\)")],
        wrong_settings=[
            *WRONG_FIELD_FILTERS,
            ({"turn": "left"}, "a turn of equivariant, published, got 'left'"),
        ],
        legal={"in_channels": 4, "out_channels": 6, "kernel_size": 3},
    ),
    "VectorFieldMaxPool2d": Row(
        lambda: VectorFieldMaxPool2d(3, stride=2, padding=1),
        input=FIELD,
        output=(2, 4, 2, 4, 5),
        shown="3, stride=2, padding=1",
        wrong_inputs=NOT_A_FIELD,
        wrong_settings=WRONG_POOL,
    ),
    "VectorFieldBatchNorm2d": Row(
        lambda: VectorFieldBatchNorm2d(4),
        input=FIELD,
        output=FIELD,
        state={"weight": (1, 4, 1, 1), "running_var": (1, 4, 1, 1)},
        shown="4, momentum=0.5, eps=1e-05",
        wrong_inputs=[*NOT_A_FIELD, ((2, 3, 2, 8, 9), r"\(B, 4, 2, H, W\), got \(2, 3, 2, 8, 9\)")],
        wrong_settings=[
            ({"num_features": 0}, "at least 1 feature, .* got 0, 0.5 and 1e-05"),
            ({"momentum": 1.5}, "momentum in .* got 4, 1.5 and 1e-05"),
            ({"eps": -1.0}, "an eps of at least 0, got 4, 0.5 and -1.0"),
        ],
        legal={"num_features": 4},
    ),
    "VectorFieldMagnitude": Row(VectorFieldMagnitude, input=FIELD, output=IMAGE, wrong_inputs=NOT_A_FIELD),
    "VectorFieldDropout": Row(
        lambda: VectorFieldDropout(0.3),
        input=FIELD,
        output=FIELD,
        shown="p=0.3",
        wrong_inputs=NOT_A_FIELD,
        wrong_settings=WRONG_P,
    ),
    "VectorFieldDropout2d": Row(
        lambda: VectorFieldDropout2d(0.3),
        input=FIELD,
        output=FIELD,
        shown="p=0.3",
        wrong_inputs=NOT_A_FIELD,
        wrong_settings=WRONG_P,
    ),
    "ScaleSpaceLift2d": Row(
        lambda: ScaleSpaceLift2d(3),
        input=IMAGE,
        shown="3, base=2, zero_scale=0.25, padding_mode='zeros'",
        wrong_inputs=[(MAP, r"an image \(B, C, H, W\), got \(2, 4, 3, 8, 9\)")],
        wrong_settings=[
            ({"num_scales": 0}, "num_scales of at least 1, got 0"),
            ({"base": 1}, "a base larger than 1 and a positive zero_scale, got 1 and 0.25"),
            ({"zero_scale": 0.0}, "a positive zero_scale, got 2 and 0.0"),
            ({"padding_mode": "wrap"}, "padding_mode to be one of zeros, .*, got 'wrap'"),
        ],
        legal={"num_scales": 3},
    ),
    "ScaleSpaceConv2d": Row(
        lambda: ScaleSpaceConv2d(4, 6, kernel_size=3, num_scales=2, scale_size=2, stride=2, bias=True),
        output=(2, 6, 2, 4, 5),
        state={"weight": (6, 4, 2, 3, 3), "bias": (6,)},
        shown="4, 6, kernel_size=3, num_scales=2, scale_size=2, base=2, bias=True, stride=2, padding=same",
        wrong_inputs=[
            (IMAGE, r"\(B, 4, 2 or more, H, W\), got \(2, 4, 8, 9\)"),
            ((2, 4, 1, 8, 9), r"\(B, 4, 2 or more, H, W\), got \(2, 4, 1, 8, 9\)"),
            ((2, 3, 2, 8, 9), r"\(B, 4, 2 or more, H, W\), got \(2, 3, 2, 8, 9\)"),
        ],
        wrong_settings=[
            ({"in_channels": 0}, "positive multiples of groups=1 as channels, got 0 and 6"),
            ({"groups": 4}, "positive multiples of groups=4 as channels, got 4 and 6"),
            ({"num_scales": 0}, "num_scales of at least 1, got 0"),
            ({"scale_size": 3}, "scale_size of 1 to 2, the scales, got 3"),
            ({"kernel_size": 4}, "an odd kernel_size, got 4; a centred filter"),
            ({"base": 2.0}, "a whole number of at least 2 as base, got 2.0"),
            ({"padding": 0}, "padding='same' or 1, half the filter before its dilation, got 0"),
            ({"stride": 0}, "stride of at least 1"),
        ],
        legal={"in_channels": 4, "out_channels": 6, "kernel_size": 3, "num_scales": 2},
    ),
}

STEERED = {
    "in_channels": 4,
    "out_channels": 6,
    "steering": ScaleSteering(kernel_sizes=(3, 5), base_size=5, orders=(1.0,)),
}
ROWS |= {
    "ScaleSteeredConv2d": Row(
        lambda: ScaleSteeredConv2d(**STEERED, padding="same", stride=2, groups=2),
        input=IMAGE,
        output=(2, 6, 4, 5),
        state={"mult_real": (1, 6, 2, 9), "mult_imag": (1, 6, 2, 9)},
        shown="4, 6, steering=ScaleSteering(kernel_sizes=(3, 5), base_size=5, orders=(1.0,)",
        wrong_inputs=[
            (MAP, r"\(B, 4, H, W\), got \(2, 4, 3, 8, 9\)"),
            ((2, 3, 8, 9), r"\(B, 4, H, W\), got \(2, 3, 8, 9\)"),
        ],
        wrong_settings=[
            ({"in_channels": 0}, "in_channels to be a positive multiple of groups=1, got 0"),
            ({"out_channels": 7, "groups": 2}, "out_channels to be a positive multiple of groups=2, got 7"),
            ({"stride": 0}, "stride of at least 1, one number for both axes, got 0"),
            NO_SCALE_PADDING,
        ],
        legal=STEERED,
    ),
}

NO_SCALE_PADDING_ND = ({"scale_padding": "replicate"}, "no scale_padding, since the input has no scale axis")
ONLY_IMAGES = [
    ({"projection": "max"}, "no projection, since only the layers for images take the maximum"),
    ({"pooling": 2}, "no pooling, since only the layers for images pool"),
]
WRONG_ND = [wrong for wrong in WRONG_CHANNELS if "pooling" not in wrong[0]] + ONLY_IMAGES
NORM_STATE = {
    "weight": (4,),
    "bias": (4,),
    "running_mean": (4,),
    "running_var": (4,),
    "num_batches_tracked": (),
}


def rows_nd(ndim: int, axes: str, flat: tuple[int, ...], half: tuple[int, ...]) -> dict[str, Row]:
    """The layers of one number of dimensions; ``flat`` and ``half`` are an input's pixels, and pooled."""
    image, scale_map, functions = (2, 4, *flat), (2, 4, 3, *flat), 2**ndim
    layers = {name: getattr(equiscale.nn, f"{name}{ndim}d") for name in ND_LAYERS}
    filters = {"in_channels": 4, "out_channels": 6, **STEERABLE}
    not_a_map = [
        (image, rf"a scale map \(B, C, S, {axes}\), got {re.escape(str(image))}"),
        ((*scale_map, 1), rf"a scale map \(B, C, S, {axes}\), got {re.escape(str((*scale_map, 1)))}"),
    ]
    maps = {"input": scale_map, "ndim": ndim, "wrong_inputs": not_a_map}
    rows = {
        "LiftConv": Row(
            lambda: layers["LiftConv"](**filters, padding="same", groups=2),
            input=image,
            output=(2, 6, 3, *flat),
            state={"weight": (6, 2, functions), "bias": (6,)},
            shown="4, 6, kernel_size=7, grid=ScaleGrid([1.0, 1.5, 2.25]), basis=HermiteBasis(",
            wrong_inputs=[
                (scale_map, rf"\(B, 4, {axes}\), got {re.escape(str(scale_map))}"),
                ((2, 3, *flat), rf"\(B, 4, {axes}\), got {re.escape(str((2, 3, *flat)))}"),
            ],
            wrong_settings=[*WRONG_ND, NO_SCALE_PADDING_ND],
            legal=filters,
            ndim=ndim,
        ),
        "ScaleConv": Row(
            lambda: layers["ScaleConv"](**filters, padding="same", scale_size=2, stride=2),
            input=scale_map,
            output=(2, 6, 3, *(-(-side // 2) for side in flat)),
            state={"weight": (6, 4, 2, functions), "bias": (6,)},
            shown="bias=True, stride=2, padding=same, scale_size=2",
            wrong_inputs=[
                (image, rf"\(B, 4, 3, {axes}\), got {re.escape(str(image))}"),
                ((2, 4, 2, *flat), rf"\(B, 4, 3, {axes}\), got {re.escape(str((2, 4, 2, *flat)))}"),
            ],
            wrong_settings=[*WRONG_ND, ({"scale_size": 4}, "scale_size of 1 to 3, the grid's scales, got 4")],
            legal=filters,
            ndim=ndim,
        ),
        "ScaleBatchNorm": Row(
            lambda: layers["ScaleBatchNorm"](4),
            input=scale_map,
            output=scale_map,
            state=NORM_STATE,
            shown="4, eps=1e-05, momentum=0.1",
            wrong_inputs=[
                ((2, 4, 8, 9) if ndim == 3 else MAP, rf"a scale map \(B, 4, S, {axes}\), got "),
                ((2, 3, 3, *flat), rf"a scale map \(B, 4, S, {axes}\), got \(2, 3, 3"),
            ],
            ndim=ndim,
        ),
        "ScaleMaxPool": Row(
            lambda: layers["ScaleMaxPool"](3, stride=2, padding=1),
            output=(2, 4, 3, *(-(-side // 2) for side in flat)),
            shown="3, stride=2, padding=1",
            wrong_settings=WRONG_POOL,
            **maps,
        ),
        "ScaleAvgPool": Row(
            lambda: layers["ScaleAvgPool"](2),
            output=(2, 4, 3, *half),
            shown="2, stride=2",
            wrong_settings=WRONG_POOL,
            **maps,
        ),
        "ScaleProjection": Row(
            lambda: layers["ScaleProjection"]("mean"),
            output=image,
            shown="'mean'",
            wrong_settings=[({"mode": "min"}, "projection of max, mean, logsumexp, argmax-scale, got 'min'")],
            **maps,
        ),
        "ScaleDropout": Row(
            lambda: layers["ScaleDropout"](0.3),
            output=scale_map,
            shown="p=0.3",
            wrong_settings=WRONG_P,
            **maps,
        ),
    }
    return {f"{name}{ndim}d": row for name, row in rows.items()}


ND_LAYERS = (
    "LiftConv",
    "ScaleConv",
    "ScaleBatchNorm",
    "ScaleMaxPool",
    "ScaleAvgPool",
    "ScaleProjection",
    "ScaleDropout",
)
ROWS |= rows_nd(1, "L", (9,), (4,))
ROWS |= rows_nd(3, "D, H, W", (6, 6, 7), (3, 3, 3))

TRANSPOSED = {"in_channels": 4, "out_channels": 6, **STEERABLE}
BLOCK = {"in_channels": 4, "out_channels": 6, "kernel_size": 7, "grid": GRID, "basis": BASIS}


def norm_state(name: str) -> dict[str, tuple[int, ...]]:
    shapes = {key: (6,) if shape else () for key, shape in NORM_STATE.items()}
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


DOUBLE_STATE = {"0.weight": (6, 4, 1, 4), **norm_state("1"), "3.weight": (6, 6, 1, 4), **norm_state("4")}
WRONG_BLOCK = [({"in_channels": 0}, "in_channels to be a positive multiple of groups=1, got 0")]
ROWS |= {
    "ScaleUpsample2d": Row(
        lambda: ScaleUpsample2d(2, alignment="points"),
        output=(2, 4, 3, 15, 17),
        shown="2, method='bilinear', alignment='points'",
        wrong_settings=[
            ({"factor": 0}, "a whole factor of at least 1, got 0"),
            ({"factor": 1.5}, "a whole factor of at least 1, got 1.5"),
            ({"method": "cubic"}, "a method of bilinear, nearest, got 'cubic'"),
            ({"alignment": "centres"}, "an? alignment of areas, points, got 'centres'"),
            ({"method": "nearest", "alignment": "points"}, "method='bilinear' with alignment='points'"),
        ],
        legal={"factor": 2},
    ),
    "ScaleConvTranspose2d": Row(
        lambda: ScaleConvTranspose2d(
            **TRANSPOSED, scale_size=2, stride=2, padding="same", groups=2, output_padding=1
        ),
        output=(2, 6, 3, 16, 18),
        state={"weight": (4, 3, 2, 4), "bias": (6,)},
        shown="bias=True, stride=2, padding=same, groups=2, scale_size=2, output_padding=1",
        wrong_inputs=[
            (IMAGE, r"\(B, 4, 3, H, W\), got \(2, 4, 8, 9\)"),
            ((2, 4, 2, 8, 9), r"\(B, 4, 3, H, W\), got \(2, 4, 2, 8, 9\)"),
        ],
        wrong_settings=[
            *(wrong for wrong in WRONG_CHANNELS if "pooling" not in wrong[0]),
            ({"output_padding": 1}, "an output_padding of 0 to 0, below the stride, got 1"),
            ({"scale_size": 4}, "scale_size of 1 to 3, the grid's scales, got 4"),
            ({"projection": "max"}, "no projection, since a transposed convolution makes scale maps"),
            ({"padding_mode": "circular"}, "no padding_mode, since the transpose of other than zeros"),
        ],
    ),
    "ScaleDoubleConv2d": Row(
        lambda: ScaleDoubleConv2d(**BLOCK),
        output=(2, 6, 3, 8, 9),
        state=DOUBLE_STATE,
        shown="(3): ScaleConv2d(6, 6, kernel_size=7",
        wrong_inputs=[(IMAGE, r"\(B, 4, 3, H, W\), got \(2, 4, 8, 9\)")],
        wrong_settings=WRONG_BLOCK,
        legal=BLOCK,
    ),
    "ScaleUNetDown2d": Row(
        lambda: ScaleUNetDown2d(**BLOCK),
        input=(2, 4, 3, 12, 14),
        output=(2, 6, 3, 6, 7),
        state={f"1.{key}": shape for key, shape in DOUBLE_STATE.items()},
        shown="(0): ScaleAvgPool2d(2, stride=2",
        wrong_settings=[*WRONG_BLOCK, ({"pool": "min"}, "a pool of avg, max, got 'min'")],
        legal=BLOCK,
    ),
}

COVERS = set(ROWS) | {"SteerableConv2d"}

EVERY_LAYER = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
WITH_STATE = pytest.mark.parametrize(
    "row", [row for row in ROWS.values() if row.state], ids=[name for name, row in ROWS.items() if row.state]
)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def some_input(row: Row, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(row.input, dtype=dtype, generator=torch.Generator().manual_seed(0))


def stirred(module: nn.Module) -> nn.Module:
    """No bias is zero and no running mean either, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module


def test_every_public_layer_has_a_row() -> None:
    layers = {
        name
        for name in equiscale.nn.__all__
        if isinstance(getattr(equiscale.nn, name), type)
        and issubclass(getattr(equiscale.nn, name), nn.Module)
    }
    # No forward of its own, none that takes an input, or one that takes two (tests/nn/test_unet.py).
    base = {"SteerableConv2d", "LearnableScales", "ScaleUNetUp2d"}
    assert layers - base == set(ROWS), "give the new layer a row in ROWS"
    assert all(row.layer.__name__ == name for name, row in ROWS.items())
    assert issubclass(LiftConv2d, SteerableConv2d)
    assert issubclass(ScaleConv2d, SteerableConv2d)


@EVERY_LAYER
def test_maps_a_non_square_input_to_the_documented_shape(row: Row) -> None:
    module = row.build()
    y = module(some_input(row))
    assert tuple(y.shape) == row.output
    assert bool(torch.isfinite(y).all())
    assert row.shown in repr(module)


@EVERY_LAYER
def test_images_of_a_batch_do_not_see_each_other_in_evaluation(row: Row) -> None:
    module, x = stirred(row.build()).eval(), some_input(row)
    alone = torch.cat([module(image[None]) for image in x])
    torch.testing.assert_close(module(x), alone, rtol=1e-5, atol=1e-5)


@EVERY_LAYER
def test_empty_batches_keep_their_shape(row: Row) -> None:
    assert tuple(row.build().eval()(some_input(row)[:0]).shape) == (0, *row.output[1:])


@EVERY_LAYER
def test_memory_layout_of_the_input_does_not_matter(row: Row) -> None:
    module, x = stirred(row.build()).eval(), some_input(row)
    channels_last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    torch.testing.assert_close(module(channels_last), module(x), rtol=1e-5, atol=1e-5)


@EVERY_LAYER
def test_state_keys_are_the_same_in_training_and_evaluation(row: Row) -> None:
    module = row.build()
    for mode in (True, False):
        module.train(mode)
        module(some_input(row))
        assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == row.state


@WITH_STATE
def test_state_makes_a_round_trip(row: Row) -> None:
    module, other = stirred(row.build()).eval(), row.build().eval()
    assert not torch.equal(module(some_input(row)), other(some_input(row)))
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(module(some_input(row)), other(some_input(row)))


@WITH_STATE
def test_copies_compute_the_same_and_share_nothing(row: Row) -> None:
    module, x = stirred(row.build()).eval(), some_input(row)
    expected = module(x)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    for clone in copies:
        assert torch.equal(clone(x), expected)


@EVERY_LAYER
def test_follows_to_double_precision(row: Row) -> None:
    module, x = stirred(row.build()).eval(), some_input(row)
    single = module(x)
    double = module.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-4)


@EVERY_LAYER
def test_widened_layers_keep_filters_that_were_rounded(row: Row) -> None:
    widened, x = stirred(row.build()).eval().double(), some_input(row).double()
    with default_dtype(torch.float64):
        exact = row.build().eval()
    exact.load_state_dict(widened.state_dict())
    error = ((widened(x) - exact(x)).norm() / exact(x).norm()).item()
    assert error < 1e-7
    if type(widened) in {LiftConv2d, ScaleConv2d, ScaleSteeredConv2d}:  # bases of whole numbers have no error
        assert error > 1e-9


@EVERY_LAYER
def test_what_is_not_a_number_does_not_vanish(row: Row) -> None:
    module, x = stirred(row.build()).eval(), some_input(row)
    x[(0, ..., *[4] * row.ndim)] = math.nan
    y = module(x)
    assert bool(y[0].isnan().any())
    assert bool(y[1:].isfinite().all())


@EVERY_LAYER
def test_is_exported_with_a_batch_of_any_size(row: Row) -> None:
    module, x = stirred(row.build()).eval(), some_input(row)
    exported = torch.export.export(
        module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    ).module()
    larger = torch.cat([x, 2 * x, 3 - x])
    torch.testing.assert_close(exported(larger), module(larger), rtol=1e-5, atol=5e-5)


@WITH_STATE
def test_every_parameter_matters_and_gets_a_gradient(row: Row) -> None:
    module, x = stirred(row.build()).eval(), some_input(row)
    y = module(x)
    y.square().mean().backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad != 0).all(), name
        with torch.no_grad():
            parameter.add_(0.1)
            assert not torch.allclose(module(x), y), name
            parameter.sub_(0.1)


@pytest.mark.parametrize(
    ("row", "shape", "text"),
    [(row, shape, text) for row in ROWS.values() for shape, text in row.wrong_inputs],
)
def test_refuses_wrong_inputs(row: Row, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ShapeError, match=r": expected .*" + text):
        row.build()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("row", "settings", "text"),
    [(row, settings, text) for row in ROWS.values() for settings, text in row.wrong_settings],
)
def test_refuses_wrong_settings(row: Row, settings: dict, text: str) -> None:
    legal = {"in_channels": 4, "out_channels": 6} if "weight" in row.state else {}
    if issubclass(row.layer, SteerableConv2d):
        legal |= STEERABLE
    if row.legal is not None:
        legal = row.legal
    error: type[EquiscaleError] = SettingError
    with pytest.raises(error, match="expected .*" + text):
        row.layer(**{**legal, **settings})
