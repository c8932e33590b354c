"""The figures: their numbers, their names, and the same bytes for the same input."""

import base64
import io
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from equiscale.report import plots, tiles
from equiscale.report.aggregate import aggregate
from equiscale.report.drawing import SERIES
from equiscale.report.inspection import read_inspection

SVG = "{http://www.w3.org/2000/svg}"
FIGURES = [plots.learning_curves, plots.factor_curves, plots.equivariance_curves]
ALL_FIGURES = [*FIGURES, plots.size_curves, plots.testing_curves]


@pytest.fixture
def inspection(tmp_path, make_arrays):
    np.savez(tmp_path / "run.npz", **make_arrays())
    return read_inspection(tmp_path / "run.npz")


def texts(svg):
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("figure", FIGURES)
def test_a_panel_a_column_with_the_methods_that_ran(suite, records, figure):
    first, second = figure(aggregate(suite, records))
    assert (first.title, second.title) == ("28×28", "28×28 +")
    names = [{text.partition(",")[0] for text in texts(drawing.svg)} for drawing in (first, second)]
    assert {"CNN", "SESN"} <= names[0]
    assert "SESN" not in names[1]


@pytest.mark.parametrize("figure", FIGURES)
def test_same_records_same_bytes_whatever_the_reader_has_set(suite, records, figure):
    before = figure(aggregate(suite, records))
    reader = {"font.size": 30, "xtick.labelsize": 20, "axes.grid": False, "svg.fonttype": "path"}
    with mpl.rc_context(reader):
        settings = dict(mpl.rcParams)
        after = figure(aggregate(suite, list(reversed(records))))
        assert dict(mpl.rcParams) == settings
    assert before == after


@pytest.mark.parametrize("figure", ALL_FIGURES)
def test_nothing_run_nothing_drawn(suite, figure):
    assert figure(aggregate(suite, [])) == ()


def test_learning_line_is_the_mean_with_the_range(suite, records):
    line = plots._learning_line(aggregate(suite, records).cell("CNN", "28×28"))
    assert line.x == (1, 2, 3, 4, 5, 6)
    assert (line.y[0], line.low[0], line.high[0]) == pytest.approx((17.5, 14.0, 21.0))


def test_no_mistake_is_drawn_as_half_a_mistake(suite, make_record):
    line = plots._learning_line(aggregate(suite, [make_record(error=0.0)]).cell("CNN", "28×28"))
    assert line.y == (0.25,) * 6  # of 200 validation images


def test_factor_line_sums_the_bins(suite, records):
    line = plots._factor_line(aggregate(suite, records).cell("CNN", "28×28"))
    assert line.x == pytest.approx((0.4, 0.6, 0.85))
    assert line.y == pytest.approx((100 * 37 / 300, 100 * 23 / 600, 100 * 6 / 900))
    assert all(low < y < high for low, y, high in zip(line.low, line.y, line.high, strict=True))


def test_empty_bins_are_left_out(suite, make_record):
    record = make_record()
    bins = record.test.by_factor.model_copy(update={"images": (0, 200, 300), "mistakes": (0, 6, 2)})
    record = record.model_copy(update={"test": record.test.model_copy(update={"by_factor": bins})})
    line = plots._factor_line(aggregate(suite, [record]).cell("CNN", "28×28"))
    assert line.x == pytest.approx((0.6, 0.85))


def test_equivariance_line_keeps_the_order_of_the_layers(suite, records):
    line = plots._equivariance_line(aggregate(suite, records).cell("CNN", "28×28"))
    assert line.method == "CNN, ×0.70"
    assert line.y == pytest.approx((0.25, 0.5, 0.75))
    assert (line.low[2], line.high[2]) == pytest.approx((0.6, 0.9))


@pytest.mark.parametrize(
    ("mistakes", "images", "interval"),
    [(0, 10, (0.0, 27.7533)), (10, 10, (72.2467, 100.0)), (50, 100, (40.3832, 59.6168))],
)
def test_wilson_interval(mistakes, images, interval):
    assert plots.wilson_interval(mistakes, images) == pytest.approx(interval, abs=1e-4)


