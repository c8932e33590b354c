"""Every format shows the same numbers, with the claims, marks and gaps."""

import csv
import io

import pytest

from equiscale.errors import SettingError
from equiscale.experiments.spec import Suite, load_suite
from equiscale.report.aggregate import aggregate
from equiscale.report.tables import (
    FORMATS,
    insert_into,
    render,
    render_terminal,
    scoreboard,
    verdict,
)

TERMINAL = """\
Toy digits: classification error in percent

              28×28             28×28 +
────────────────────────────────────────────
CNN           2.50 ± 0.50 (3)   2.25 (1)
  claim       2.56†
  difference  −0.06

SESN          1.60 ± 0.14 (2)‡  –
  claim       1.95 ± 0.17       2.50 ± 0.10
  difference  −0.35

· mean ± sample standard deviation of the test error over realisations (their
  number); lower is better
· claim: The reproduction
· † claim, unchecked: A. Author: A Paper. 2020
· ‡ 2 of 6 epochs
· Against the claims: 2 lower (better), 0 higher (worse), 0 equal; 1 of the 2 by
  another protocol.
· CNN, 28×28 +: 1 of 3 realisations (missing: no. 1, 2).
· SESN, 28×28: 2 of 3 realisations (failed: no. 2).
"""

MARKDOWN = """\
**Toy digits: classification error in percent**

|  | 28×28 | 28×28 + |
|---|---|---|
| CNN | **2.50 ± 0.50 (3)**<br>claim 2.56†<br>difference −0.06 | **2.25 (1)** |
| SESN | **1.60 ± 0.14 (2)‡**<br>claim 1.95 ± 0.17<br>difference −0.35 | –<br>claim 2.50 ± 0.10 |

- mean ± sample standard deviation of the test error over realisations (their number); lower is better
- claim: The reproduction
- † claim, unchecked: A. Author: A Paper. 2020
- ‡ 2 of 6 epochs
- Against the claims: 2 lower (better), 0 higher (worse), 0 equal; 1 of the 2 by another protocol.
- CNN, 28×28 +: 1 of 3 realisations (missing: no. 1, 2).
- SESN, 28×28: 2 of 3 realisations (failed: no. 2).
"""

LATEX_BODY = r"""
CNN & 2.50 $\pm$ 0.50 (3) & 2.25 (1) \\
\quad claim & 2.56$\dagger$ &  \\
\quad difference & $-$0.06 &  \\
\addlinespace
SESN & 1.60 $\pm$ 0.14 (2)$\ddagger$ & -- \\
\quad claim & 1.95 $\pm$ 0.17 & 2.50 $\pm$ 0.10 \\
\quad difference & $-$0.35 &  \\
\bottomrule
"""

HOSTILE = r"<script>|&_%$#{}~^\`*[b]"


@pytest.fixture
def table(suite, records):
    return aggregate(suite, records)


@pytest.fixture
def hostile(suite, records):
    """The table with every name replaced by hostile text."""
    data = suite.model_dump()
    data["title"] = data["sources"]["copy"] = HOSTILE
    for method in data["methods"]:
        method["name"] += HOSTILE
    data["columns"] = [column + HOSTILE for column in data["columns"]]
    for method in data["methods"]:
        method["cells"] = {column + HOSTILE: cell for column, cell in method["cells"].items()}
    return aggregate(Suite.model_validate(data), records)


def test_terminal_at_80_columns(table):
    assert render(table, "terminal") == TERMINAL


def test_markdown(table):
    assert render(table, "markdown") == MARKDOWN


def test_latex(table):
    text = render(table, "latex")
    assert LATEX_BODY in text
    assert text.isascii()
    assert r"\par\footnotesize $\ddagger$ 2 of 6 epochs" in text


