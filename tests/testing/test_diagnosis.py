"""Networks with one fault each: the report names it, and a network without one is told so."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equiscale import HermiteBasis, ScaleGrid, create_model
from equiscale.errors import SettingError, ShapeError
from equiscale.functional.rescale import rescale
from equiscale.nn import (
    LiftConv2d,
    PointwiseScaleConv2d,
    ScaleAvgPool2d,
    ScaleBatchNorm2d,
    ScaleConv2d,
    ScaleMaxPool2d,
    ScaleProjection,
)
from equiscale.testing import (
    BandLimitedImage,
    LayerDiagnosis,
    NetworkEquivarianceReport,
    equivariance_error,
    equivariance_report,
)
from equiscale.testing.diagnosis.layers import Lattice, lattice_of, looks_at_single_pixels
from equiscale.testing.diagnosis.resampling import cosine_matrix, cubic_matrix, interlace

COVERS = {"equivariance_report", "NetworkEquivarianceReport", "LayerDiagnosis"}

PAGE = Path(__file__).parents[2] / "docs" / "why-not-equivariant.md"

STEP = 2**0.5
GRID = ScaleGrid.geometric(1.0, STEP, 3)
BASIS = HermiteBasis(2)
BY_ONE = [1 / STEP, STEP]


def lift(kernel_size: int = 15, **options) -> LiftConv2d:
    return LiftConv2d(1, 3, kernel_size=kernel_size, grid=GRID, basis=BASIS, padding="same", **options)


def conv(kernel_size: int = 15, **options) -> ScaleConv2d:
    return ScaleConv2d(3, 3, kernel_size=kernel_size, grid=GRID, basis=BASIS, padding="same", **options)


def seeded(*layers: nn.Module) -> nn.Sequential:
    network, generator = nn.Sequential(*layers), torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, LiftConv2d | ScaleConv2d | PointwiseScaleConv2d):
            module.reset_parameters(generator)
        elif isinstance(module, nn.Conv2d):
            nn.init.uniform_(module.weight, -0.3, 0.3, generator=generator)
            nn.init.zeros_(module.bias)
    return network


def inside(size: int) -> BandLimitedImage:
    """Objects in the middle of the canvas: they stay away from the border when they are enlarged."""
    image = BandLimitedImage.random(
        1, 1, size=(size, size), generator=torch.Generator().manual_seed(0), band=0.5, blobs=4
    )
    return replace(image, centers=image.centers * 0.2)


class ScaleByScale(nn.Module):
    """A plain layer that gets every scale as an image of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        flat = self.layer(x.transpose(1, 2).flatten(0, 1))
        return flat.unflatten(0, (len(x), -1)).transpose(1, 2)


class ScalesAsChannels(ScaleByScale):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1, 2)).unflatten(1, (-1, x.shape[2]))


# --- one fault each ---


def test_a_good_network_has_no_fault_beyond_a_few_percent() -> None:
    network = seeded(lift(), nn.ReLU(), conv(), ScaleBatchNorm2d(3), nn.ReLU(), PointwiseScaleConv2d(3, 2))
    report = equivariance_report(network, inside(49), BY_ONE)
    assert 1e-4 < report.worst < 0.03, str(report)
    assert all(1e-6 < layer.mean_total < 0.05 for layer in report.layers), str(report)
    faults = {cause: value for cause, value in report.causes.items() if cause != "interpolation"}
    assert 0 < max(faults.values()) < 0.01, str(report)
    assert report.advice == ("No layer adds more than 2.0 % of its own.",)


def faults() -> list:
    return [
        pytest.param(seeded(lift(5), nn.ReLU(), conv()), 49, "0", "kernel", 0.05, id="small kernel"),
        pytest.param(seeded(lift(stride=2), nn.ReLU()), 48, "0", "stride", 0.03, id="stride, even size"),
        pytest.param(seeded(lift(), ScaleAvgPool2d(1, stride=2)), 48, "1", "stride", 0.03, id="picking"),
        pytest.param(seeded(lift(), conv(scale_size=2)), 49, "1", "scale axis", 0.2, id="scale_size 2"),
        pytest.param(seeded(lift(), nn.ReLU(), ScaleProjection()), 49, "2", "scale axis", 0.05, id="maximum"),
        pytest.param(
            seeded(lift(), ScaleByScale(nn.Conv2d(3, 3, 5, padding=2)), nn.ReLU(), conv()),
            49, "1.layer", "module", 0.1, id="plain convolution",
        ),
        pytest.param(
            seeded(lift(), nn.ReLU(), ScaleMaxPool2d(4), nn.ReLU()),
            48, "2", "pooling", 0.05, id="max pooling",
        ),
        pytest.param(seeded(lift(), nn.InstanceNorm3d(3)), 49, "1", "module", 0.05, id="instance norm"),
    ]  # fmt: skip