def test_filters_stand_a_row_a_filter_and_a_column_a_scale(inspection):
    drawing = tiles.filter_drawings(inspection, "run")[1]
    images = ET.fromstring(drawing.svg).findall(f".//{SVG}image")
    assert len(images) == 8 * 3
    assert texts(drawing.svg) == ["1", "2", "4"]
    assert drawing.alt == "8 filters of main.4 on the scales 1, 2, 4"


def test_tiles_keep_their_pixels_and_colours(inspection):
    svg = tiles.filter_drawings(inspection, "run")[0].svg
    image = ET.fromstring(svg).find(f".//{SVG}image")
    data = image.get("{http://www.w3.org/1999/xlink}href").partition("base64,")[2]
    pixels = imread(io.BytesIO(base64.b64decode(data)))[..., :3]
    weights = inspection.layers[0].filters[0, 0]
    assert pixels.shape == (7, 7, 3)
    red_minus_blue = pixels[..., 0] - pixels[..., 2]
    assert (np.sign(red_minus_blue) == np.sign(weights))[np.abs(weights) > 0.1].all()
    assert "image-rendering:pixelated" in image.get("style")


def test_tiles_that_equivariance_makes_alike_are_framed(inspection):
    drawing = tiles.feature_drawings(inspection, "run")[0]
    assert drawing.alt.endswith("; framed ×0.25 on 1, ×0.5 on 2, ×1 on 4")
    assert drawing.svg.count(f"stroke: {tiles.ACCENT}") == 3
    assert texts(drawing.svg) == ["input", "1", "2", "4", "×0.25", "×0.5", "×1"]


@pytest.mark.parametrize(
    ("scales", "framed"),
    [([1, 2, 4], [(0, 0), (1, 1), (2, 2)]), ([1, 2.15], [(0, 0), (1, 1)]), ([1, 3, 9], []), ([1], [])],
)
def test_only_scales_that_grew_like_the_digit_are_partners(scales, framed):
    assert tiles._partners(np.array([0.25, 0.5, 1.0]), np.array(scales, dtype=float)) == framed


def test_a_network_without_a_scale_axis_has_no_frame(tmp_path, make_arrays):
    np.savez(tmp_path / "run.npz", **make_arrays(scales=(1.0,)))
    drawing = tiles.feature_drawings(read_inspection(tmp_path / "run.npz"), "run")[0]
    assert tiles.ACCENT not in drawing.svg
    assert texts(drawing.svg)[:2] == ["input", "response"]


def test_ids_do_not_collide_between_figures(suite, records):
    table = aggregate(suite, records)
    seen = []
    for figure in FIGURES:
        for drawing in figure(table):
            ids = {node.get("id") for node in ET.fromstring(drawing.svg).iter() if node.get("id")}
            links = {
                node.get("{http://www.w3.org/1999/xlink}href", "").removeprefix("#")
                for node in ET.fromstring(drawing.svg).iter(f"{SVG}use")
            }
            assert links <= ids
            seen += sorted(ids)
    assert len(seen) == len(set(seen))


def test_hostile_names_are_plain_text(suite, records):
    data = suite.model_dump()
    data["methods"][0]["name"] = "_<script>$x$&"
    table = aggregate(type(suite).model_validate(data), records)
    assert "_<script>$x$&" in texts(plots.learning_curves(table)[0].svg)


def test_a_grey_picture_shows_the_pixels():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    data = base64.b64decode(tiles.picture_png(image).partition("base64,")[2])
    np.testing.assert_array_equal(np.round(imread(io.BytesIO(data))[..., 0] * 255), image)


def test_a_panel_a_training_size_with_the_trained_sizes_shaded(sizes_suite, sizes_records):
    first, second = plots.size_curves(aggregate(sizes_suite, sizes_records))
    assert (first.title, second.title) == ("size 1", "size 2")
    assert first.alt.endswith("size 1: CNN from 1.5 to 85; trained on 0.707 to 1.41")
    assert second.alt.endswith("; trained on 1.41 to 2.83")
    assert "Pyramid" not in texts(first.svg)
    assert {"CNN", "Pyramid", "1", "2", "4"} <= set(texts(second.svg))


