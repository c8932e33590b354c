"""Nothing public goes untested: every golden case is read, every basis and every model has its row."""

import ast
import inspect
from fnmatch import fnmatch
from pathlib import Path

import equiscale.basis
from equiscale.basis import SteerableBasis, basis_entry, list_bases
from equiscale.models import list_models
from tests.golden import _index
from tests.models import test_mnist, test_scale_generalisation, test_unet, test_wide_resnet

TESTS = Path(__file__).parent


def read_patterns() -> set[str]:
    """What the tests read: every string, and what ``golden_names`` and f-strings in ``golden_case`` match."""
    patterns: set[str] = set()
    for path in set(TESTS.rglob("test_*.py")) - {Path(__file__)}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                patterns.add(node.value.replace("*", ""))
            elif isinstance(node, ast.Call) and node.args:
                patterns |= called_pattern(getattr(node.func, "id", ""), node.args[0])
    return patterns


def called_pattern(function: str, argument: ast.expr) -> set[str]:
    if function == "golden_names" and isinstance(argument, ast.Constant):
        return {f"{argument.value}*"}
    if function == "golden_case" and isinstance(argument, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "*" for part in argument.values]
        return {"".join(map(str, parts))}
    return set()


def unread(cases: set[str]) -> set[str]:
    patterns = read_patterns()
    return {case for case in cases if not any(fnmatch(case, pattern) for pattern in patterns)}


def test_every_golden_case_is_read() -> None:
    assert len(_index()) >= 44
    assert unread(set(_index())) == set()
    assert unread({"no_such_case"}) == {"no_such_case"}


def test_every_golden_file_is_in_the_index() -> None:
    files = {path.stem for path in (TESTS / "golden").glob("*.npz")}
    assert {file for file in files if not file.startswith("published_")} == set(_index())


def test_every_public_basis_is_registered() -> None:
    families = {
        name
        for name in equiscale.basis.__all__
        if inspect.isclass(family := getattr(equiscale.basis, name))
        and family is not SteerableBasis
        and hasattr(family, "sample")
    }
    registered = {type(basis_entry(name).build(3)).__name__ for name in list_bases()}
    assert len(families) >= 6
    assert families == registered


def test_every_model_has_a_row_with_its_parameters() -> None:
    rows = [*test_mnist.COUNTS, *test_scale_generalisation.NAMES, *test_unet.PARAMETERS]
    rows += [f"wrn_*_?{suffix}" for suffix in test_wide_resnet.PARAMETERS]
    assert [name for name in list_models() if not any(fnmatch(name, row) for row in rows)] == []