@pytest.mark.parametrize(("network", "size", "name", "cause", "lower"), faults())
def test_the_one_fault_is_the_largest_cause(network, size: int, name: str, cause: str, lower: float) -> None:
    report = equivariance_report(network, inside(size), BY_ONE)
    assert report.main_cause == cause, str(report)
    layer = report.layer(name)
    assert layer.main_cause == cause
    assert lower < layer.part(cause) < 2, str(report)
    assert layer.part(cause) > 0.8 * layer.fault, str(report)
    others = [other.fault for other in report.layers if other.name != name]
    assert max(others, default=0) < 0.3 * layer.fault, str(report)
    assert report.advice[0].startswith(f"{name}: ")


def test_the_border_is_the_fault_where_objects_reach_it() -> None:
    image = BandLimitedImage.random(1, 1, size=(49, 49), generator=torch.Generator().manual_seed(0))
    report = equivariance_report(seeded(lift(), nn.ReLU(), conv()), image, [STEP])
    assert report.main_cause == "border", str(report)
    assert report.layer("0").part("border") > 0.03
    assert report.layer("0").share("border") > 0.9
    assert "windows reach 7 pixels beyond the edge" in report.advice[0]
    centred = equivariance_report(seeded(lift(), nn.ReLU(), conv()), inside(49), [STEP])
    assert centred.causes["border"] < 0.1 * report.causes["border"]


@pytest.mark.parametrize(
    ("layer", "size", "text"),
    [
        (lift(stride=2), 48, "2 on an input of 48 pixels: size − 1 must be a multiple .* so that 49 pixels"),
        (lift(stride=3), 49, None),  # 48 is a multiple of 3
        (lift(stride=2), 49, None),
    ],
)
def test_the_parity_of_a_stride(layer: LiftConv2d, size: int, text: str | None) -> None:
    report = equivariance_report(seeded(layer), inside(size), BY_ONE)
    if text is None:
        assert report.layer("0").part("stride") < 0.005
    else:
        assert report.layer("0").share("stride") > 0.8
        assert re.search(text, report.advice[0]), report.advice


def test_average_pooling_on_an_odd_size_is_a_stride_that_does_not_fit() -> None:
    parts = {
        size: equivariance_report(seeded(lift(), ScaleAvgPool2d(2)), inside(size), [STEP]).layer("1")
        for size in (48, 49)
    }
    assert parts[49].main_cause == "stride"
    assert parts[49].part("stride") > 0.02 > 10 * parts[48].part("stride")


def test_the_needed_kernel_is_named_and_is_enough() -> None:
    report = equivariance_report(seeded(lift(5)), inside(49), [STEP])
    found = re.search(
        r"it cuts the filter at scale (\S+) \(kernel_size 5 against (\d+) needed\); take kernel_size=(\d+)",
        report.advice[0],
    )
    assert found is not None, report.advice
    assert found[2] == found[3]
    better = equivariance_report(seeded(lift(int(found[2]))), inside(49), [STEP])
    assert better.layer("0").part("kernel") < 0.1 * report.layer("0").part("kernel")
    assert 0 < better.worst < 0.03, str(better)


def test_a_kernel_with_padding_in_pixels_is_enlarged_with_its_padding() -> None:
    parts = [
        equivariance_report(seeded(layer), inside(49), [STEP]).layer("0").causes["kernel"]
        for layer in (
            lift(7),
            LiftConv2d(1, 3, kernel_size=7, grid=GRID, basis=BASIS, padding=3),
            LiftConv2d(1, 3, kernel_size=7, grid=GRID, basis=BASIS, padding=1),
        )
    ]
    assert parts[0] == parts[1]
    assert parts[2] == pytest.approx(parts[0], rel=0.1)
    assert parts[0][0] > 0.03