def test_csv_has_every_field_of_every_cell(table):
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert len(rows) == 4
    first, third = rows[0], rows[2]
    assert (float(first["mean"]), float(first["std"]), first["n"]) == (2.5, 0.5, "3")
    assert (first["claim_mean"], first["claim_checked"], first["claim_source"]) == ("2.56", "False", "paper")
    assert (third["epochs"], third["published_epochs"], third["deviation"]) == ("2", "6", "2 of 6 epochs")
    assert (third["failed"], third["missing"], rows[3]["missing"]) == ("2", "", "0 1 2")
    assert float(third["difference"]) == pytest.approx(-0.35)
    assert rows[3]["mean"] == rows[1]["std"] == rows[1]["claim_mean"] == ""


def test_losses_stand_beside_wins(suite, make_record):
    errors = {"cnn": 2.7, "ses": 1.9}
    table = aggregate(suite, [make_record(model, error=error) for model, error in errors.items()])
    assert [verdict(cell) for cell in table.cells] == ["higher", "", "lower", ""]
    assert "difference  +0.14" in render(table, "terminal")
    assert "difference −0.05" in render(table, "markdown")
    assert scoreboard(table) == (
        "Against the claims: 1 lower (better), 1 higher (worse), 0 equal; "
        "1 within the claim's standard deviation."
    )


def test_what_rounds_to_the_claim_is_equal(suite, make_record):
    table = aggregate(suite, [make_record("ses", error=1.9479)])
    assert verdict(table.cell("SESN", "28×28")) == "equal"
    assert "difference  0.00" in render(table, "terminal")


def test_a_cell_with_failures_only_says_so(suite, make_record):
    table = aggregate(suite, [make_record(status="failed", failure="killed", test=None)])
    assert "\nCNN      failed       –\n" in render(table, "terminal")


@pytest.mark.parametrize("error", [1.9, 12.3])
def test_the_published_table_fits_80_columns_with_all_marks(make_record, error):
    suite = load_suite("mnist-scale")
    short = suite.protocol.cut(20)
    records = [
        make_record(cell.model, cell.augment, number, error + number, protocol=short, dataset=suite.dataset)
        for method in suite.methods
        for cell in method.cells.values()
        for number in suite.realisations
    ]
    lines = render_terminal(aggregate(suite, records)).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("(6)‡") for line in lines) == len(suite.cells) > 12
    assert not any("…" in line for line in lines)


def test_hostile_names_stay_text_in_markdown(hostile):
    text = render(hostile, "markdown")
    assert "<script" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.replace(r"\|", "").count("|") for line in rows] == [4, 4, 4]
    assert r"CNN&lt;script&gt;\|&amp;\_%$\#\{\}\~^\\\`\*\[b\]" in text


def changed(suite, **fields):
    return aggregate(suite.model_copy(update=fields), [])


@pytest.mark.parametrize("fmt", ["terminal", "markdown", "latex", "csv"])
def test_nothing_in_a_table_is_obeyed_by_a_terminal(suite, fmt):
    evil = "a\x1b]0;evil\x07\x1b[2J\u202egpj\r\nb"
    method = suite.methods[0].model_copy(update={"name": f"{evil}[red]x[/red]"})
    table = changed(suite, title=evil, columns=suite.columns, methods=(method,))
    text = render(table, fmt)
    assert not [letter for letter in text if not letter.isprintable() and letter != "\n"]
    assert "x1b" in text
    assert "gpj" in text
    if fmt == "terminal":
        assert "[red]" in text.replace("\n", ""), "markup of rich is text"


def test_text_that_a_spreadsheet_would_compute_is_quoted(suite):
    names = ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "ordinary = 1"]
    methods = tuple(suite.methods[0].model_copy(update={"name": name}) for name in names)
    rows = list(csv.DictReader(io.StringIO(render(changed(suite, methods=methods), "csv"))))
    found = list(dict.fromkeys(row["method"] for row in rows))
    assert found == ["'=HYPERLINK(1)", "'+1", "'-1", "'@SUM(A1)", "' =1", "ordinary = 1"]


