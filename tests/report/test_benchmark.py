"""The tables and figures of a benchmark: their numbers, their width, the same bytes for the same record."""

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console
from tests.benchmark_records import SPEEDS, benchmark_record, kind_result, model_result

from equiscale.errors import SettingError
from equiscale.experiments.benchmark.compare import compare
from equiscale.experiments.benchmark.record import BenchmarkRecord
from equiscale.report import benchmark
from equiscale.report.benchmark_plots import roofline_plot, speed_plot, write_plots

SVG = "{http://www.w3.org/2000/svg}"


def printed(renderable: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


def alone() -> BenchmarkRecord:
    """Without rivals, and without memory."""
    kind = kind_result("ours")
    bare = kind.model_copy(
        update={
            mode: kind.mode(mode).model_copy(update={"peak_bytes": None}) for mode in ("train", "evaluate")
        }
    )
    return benchmark_record(model_result("mnist_cnn_28", kinds=(bare,), plain=None), peer=None)


def test_the_terminals_table_holds_every_number_in_80_columns() -> None:
    lines = printed(
        benchmark.terminal(benchmark_record(model_result("mnist_gaussian_derivative")))
    ).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert "mnist_gaussian_derivative" in lines[2]
    dense = next(line for line in lines if line.strip().startswith("dense"))
    assert dense.split() == ["dense", "800", "760–880", "8.0×", "300", "3.0×", "125", "25", "%"]
    assert "400 GFLOP/s and 20 GB/s" in " ".join(lines)


def test_the_markdown_says_how_much_faster_and_smaller() -> None:
    table = benchmark.markdown(benchmark_record()).splitlines()
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert cells == [
        "`mnist_ses_scalar_28`, 128 images",
        *("100 ms", "8.0× / 9.0×"),
        *("25.0 ms", "8.0× / 9.0×"),
        *("100 MB", "0.33× / 0.40×"),
        "2.0×",
    ]
    assert table[0].count("|") == table[1].count("|") == table[2].count("|")
    assert (
        "- A Processor, 2 threads, float32; medians of 9 interleaved rounds; torch 2.13.0, commit "
        in table[5]
    )
    assert "- public code: commit deaa16c73e" in table


def test_every_kind_and_mode_has_a_line_of_details() -> None:
    table = benchmark.markdown_details(benchmark_record())
    rows = [line for line in table.splitlines() if line.startswith("| `mnist_ses_scalar_28`")]
    assert len(rows) == 2 * len(SPEEDS)
    assert rows[0].split("|")[3:-1] == [
        f" {cell} " for cell in ("ours", "100", "95.0–110", "100", "5", "1", "50", "12 %", "25 %")
    ]
    assert "mnist_ses_scalar_28: fourier ×2, unfolded ×1" in table


def test_what_was_not_measured_is_a_dash_or_not_there() -> None:
    table = benchmark.markdown(alone())
    assert "faster" not in table
    assert "| `mnist_cnn_28`, 128 images | 100 ms | 25.0 ms | – MB | – |" in table
    assert " –" in printed(benchmark.terminal(alone()))


def test_notes_and_changed_sources_are_told() -> None:
    record = benchmark_record(
        model_result(notes=("the public code was not measured: it is gone",)), clean=False
    )
    for text in (
        benchmark.markdown(record),
        benchmark.markdown_details(record),
        printed(benchmark.terminal(record), 200),
    ):
        assert "mnist_ses_scalar_28: the public code was not measured: it is gone" in text
    assert "commit 0123456789 with changes" in benchmark.markdown(record)


def test_changes_show_then_and_now_and_what_became_worse() -> None:
    slower = model_result(kinds=(kind_result("ours", 1.5), kind_result("dense")))
    changes = compare(benchmark_record(model_result()), benchmark_record(slower))
    lines = printed(benchmark.terminal_changes(changes)).splitlines()
    assert max(map(len, lines)) <= 80
    worse = [line.split() for line in lines if line.rstrip().endswith("worse")]
    assert worse[0] == ["ours,", "step,", "ms", "100", "95.0–110", "150", "143–165", "1.50×", "worse"]
    assert benchmark.regression_summary(changes) == "2 of 8 worse, 0 better, beyond 5 % and the noise"


def test_lost_memory_and_kinds_are_told_below_the_changes() -> None:
    then = kind_result("ours")
    lost = then.model_copy(update={"train": then.train.model_copy(update={"peak_bytes": None})})
    old = benchmark_record(model_result())
    new = benchmark_record(model_result(kinds=(lost,), notes=("its process died",)))
    table = benchmark.terminal_changes(compare(old, new), benchmark.change_notes(old, new))
    lines = [line.strip() for line in printed(table).splitlines()]
    assert [line.split() for line in lines if line.endswith("worse")] == [
        ["ours,", "step,", "MB", "100", "–", "–", "worse"]
    ]
    assert "· mnist_ses_scalar_28: dense is in the older record only" in lines
    assert lines[-1] == "· mnist_ses_scalar_28: its process died"


def test_tables_go_where_their_markers_are(tmp_path: Path) -> None:
    document, record = tmp_path / "page.md", benchmark_record()
    document.write_text("a\n<!-- table:speed -->\n<!-- /table:speed -->\nb\n")
    benchmark.insert_tables(document, "speed", record)
    assert benchmark.markdown(record) in document.read_text()
    assert "GB moved" not in document.read_text()
    document.write_text("<!-- table:speed-details -->\n<!-- /table:speed-details -->\n")
    benchmark.insert_tables(document, "speed", record)
    assert benchmark.markdown_details(record) in document.read_text()
    with pytest.raises(SettingError, match=r"expected <!-- table:h200 --> or <!-- table:h200-details --> in"):
        benchmark.insert_tables(document, "h200", record)


@pytest.mark.parametrize("plot", [speed_plot, roofline_plot])
def test_a_figure_has_the_same_bytes_every_time_and_all_names(plot) -> None:
    record = benchmark_record()
    assert plot(record) == plot(record)
    found = texts(plot(record))
    for name in ("ours", "dense", "public code", "plain CNN", "training step", "evaluation"):
        assert name in found
    assert any("A Processor, 2 threads" in text for text in found)
    assert plot(record).count('fill="white"') >= 1


def test_the_ratio_in_the_figure_is_that_of_the_table() -> None:
    found = texts(speed_plot(benchmark_record()))
    assert found.count("9.0×") == 4, "training and evaluation of two networks, public code over ours"
    assert found.count("2.5×") == 2, "memory"
    assert "above the lines: public code over ours" in found


def test_the_roof_is_the_measured_peak() -> None:
    found = texts(roofline_plot(benchmark_record()))
    assert found.count("400 GFLOP/s") == found.count("20 GB/s") == 2
    assert "mnist_ses_vector_28" in found


def test_figures_lie_beside_the_record(tmp_path: Path) -> None:
    paths = write_plots(benchmark_record(), tmp_path / "speed.json")
    assert [path.name for path in paths] == ["speed.svg", "speed-roofline.svg"]
    assert all(path.read_text().startswith("<svg") for path in paths)


def test_a_network_alone_is_drawn_without_ratios_and_memory() -> None:
    found = texts(speed_plot(alone()))
    assert "peak memory of a training step" not in found
    assert not any(re.fullmatch(r"[\d.]+×", text) for text in found)
    assert "dense arithmetic in our time" not in texts(roofline_plot(alone()))
