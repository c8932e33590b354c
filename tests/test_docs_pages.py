"""The code of every page of the documentation runs, and what its comments state is so.

All ``python`` blocks of a page share one namespace and run in their order. Three kinds of comments are held:

    x = f()   # (2, 16, 5, 96, 96)    the shape of x
    print(x)  # → [1, 2]              what is printed
    print(x)  # → about 0.022         the number that is printed, within 10 %

They may stand on the line below the statement. A block below a line ``<!-- not run: why -->`` is not run.
"""

import ast
import contextlib
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import equiscale

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
WITH_CODE = ["start.md", "use-layers.md", "concepts.md", "bases.md", "weights.md"]

BLOCK = re.compile(
    r"^(?P<skip><!-- not run: .+ -->\n)?```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
SHAPE = re.compile(r"# (\(\d+,(?: \d+(?:, \d+)*)?\))")
PRINTED = re.compile(r"# → (about )?(.+)$")
NEAR = 0.1


def blocks(page: str) -> list[str]:
    """The code that runs, on the lines that it has on the page."""
    return [
        "\n" * (page.count("\n", 0, match.start("code"))) + match["code"]
        for match in BLOCK.finditer(page)
        if not match["skip"]
    ]


def run_page(page: str, name: str = "page") -> dict[str, object]:
    names: dict[str, object] = {"__name__": name}
    for block in blocks(page):
        run_block(block, name, names)
    return names


def run_block(block: str, name: str, names: dict[str, object]) -> None:
    said = dict(comments(block))
    for statement in ast.parse(block, name).body:
        output = io.StringIO()
        code = compile(ast.Module([statement], []), name, "exec")
        with contextlib.redirect_stdout(output):
            exec(code, names)
        for line in range(statement.lineno, (statement.end_lineno or 0) + 1):
            check(statement, line, said.pop(line, ""), output=output.getvalue().strip(), names=names)
    assert not said, f"comments that state something, but belong to no statement: {said}"


def comments(block: str) -> Iterator[tuple[int, str]]:
    """The line that a comment is about, and the comment; those alone on a line are about the line before."""
    for token in tokenize.generate_tokens(io.StringIO(block).readline):
        if token.type == tokenize.COMMENT and (PRINTED.match(token.string) or SHAPE.match(token.string)):
            alone = token.line.strip() == token.string
            yield token.start[0] - alone, token.string


def check(statement: ast.stmt, line: int, comment: str, *, output: str, names: dict[str, object]) -> None:
    where = f"line {line}: {comment}"
    if match := PRINTED.match(comment):
        assert states(match[2].strip(), output, near=bool(match[1])), f"{where}, got {output!r}"
    elif match := SHAPE.match(comment):
        targets = [
            node.targets[0]
            for node in ast.walk(statement)
            if isinstance(node, ast.Assign) and node.end_lineno == line
        ]
        assert targets, f"{where}, got no assignment"
        value = eval(ast.unparse(targets[0]), names)
        assert tuple(value.shape) == ast.literal_eval(match[1]), f"{where}, got {tuple(value.shape)}"


def states(stated: str, output: str, *, near: bool) -> bool:
    return float(output) == pytest.approx(float(stated), rel=NEAR) if near else output == stated


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pages draw from torch's own generator, write files, and may measure algorithms."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EQUISCALE_AUTOTUNE", "off")
    monkeypatch.setenv("EQUISCALE_CACHE_DIR", str(tmp_path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    equiscale.clear_autotune()


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_as_printed(page: str) -> None:
    run_page((ROOT / "docs" / page).read_text(), page)


@pytest.mark.parametrize("page", WITH_CODE)
def test_pages_with_code_are_found(page: str) -> None:
    assert len(blocks((ROOT / "docs" / page).read_text())) >= 1


def test_the_times_beside_a_plain_network_are_those_of_the_committed_record() -> None:
    table = (ROOT / "README.md").read_text().split("<!-- table:speed -->")[1].split("<!-- /table")[0]
    times = [row.split("|")[-2].strip(" ×") for row in table.splitlines() if row.startswith("| `mnist")]
    page = (ROOT / "docs" / "use-layers.md").read_text()
    assert len(times) > 2
    assert f"take {min(times)} to {max(times)} times" in page


def test_the_table_of_errors_repeats_what_the_code_above_it_prints() -> None:
    code, table = (ROOT / "docs" / "concepts.md").read_text().split("relu, tiny = ")[1].split("```", 1)
    printed = [float(number) for number in re.findall(r"# → about ([\d.]+)", code)]
    shown = [float(percent) / 100 for percent in re.findall(r"^\|[^|]*\| ([\d.]+) % \|", table, re.MULTILINE)]
    assert len(printed) == 9
    assert shown == pytest.approx(printed, rel=0.03)


# --- that the checks can fail ---


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("undefined", "undefined"),
        ("import torch\nx = torch.zeros(2, 3)  # (3, 2)", r"line 4: # \(3, 2\), got \(2, 3\)"),
        ("print(1 + 1)  # → 3", "line 3: # → 3, got '2'"),
        ("print(0.5)  # → about 0.6", "line 3: # → about 0.6, got '0.5'"),
        ("print('nan')  # → about 0.6", "got 'nan'"),
        ("print(\n    1,\n)  # → 2", "line 5: # → 2, got '1'"),
        ("print(1)\n# → 2", "line 3: # → 2, got '1'"),
        ("print(1)\n\n# → 1", "belong to no statement"),
        ("import torch\nif True:\n    x = torch.ones(2)  # (3,)", r"got \(2,\)"),
        ("print(1)  # (2, 3)", "got no assignment"),
    ],
)
def test_a_page_that_is_wrong_fails(code: str, message: str) -> None:
    with pytest.raises((AssertionError, NameError), match=message):
        run_page(f"words\n```python\n{code}\n```\n")


def test_a_page_that_is_right_passes() -> None:
    names = run_page(
        "```python\nimport torch\nx = torch.zeros(2, 3)  # (2, 3), of zeros\n```\nwords\n"
        "<!-- not run: it would be wrong -->\n```python\nx = None\n```\n"
        "```python\nprint(tuple(x.shape))  # → (2, 3)\nprint(1.05)  # → about 1\n```\n"
    )
    assert torch.equal(names["x"], torch.zeros(2, 3))


def test_a_block_is_skipped_for_a_reason_only() -> None:
    with pytest.raises(NameError):
        run_page("<!-- not run: -->\n```python\nundefined\n```\n")


# --- figures ---


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    command = [sys.executable, str(ROOT / "docs" / "figures" / "draw.py"), "--output", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder


FIGURES = sorted(path.name for path in (ROOT / "docs" / "figures").glob("*.svg"))


def texts(svg: str) -> list[str]:
    """The words and numbers; not the bytes, which depend on matplotlib's version."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def numbers(words: list[str]) -> list[float]:
    return [float(number) for word in words for number in re.findall(r"(\d+(?:\.\d+)?) %", word)]


def curves(svg: str) -> list[float]:
    """The coordinates of all lines."""
    return [
        float(number)
        for line in re.findall(r'<path d="(M[^"]*)" clip-path="[^"]*" style="fill: none', svg)
        for number in re.findall(r"-?\d+(?:\.\d+)?", line)
    ]


@pytest.mark.parametrize("figure", FIGURES)
def test_the_committed_figures_are_those_that_are_drawn(figure: str, drawn: Path) -> None:
    committed, anew = ((folder / figure).read_text() for folder in (ROOT / "docs" / "figures", drawn))
    plain = [[re.sub(r"\d", "0", text) for text in texts(svg)] for svg in (committed, anew)]
    assert plain[0] == plain[1], "draw them anew: make figures"
    assert numbers(texts(committed)) == pytest.approx(numbers(texts(anew)), rel=NEAR)
    assert curves(committed) == pytest.approx(curves(anew), abs=2.0), "draw them anew: make figures"
    assert committed.count("<image") == anew.count("<image")


def test_figures_are_all_drawn_shown_and_small(drawn: Path) -> None:
    page = (ROOT / "docs" / "concepts.md").read_text()
    assert len(FIGURES) >= 5
    assert sorted(path.name for path in drawn.glob("*.svg")) == FIGURES
    for figure in FIGURES:
        assert f"](figures/{figure})" in page, figure
        assert (ROOT / "docs" / "figures" / figure).stat().st_size < 300_000


def test_curves_are_found(drawn: Path) -> None:
    assert len(curves((drawn / "exactness.svg").read_text())) > 30