def test_negative_numbers_stay_numbers_in_csv(suite, records):
    rows = list(csv.DictReader(io.StringIO(render(aggregate(suite, records), "csv"))))
    assert any(float(row["difference"] or 0) < 0 for row in rows)


def test_a_document_that_is_none_is_refused(tmp_path):
    path = tmp_path / "page.md"
    for content, message in ((b"\xff\xfe", "can't decode"), (bytes(2**24 + 1), "no file of at most")):
        path.write_bytes(content)
        with pytest.raises(SettingError, match=f"expected a document of text at .*page.md, got: .*{message}"):
            insert_into(path, "toy", "x")
    with pytest.raises(SettingError, match=r"expected a document of text at .*, got: .*; check the path"):
        insert_into(tmp_path, "toy", "x")


def test_hostile_names_stay_text_in_latex(hostile):
    text = render(hostile, "latex")
    escaped = r"\textless{}script\textgreater{}\textbar{}\&\_\%\$\#\{\}\textasciitilde{}\textasciicircum{}"
    assert f"CNN{escaped}\\textbackslash{{}}`{{*}}{{[}}b{{]}}" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {2}


def test_hostile_names_stay_text_in_the_terminal_and_csv(hostile):
    assert HOSTILE in render(hostile, "terminal")
    rows = list(csv.DictReader(io.StringIO(render(hostile, "csv"))))
    assert rows[0]["method"] == "CNN" + HOSTILE


def test_unknown_format(table):
    with pytest.raises(SettingError, match=f"expected a format of {', '.join(FORMATS)}, got 'pdf'"):
        render(table, "pdf")


def test_insert_into_replaces_only_between_the_markers(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("# é\n<!-- table:toy -->\nold\n<!-- /table:toy -->\nend\n", encoding="utf-8")
    assert insert_into(document, "toy", "new | ±\n") is True
    expected = "# é\n<!-- table:toy -->\nnew | ±\n<!-- /table:toy -->\nend\n"
    assert document.read_text(encoding="utf-8") == expected
    assert insert_into(document, "toy", "new | ±\n") is False


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<!-- table:toy -->",
        "<!-- /table:toy --><!-- table:toy -->",
        "<!-- table:toy --><!-- table:toy --><!-- /table:toy -->",
        "<!-- table:toys --><!-- /table:toys -->",
    ],
)
def test_insert_into_needs_both_markers_once(tmp_path, text):
    document = tmp_path / "README.md"
    document.write_text(text)
    with pytest.raises(SettingError, match="expected <!-- table:toy --> and then <!-- /table:toy --> once"):
        insert_into(document, "toy", "new")
    assert document.read_text() == text


SIZES = """\
Sizes: classification error in percent

                 size 1            size 2
───────────────────────────────────────────────────
CNN              37.17 ± 4.95 (2)  30.67 (1)
  smaller sizes                    50.00
  trained sizes  1.50 ± 0.71       2.00
  larger sizes   55.00 ± 7.07      40.00

Pyramid                            2.00 ± 0.47 (2)
  smaller sizes                    3.50 ± 0.71
  trained sizes                    0.00 ± 0.00
  larger sizes                     2.50 ± 0.71

· mean ± sample standard deviation of the test error over realisations (their
  number); lower is better
· smaller, trained, larger sizes: of the test images smaller than every training
  image, as large, larger
· CNN, size 2: 1 of 2 realisations (missing: no. 1).
"""


def test_errors_by_size_stand_below_the_mean(sizes_suite, sizes_records):
    table = aggregate(sizes_suite, sizes_records)
    assert render(table, "terminal") == SIZES
    cell = "**2.00 ± 0.47 (2)**<br>smaller sizes 3.50 ± 0.71<br>trained sizes 0.00 ± 0.00<br>"
    assert f"| Pyramid |  | {cell}larger sizes 2.50 ± 0.71 |" in render(table, "markdown")
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert [(row["dataset"], row["smaller_sizes"], row["larger_sizes"]) for row in rows] == [
        ("size-1", "", "55.0"),
        ("size-2", "50.0", "40.0"),
        ("size-2", "3.5", "2.5"),
    ]


