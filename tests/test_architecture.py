"""The rules of the house that no single file can keep: floors, imports, documentation, coverage."""

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

import equiscale.functional.pool

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "equiscale"
FACE = SOURCE / "__init__.py"  # shows everything
TESTS = ROOT / "tests"

FLOORS = {
    "errors": 0, "scales": 0, "citations": 0, "_typing": 0, "_checks": 0, "_files": 0, "_extras": 0,
    "_machine": 0,
    "basis": 1, "functional": 1,
    "nn": 2, "testing": 2,
    "models": 3, "data": 3, "deploy": 3,
    "train": 4,
    "experiments": 5,
    "report": 6, "catalogue": 6, "choose": 6,
    "cli": 7, "__main__": 8,
}  # fmt: skip

WITH_TORCH_ONLY = {"scipy", "sklearn", "PIL", "pydantic", "typer", "rich", "matplotlib", "tabulate", "jinja2"}


# --- floors ---


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every equiscale module a tree imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("equiscale."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module == "equiscale":
                yield from (f"equiscale.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("equiscale."):
                yield node.module


def unit(module: str) -> str:
    return module.split(".")[1]


def violations(importer: str, tree: ast.AST) -> list[str]:
    """Imports from no lower floor; the files of one package, and of floor 0, may import each other."""
    found = []
    for imported in imported_modules(tree):
        if imported == "equiscale.__version__":
            continue
        if unit(imported) not in FLOORS:
            found.append(f"{importer} imports {imported}: name the module it lives in")
        elif unit(imported) != unit(importer):
            above, below = FLOORS[unit(importer)], FLOORS[unit(imported)]
            if not (above > below or above == below == 0):
                found.append(f"{importer} (floor {above}) imports {imported} (floor {below})")
    return found


def test_every_package_has_a_floor() -> None:
    top = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert top - {"__init__", *FLOORS} == set(), "give the new package a floor"


@pytest.mark.parametrize("path", [path for path in source_files() if path != FACE], ids=module_name)
def test_a_file_imports_only_from_lower_floors(path: Path) -> None:
    assert violations(module_name(path), ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("importer", "line", "legal"),
    [
        ("equiscale.nn.lift", "from equiscale.functional import lift_conv2d", True),
        ("equiscale.nn.lift", "from equiscale.nn.steerable import SteerableConv2d", True),
        ("equiscale.scales", "from equiscale.errors import ScaleGridError", True),
        ("equiscale.cli", "def f():\n    import equiscale.report.tables", True),
        ("equiscale.functional.conv", "from equiscale.basis import HermiteBasis", False),
        ("equiscale.basis.hermite", "import equiscale.nn.lift", False),
        ("equiscale.testing.signals", "from equiscale.nn import LiftConv2d", False),
        ("equiscale.train.loop", "def f():\n    from equiscale.experiments import records", False),
        ("equiscale.models.mnist.ses", "from equiscale import data", False),
        ("equiscale.models.mnist.ses", "from equiscale import ScaleGrid", False),
        ("equiscale.errors", "from equiscale.data.root import data_root", False),
    ],
)
def test_the_floors_tell_right_from_wrong(importer: str, line: str, legal: bool) -> None:
    assert (violations(importer, ast.parse(line)) == []) == legal


def test_no_two_modules_import_each_other() -> None:
    graph = {
        module_name(path): {
            imported
            for imported in imported_modules(ast.parse(path.read_text()))
            if imported != module_name(path)
        }
        for path in source_files()
        if path.stem != "__init__"
    }
    assert cycle(graph) is None
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for following in sorted(graph.get(node, ())):
            found = visit(following, [*path, node])
            if found:
                return found
        done.add(node)
        return None

    return next((found for node in graph if (found := visit(node, []))), None)


# --- what an import loads ---


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_package_is_light() -> None:
    assert loaded_by("import equiscale") & (WITH_TORCH_ONLY | {"torch", "numpy"}) == set()


def test_layers_need_torch_and_no_heavier_package() -> None:
    loaded = loaded_by("import equiscale.nn, equiscale.testing; equiscale.HermiteBasis")
    assert "torch" in loaded
    assert loaded & WITH_TORCH_ONLY == set()


@pytest.mark.parametrize("module", ["equiscale.report", "equiscale.cli", "equiscale.scales"])
def test_starts_without_torch(module: str) -> None:
    assert "torch" not in loaded_by(f"import {module}")


def test_the_report_never_imports_torch() -> None:
    for path in source_files():
        if unit(module_name(path) + ".") == "report":
            names = {
                name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                for name in (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
            }
            assert "torch" not in names, path


# --- the run-time shape checks of this suite ---


def test_shapes_of_results_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that checks nothing would be silent: let a function return integers."""
    monkeypatch.setattr(equiscale.functional.pool, "max_pool2d", lambda x, *_: x.int())
    with pytest.raises(TypeCheckError, match="scale_max_pool2d"):
        equiscale.functional.scale_max_pool2d(torch.zeros(1, 2, 3, 4, 4), 1)


# --- documentation ---

SECTIONS = ["Shapes", "Args", "Returns", "Raises", "Exactness", "Source", "Example"]
DOCUMENTED = [
    "equiscale.scales",
    "equiscale.basis",
    "equiscale.functional",
    "equiscale.nn",
    "equiscale.testing",
]


def public_objects() -> list[tuple[str, object]]:
    found = {}
    for package in DOCUMENTED:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ["ScaleGrid"]):
            found[f"{package}.{name}"] = getattr(module, name)
    return [
        (name, thing) for name, thing in found.items() if inspect.isclass(thing) or inspect.isfunction(thing)
    ]


PUBLIC = pytest.mark.parametrize(
    ("name", "thing"), public_objects(), ids=[name for name, _ in public_objects()]
)


def sections(thing: object) -> dict[str, str]:
    """Title -> text of the sections of a docstring, in their order."""
    parts = re.split(r"^([A-Z][a-z]+):$", inspect.getdoc(thing) or "", flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def parameters(thing: object) -> set[str]:
    if dataclasses.is_dataclass(thing):
        return {field.name for field in dataclasses.fields(thing)}
    if inspect.isclass(thing) and not any("__init__" in vars(cls) for cls in ours(thing)):
        return set()
    return set(inspect.signature(thing).parameters) - {"self"}


def ours(thing: type) -> list[type]:
    return [cls for cls in thing.__mro__ if cls.__module__.startswith("equiscale")]


@PUBLIC
def test_public_docstrings_have_one_first_sentence_and_sections_in_order(name: str, thing: object) -> None:
    first = (inspect.getdoc(thing) or "").split("\n\n")[0]
    assert first.endswith("."), f"{name}: the first paragraph is one sentence"
    titles = list(sections(thing))
    assert titles == sorted(titles, key=SECTIONS.index), f"{name}: {titles}"


@PUBLIC
def test_documented_arguments_are_those_of_the_signature(name: str, thing: object) -> None:
    text = sections(thing).get("Args", "")
    documented = set(re.findall(r"^    \*{0,2}(\w+):", text, flags=re.MULTILINE))
    if "as `" in (inspect.getdoc(thing) or "").split("\n\n")[0]:
        return  # "arguments as `other`"
    if dataclasses.is_dataclass(thing) or documented:
        assert documented - parameters(thing) <= {"eps", "momentum", "num_features"}, name
    if name.endswith("ScaleGrid") or not inspect.isclass(thing) or issubclass(thing, nn.Module):
        missing = parameters(thing) - documented - mentioned(text)
        assert missing == set(), f"{name}: {missing} not under Args"


def mentioned(text: str) -> set[str]:
    """Keywords that the text of **options names."""
    return set(re.findall(r"``(\w+)``", text))


@PUBLIC
def test_layers_and_bases_say_what_they_map_what_they_refuse_and_what_is_exact(
    name: str, thing: object
) -> None:
    if name == "equiscale.nn.SteerableConv2d" or not inspect.isclass(thing):
        return
    is_basis = name.endswith("Basis") and name != "equiscale.basis.SteerableBasis"
    if issubclass(thing, nn.Module) or is_basis:
        missing = {"Shapes", "Raises", "Exactness", "Example"} - set(sections(thing))
        assert missing == set(), f"{name} lacks {missing}"


@PUBLIC
def test_functions_have_an_example_and_say_what_they_raise(name: str, thing: object) -> None:
    if inspect.isfunction(thing):
        assert "Example" in sections(thing), name
        if "Error(" in inspect.getsource(thing):
            assert "Raises" in sections(thing), name


# --- coverage ---


def declared_coverage() -> dict[str, set[str]]:
    """Name -> the test modules that declare in COVERS to test it, and do use it."""
    rows: dict[str, set[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == "COVERS" for target in node.targets
            ):
                for name in covered(node, tree):
                    rows.setdefault(name, set()).add(path.name)
    return rows


def covered(assignment: ast.Assign, tree: ast.Module) -> set[str]:
    names = {
        node.value
        for node in ast.walk(assignment)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    elsewhere = [
        node for statement in tree.body if statement is not assignment for node in ast.walk(statement)
    ]
    used = {node.id for node in elsewhere if isinstance(node, ast.Name)}
    used |= {node.attr for node in elsewhere if isinstance(node, ast.Attribute)}
    imported = {alias.name for node in elsewhere if isinstance(node, ast.ImportFrom) for alias in node.names}
    unused = names - used - imported
    assert not unused, f"{unused} in COVERS, but never used"
    return names


@pytest.mark.parametrize("package", ["basis", "functional", "nn", "testing"])
def test_every_public_name_has_a_row_in_the_tests(package: str) -> None:
    public = set(importlib.import_module(f"equiscale.{package}").__all__)
    missing = public - set(declared_coverage())
    assert missing == set(), f"add {sorted(missing)} to COVERS = {{...}} of the test module that tests it"
