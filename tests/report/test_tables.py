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
    assert sum(line.count("(6)‡") for line in lines) == 12
    assert not any("…" in line for line in lines)


def test_hostile_names_stay_text_in_markdown(hostile):
    text = render(hostile, "markdown")
    assert "<script" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.replace(r"\|", "").count("|") for line in rows] == [4, 4, 4]
    assert r"CNN&lt;script&gt;\|&amp;\_%$\#\{\}\~^\\\`\*\[b\]" in text


def test_hostile_names_stay_text_in_latex(hostile):
    text = render(hostile, "latex")
    escaped = r"\textless{}script\textgreater{}\textbar{}\&\_\%\$\#\{\}\textasciitilde{}\textasciicircum{}"
    assert f"CNN{escaped}\\textbackslash{{}}`*[b]" in text
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