@pytest.mark.parametrize("wrap", [ScaleByScale, ScalesAsChannels])
def test_folded_scales_are_unfolded(wrap: type[ScaleByScale]) -> None:
    channels = 3 if wrap is ScaleByScale else 9
    norm = nn.BatchNorm2d(channels)
    norm.weight.data.copy_(torch.linspace(0.5, 1.5, channels))
    report = equivariance_report(seeded(lift(), wrap(norm)), inside(49), [STEP])
    layer = report.layer("1.layer")
    if wrap is ScaleByScale:  # the same for all scales
        assert layer.fault < 1e-3
    else:
        assert layer.main_cause == "module"
        assert layer.part("module") > 0.05
        assert "use ScaleBatchNorm2d" in report.advice[0]


@pytest.mark.parametrize(
    "fused", [{"pooling": 2}, {"projection": "max"}, {"pooling": 2, "projection": "max"}]
)
def test_maxima_in_passing_are_layers_of_their_own(fused: dict) -> None:
    """As the same layers one after the other; the network is left as it was."""
    apart = [lift()]
    apart += [ScaleMaxPool2d(2)] if "pooling" in fused else []
    apart += [ScaleProjection()] if "projection" in fused else []
    network = seeded(lift(**fused))
    geometry, hooks = network[0].geometry, dict(network[0]._forward_hooks)
    together = equivariance_report(network, inside(48), [STEP])
    separate = equivariance_report(seeded(*apart), inside(48), [STEP])
    assert [layer.name for layer in together.layers] == ["0", *[f"0.{name}" for name in fused]]
    for a, b in zip(together.layers, separate.layers, strict=True):
        assert a.total == pytest.approx(b.total, rel=1e-4)
        for cause in a.causes:
            assert a.causes[cause] == pytest.approx(b.causes[cause], rel=1e-2, abs=1e-5)
    assert network[0].geometry is geometry
    assert dict(network[0]._forward_hooks) == hooks == {}


def test_a_vector_of_all_pixels_is_a_fault() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.linear = seeded(lift(), ScaleProjection("mean")), nn.Linear(3 * 33 * 33, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.features(x).flatten(1))

    report = equivariance_report(Classifier(), inside(33), [STEP])
    assert report.layer("before linear").share("module") == pytest.approx(1), "no part of interpolation"
    assert report.layer("before linear").fault > 0.1
    assert any("project and pool over all pixels" in sentence for sentence in report.advice)


# --- the numbers ---


def test_totals_are_those_of_equivariance_error() -> None:
    network = seeded(lift(), nn.ReLU(), conv(scale_size=2))
    image = inside(49)
    report = equivariance_report(network, image, [0.5, STEP])
    for count, layer in enumerate(report.layers, 1):
        errors = equivariance_error(network[:count], image, report.factors, margin=0, grid=GRID).errors
        assert layer.total == pytest.approx(errors, rel=1e-3)
    assert report.output == report.layers[-1].total
    assert report.worst == max(report.output)


@pytest.mark.parametrize("size", [48, 49])
def test_causes_add_up_to_what_the_layer_adds(size: int) -> None:
    layers = [lift(5, stride=2), nn.ReLU(), ScaleMaxPool2d(2), conv(7, scale_size=2), ScaleProjection()]
    report = equivariance_report(seeded(*layers), inside(size), [STEP])
    for layer in report.layers:
        for index, own in enumerate(layer.own):
            parts = [values[index] for values in layer.causes.values()]
            assert sum(parts) == pytest.approx(own, rel=1e-9)
            assert min(parts) >= 0


def test_the_same_twice_and_the_mode_is_restored() -> None:
    network = seeded(lift(), nn.Dropout(0.5), conv())
    network.train()
    network[2].eval()
    first, second = (equivariance_report(network, inside(33), [STEP]) for _ in range(2))
    assert first == second
    assert network.training
    assert not network[2].training
    assert [layer.name for layer in first.layers] == ["0", "2"], "dropout hands its input on"


def test_a_layer_that_works_in_place_is_measured_on_what_it_got() -> None:
    reports = [
        equivariance_report(seeded(lift(), nn.ReLU(inplace=inplace), conv()), inside(33), [STEP])
        for inplace in (False, True)
    ]
    assert reports[0].layers == reports[1].layers


def test_a_layer_used_twice_has_two_rows() -> None:
    relu = nn.ReLU()
    report = equivariance_report(seeded(lift(), relu, conv(), relu), inside(33), [STEP])
    assert [layer.name for layer in report.layers] == ["0", "1", "2", "1 (2)"]