def test_size_line_is_the_mean_with_one_standard_deviation(sizes_suite, sizes_records):
    line = plots._size_line(aggregate(sizes_suite, sizes_records).cell("CNN", "size 1"))
    assert line.x == pytest.approx((1, 2, 4), rel=1e-3)
    assert line.y == pytest.approx((1.5, 25, 85))
    assert line.low == pytest.approx((1.5 - 0.5**0.5, 25 - 50**0.5, 85 - 50**0.5))
    assert line.high == pytest.approx((1.5 + 0.5**0.5, 25 + 50**0.5, 85 + 50**0.5))


def test_a_size_without_mistakes_is_drawn_as_half_a_mistake(sizes_suite, sizes_records):
    line = plots._size_line(aggregate(sizes_suite, sizes_records).cell("Pyramid", "size 2"))
    assert (line.low[1], line.y[1], line.high[1]) == (0.25, 0.25, 0.25)  # of 200 images


def test_sizes_beside_the_trained_ones_are_drawn_once(suite, records, sizes_suite, sizes_records):
    assert plots.factor_curves(aggregate(sizes_suite, sizes_records)) == ()
    assert plots.size_curves(aggregate(suite, records)) == ()


def test_a_narrow_range_of_sizes_has_marks_between_the_octaves(sizes_suite, sizes_records):
    narrow = sizes_records[0].test.by_factor.model_copy(update={"edges": (0.6, 0.9, 1.3, 2.1)})
    test = sizes_records[0].test.model_copy(update={"by_factor": narrow})
    drawing = plots.size_curves(aggregate(sizes_suite, [sizes_records[0].model_copy(update={"test": test})]))
    assert {"1", "1.4"} <= set(texts(drawing[0].svg))


def test_errors_of_some_epochs_stand_at_their_epochs(natural_suite, natural_record):
    table = aggregate(natural_suite, [natural_record])
    line = plots._testing_line(table.cell("WRN", "10-2"))
    assert (line.x, line.y) == ((2, 4, 6), (30, 15, 10))
    assert plots.learning_curves(table) == plots.factor_curves(table) == plots.size_curves(table) == ()
    assert len(plots.testing_curves(table)) == 1


def test_one_epoch_makes_no_curve(suite, make_record):
    once = make_record(protocol=suite.protocol.cut(1))
    assert plots.learning_curves(aggregate(suite, [once])) == ()


def test_twenty_methods_keep_the_plot_readable(suite, make_record):
    """The figure grows with its legend, and no two lines look alike."""
    method = suite.methods[0].model_dump()
    many = suite.model_copy(
        update={
            "methods": tuple(
                type(suite.methods[0]).model_validate(
                    {
                        **method,
                        "name": f"A method with a long name {n}",
                        "cells": {"28×28": {"model": f"m{n}", "augment": "none"}},
                    }
                )
                for n in range(20)
            )
        }
    )
    table = aggregate(many, [make_record(f"m{n}", error=2 + n / 10) for n in range(20)])
    for figure in FIGURES:
        drawing = figure(table)[0]
        root = ET.fromstring(drawing.svg)
        width, height = (float(root.get(side).removesuffix("pt")) for side in ("width", "height"))
        assert height > 0.9 * width
        assert sum("A method" in text for text in texts(drawing.svg)) == 20
        styles = (node.get("style", "") for node in root.iter(f"{SVG}path"))
        drawn = [dict(part.split(": ") for part in style.split("; ")) for style in styles if ": " in style]
        looks = {(style["stroke"], style.get("stroke-dasharray")) for style in drawn if "stroke" in style}
        assert sum(color in SERIES for color, _ in looks) == 20


def test_a_colour_picture_keeps_its_channels():
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    data = base64.b64decode(tiles.picture_png(image).partition("base64,")[2])
    np.testing.assert_array_equal(np.round(imread(io.BytesIO(data))[..., :3] * 255), image.transpose(1, 2, 0))