def test_rows_of_ours_are_named(suite):
    ours = suite.methods[1].model_copy(update={"extra": True})
    mixed = suite.model_copy(update={"methods": (suite.methods[0], ours)})
    assert "· not in the published comparison: SESN\n" in render(aggregate(mixed, []), "terminal")
    alone = suite.model_copy(update={"methods": (ours,)})
    assert "published comparison" not in render(aggregate(alone, []), "terminal")


def test_csv_names_the_overrides(natural_suite, natural_record):
    text = render(aggregate(natural_suite, [natural_record]), "csv")
    assert next(csv.DictReader(io.StringIO(text)))["overrides"] == "depth=10"


NAMES = [
    *("CNN", "SiCNN", "SI-ConvNet", "SEVF scalar", "SEVF vector", "DSS scalar", "DSS vector", "SS-CNN"),
    *("SESN scalar", "SESN vector", "DISCO", "Input pyramid, maximum", "Input pyramid, mean"),
    *(f"SESN scalar, {basis} basis" for basis in ("B-spline", "Fourier–Bessel", "log-radial", "Gaussian")),
    *("SESN scalar, learnable scales", "Scale-rescaled kernels", "SESN vector, DISCO basis"),
]


@pytest.fixture
def all_methods():
    """Twenty methods in the four columns of MNIST-scale; the last nine have no cells in the last two."""
    suite = load_suite("mnist-scale")
    claims = [{"mean": 2.56, "std": 0.17, "source": "paper", "checked": False}]

    def cells(number: int) -> dict[str, object]:
        columns = suite.columns if number < 11 else suite.columns[:2]
        return {
            column: {
                "model": f"m{number}_{column[:2]}",
                "augment": "scale" if "+" in column else "none",
                "claims": claims,
            }
            for column in columns
        }

    methods = [{"name": name, "cells": cells(number)} for number, name in enumerate(NAMES)]
    return Suite.model_validate({**suite.model_dump(), "methods": methods})


@pytest.mark.parametrize(("epochs", "realisations", "error"), [(1, 1, 1.9), (60, 6, 2.1), (20, 6, 12.3)])
def test_all_methods_fit_80_columns(all_methods, make_record, epochs, realisations, error):
    protocol = all_methods.protocol.cut(epochs)
    table = aggregate(
        all_methods,
        [
            make_record(
                cell.model, cell.augment, number, error + number, protocol=protocol, dataset="mnist-scale"
            )
            for cell in all_methods.cells
            for number in range(realisations)
        ],
    )
    text = render_terminal(table)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    mark = "" if epochs == 60 else "‡"
    assert text.count(f"({realisations}){mark}") == len(all_methods.cells)
    assert text.count("2.56±0.17†") == len(all_methods.cells)
    start = lines[2].index("28×28")
    folded = " ".join(line[:start].strip() for line in lines)
    assert all(word in folded for name in NAMES for word in name.split())
    assert len([line for line in lines if line.startswith("· ")]) <= 6  # gaps are told once
    rows = [line for line in render(table, "markdown").splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {6}


def test_columns_that_do_not_fit_side_by_side_stand_below_each_other(all_methods, make_record):
    record = make_record("m0_56", "scale", 0, 12.34, protocol=all_methods.protocol, dataset="mnist-scale")
    lines = render_terminal(aggregate(all_methods, [record]), width=40).splitlines()
    heads = [line.split() for line in lines if "28×28" in line or "56×56" in line]
    assert heads[:2] == [["28×28", "28×28", "+"], ["56×56", "56×56", "+"]]
    assert max(map(len, lines)) <= 40
    assert "12.34 (1)" in "\n".join(lines)
    second = "\n".join(lines).partition("56×56")[2]
    assert "SESN vector, DISCO basis" not in second  # which has no cell there