def test_default_images_and_factors() -> None:
    report = equivariance_report(create_model("mnist_ses_vector_28", channels=(1, 1, 1), hidden=2))
    assert report.size == (28, 28)
    assert report.factors == pytest.approx((1 / 3, 3**-0.5, 3**0.5, 3.0), rel=0.01)
    plain = equivariance_report(nn.Conv2d(2, 2, 3), size=(33, 35))
    assert plain.factors == pytest.approx((0.5, 1 / STEP, STEP, 2.0))
    assert plain.size == (33, 35)


@pytest.mark.parametrize(
    "name",
    ["mnist_sevf_vector_28", "mnist_dss_vector_28", "mnist_learnable_28", "wrn_10_1_dss"],
)
def test_networks_of_every_kind_are_measured_as_far_as_they_can_be(name: str) -> None:
    small = {"channels": (2, 2, 2), "hidden": 4} if name.startswith("mnist") else {}
    torch.manual_seed(0)
    report = equivariance_report(create_model(name, **small), size=28)
    known = [layer for layer in report.layers if layer.mean_own is not None]
    assert len(known) > 3
    assert all(math.isfinite(error) for layer in known for error in layer.own if error is not None)
    assert all(0 < error < 20 for error in report.output)
    if "sevf" in name:  # vector fields turn: their axis of two components is no axis of scales
        assert report.layer("main.0").mean_total is None
    if "learnable" in name:
        assert report.layer("main.0").kind == "LearnableLiftConv2d"


# --- the table ---


def diagnosed(name: str, own: float, **causes: float) -> LayerDiagnosis:
    parts = {cause.replace("_", " "): (value,) for cause, value in causes.items()}
    return LayerDiagnosis(name, "LiftConv2d", (own,), (own,), parts)


def test_report_as_a_table_and_as_numbers() -> None:
    layers = (diagnosed("a", 0.24, border=0.06, kernel=0.18), diagnosed("b" * 30, 0.12, scale_axis=0.12))
    report = NetworkEquivarianceReport((0.5,), (8, 9), (0.3,), layers, ("word " * 40,))
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split("  ")[-1] == "K" * 18 + "B" * 6
    assert lines[3].endswith("  " + "A" * 12)
    assert lines[3].startswith("…bbb")
    assert "output 30 % at ×0.5" in lines
    assert any(line.startswith("K kernel: ") for line in lines)
    assert not any(line.startswith("S stride: ") for line in lines)
    assert lines[-1].startswith("  word"), "sentences are folded"
    assert report.main_cause == "kernel"
    assert report.causes["border"] == pytest.approx(0.06)
    numbers = report.as_dict()
    assert numbers["layers"][0]["causes"] == {"border": [0.06], "kernel": [0.18]}
    assert numbers["worst"] == 0.3
    assert json.loads(json.dumps(numbers)) == numbers
    with pytest.raises(KeyError, match=r"expected one of a, b+, got 'c'"):
        report.layer("c")


def test_nothing_measured_is_no_number() -> None:
    layer = LayerDiagnosis("a", "X", (None,), (None,), {"border": (None,)})
    report = NetworkEquivarianceReport((0.5,), (8, 8), (None,), (layer,))
    assert (report.worst, report.main_cause, layer.fault) == (None, None, 0)
    assert "–" in str(report)


# --- what it is made of ---


def test_a_cosine_series_goes_through_the_pixels_and_is_even_about_both_ends() -> None:
    size = 9
    assert torch.allclose(cosine_matrix(size, torch.arange(size)), torch.eye(size, dtype=torch.float64))
    beyond = cosine_matrix(size, torch.tensor([-1.3, size + 0.3]))
    assert torch.allclose(beyond, cosine_matrix(size, torch.tensor([0.3, size - 1.3])))
    wave = torch.cos(math.pi * 3 * (torch.arange(size) + 0.5) / size).double()
    between = cosine_matrix(size, torch.tensor([2.25])) @ wave
    assert between.item() == pytest.approx(math.cos(math.pi * 3 * 2.75 / size))


