"""The figure of a network's equivariance: its bars are its numbers."""

from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from equiscale.errors import RecordError
from equiscale.report.equivariance import COLORS, paint, write_plot


def layer(name: str, total: list, own: list, **causes: list) -> dict:
    parts = {cause.replace("_", " "): values for cause, values in causes.items()}
    return {"name": name, "kind": "LiftConv2d", "total": total, "own": own, "causes": parts}


@pytest.fixture
def report() -> dict:
    return {
        "factors": [2.0, 0.5],
        "output": [0.4, 0.2],
        "layers": [
            layer("first", [0.1, 0.3], [0.1, 0.3], border=[0.1, 0.1], kernel=[0.0, 0.2]),
            layer("second", [0.4, 0.2], [0.1, None], scale_axis=[0.1, None]),
            layer("vectors", [None, None], [None, None]),
        ],
    }


def test_bars_are_the_means_of_the_causes_side_by_side(report: dict) -> None:
    figure = Figure()
    paint(figure, report)
    bars, curves = figure.axes
    drawn = {
        container.get_label(): [(patch.get_x(), patch.get_width()) for patch in container]
        for container in bars.containers
    }
    assert list(drawn) == ["border", "scale axis", "kernel"], "causes that are nowhere are not in the legend"
    assert drawn["border"][0] == pytest.approx((0, 0.1))
    assert drawn["kernel"][0] == pytest.approx((0.1, 0.1))
    assert drawn["scale axis"][:2] == [(0.1, 0), (0, 0.1)]
    assert [to_hex(container[0].get_facecolor()) for container in bars.containers] == [
        COLORS[cause] for cause in drawn
    ]
    assert bars.lines[0].get_xdata() == pytest.approx([0.2, 0.3, 0])
    assert bars.get_yticklabels()[0].get_text() == "first  LiftConv2d"
    assert bars.yaxis_inverted(), "the first layer is on top"
    assert len(curves.lines) == 3, "two layers and the output"
    assert list(curves.lines[-1].get_xdata()) == [0.5, 1.0, 2.0]
    assert list(curves.lines[-1].get_ydata()) == [0.2, 0.0, 0.4]


def test_the_causes_are_those_of_the_measurement() -> None:
    from equiscale.testing.diagnosis.causes import CAUSES

    assert set(COLORS) == set(CAUSES)
    assert len(set(COLORS.values())) == len(CAUSES)


def test_layers_that_add_nothing_are_left_out_of_long_networks(report: dict) -> None:
    quiet = [layer(str(index), [0.1, 0.1], [0.0, 0.0]) for index in range(50)]
    figure = Figure()
    paint(figure, {**report, "layers": [*report["layers"], *quiet]})
    assert len(figure.axes[0].get_yticks()) == 2


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_files_under_our_own_settings(report: dict, ending: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.{ending}" for name in ("a", "b")]
    write_plot(report, paths[0], title="network")
    with mpl.rc_context({"font.size": 30, "axes.grid": False}):
        write_plot(report, paths[1], title="network")
    if ending == "png":
        pictures = [imread(path) for path in paths]
        assert pictures[0].shape == pictures[1].shape
        assert (pictures[0] == pictures[1]).all()
        assert pictures[0].std() > 0.05
    assert all(path.stat().st_size > 5000 for path in paths)


@pytest.mark.parametrize("broken", [{}, {"layers": []}, {"layers": 3}])
def test_nothing_measured_is_an_error(broken: dict, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="numbers of an equivariance report with layers, got none"):
        write_plot(broken, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