def test_the_cubic_is_that_of_rescale() -> None:
    x = torch.randn(11, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = 5 + (torch.arange(11) - 5) / 1.7
    matrix = cubic_matrix(11, places)
    assert torch.allclose(matrix @ x @ matrix.T, rescale(x, 1.7))


def test_interlaced_copies_are_one_finer_picture() -> None:
    whole = torch.arange(2 * 3 * 12 * 6).reshape(2, 3, 12, 6)
    copies = torch.cat([whole[..., i::3, j::3] for i in range(3) for j in range(3)])
    assert torch.equal(interlace(copies, 3), whole)


@pytest.mark.parametrize(
    ("layer", "lattice"),
    [
        (nn.Conv2d(1, 1, 5, stride=2, padding=2), Lattice(2, 0.0, 2)),
        (nn.Conv2d(1, 1, 5, padding="same", dilation=2), Lattice(1, 0.0, 4)),
        (nn.Conv2d(1, 1, 3), Lattice(1, 1.0, 1)),
        (nn.MaxPool2d((2, 2)), Lattice(2, 0.5, 1)),
        (ScaleMaxPool2d(2), Lattice(2, 0.5, 1)),
        (ScaleMaxPool2d(8, padding=2), Lattice(8, 1.5, 4)),
        (PointwiseScaleConv2d(1, 1, stride=2), Lattice(2, 0.0, 0)),
        (lift(9, stride=3), Lattice(3, 0.0, 4)),
        (nn.ReLU(), Lattice(1, 0.0, 0)),
        (nn.Conv2d(1, 1, (3, 5)), Lattice(1, 0.0, 0)),
    ],
)
def test_lattices_are_read_off_the_settings(layer: nn.Module, lattice: Lattice) -> None:
    assert lattice_of(layer) == lattice


@pytest.mark.parametrize(
    ("function", "local"),
    [
        (torch.tanh, True),
        (ScaleBatchNorm2d(2).eval(), True),
        (PointwiseScaleConv2d(2, 3), True),
        (ScaleProjection(), True),
        (ScaleProjection("mean"), True),
        (lambda x: x.softmax(-1), False),
        (lambda x: x.flip(2), False),
        (lambda x: x - x.mean((3, 4), keepdim=True), False),
        (lambda x: x * torch.arange(3.0)[:, None, None], False),
        (lambda x: x[:, :, 0], False),
        (lambda x: x + torch.linspace(0, 1, 9), False),
        (conv(), False),
    ],
)
def test_layers_of_single_pixels_are_told_from_others(function, local: bool) -> None:
    channels = 3 if isinstance(function, ScaleConv2d) else 2
    x = torch.randn(1, channels, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert looks_at_single_pixels(function, x) == local


# --- the page ---


def rows_of_the_page() -> list[tuple[str, str, float]]:
    """Expression, cause and percent of the rows that have one of each."""
    cause, rows = "", []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4:
            continue
        cause = cells[1] or cause
        expressions, numbers = (
            re.findall(r"`(measure\(.*?\))`", cells[2]),
            re.findall(r"([\d.]+) %", cells[3]),
        )
        if len(expressions) == len(numbers) == 1:
            rows.append((expressions[0], cause, float(numbers[0])))
    return rows


def test_the_numbers_of_the_page_are_those_of_its_snippet() -> None:
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
                  if "def measure" in code]  # fmt: skip
    names: dict[str, Any] = {}
    exec(snippet.replace("print(", "("), names)
    rows = rows_of_the_page()
    assert len(rows) >= 9
    for expression, cause, percent in rows:
        measured = 100 * eval(expression, names).part(cause)
        assert measured == pytest.approx(percent, rel=0.06, abs=0.06), expression


# --- what is refused ---


@pytest.mark.parametrize(
    ("model", "options", "error", "text"),
    [
        (lift(), {"factors": []}, SettingError, "at least one scale factor, got none"),
        (lift(), {"factors": [-1.0]}, SettingError, r"finite positive scale factors, got -1\.0"),
        (
            lift(), {"factors": [1.2]}, SettingError,
            r"factors of 0\.5, 0\.7071, 1\.414, 2, powers of the grid's step, got 1\.2",
        ),
        (lift(), {"x": inside(33), "size": 33}, SettingError, r"x or a size, got both; .* \(33, 33\)"),
        (nn.ReLU(), {}, ShapeError, "a layer with in_channels, got none; give the images as x="),
        (
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(7, 2)), {}, ShapeError,
            r"images of 96, 64, .* pixels, got one that takes none .*; give its size as size=",
        ),
    ],
)  # fmt: skip
def test_refuses(model: nn.Module, options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        equivariance_report(model, **options)
