"""Malformed input of every kind comes out as a typed error; and every function that opens a file is reached.

A budget of seconds: `make fuzz` goes on for minutes, with a fuzzer that watches coverage.
"""

import ast
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import damaged
from tests.fuzz.targets import TARGETS, check

SOURCE = Path(__file__).parents[2] / "src" / "equiscale"
SEEDS = st.integers(min_value=0, max_value=2**32)
BUDGET = settings(max_examples=60, deadline=None, derandomize=True, database=None)

# What opens a file for reading, or takes bytes to pieces that were in one.
READERS = {
    "open", "fdopen", "read_bytes", "read_text", "fromfile", "memmap", "safe_open", "load_file", "ZipFile",
    "is_zipfile", "tarfile.open", "gzip.open", "Image.open", "np.load", "torch.load", "json.load",
    "json.loads", "tomllib.load", "tomllib.loads", "pickle.load", "pickle.loads", "decompress",
    "model_validate_json", "read_magic", "file_digest",
}  # fmt: skip

NOT_FROM_OUTSIDE = {
    "_machine.processor_name": "the system's /proc",
    "experiments.benchmark.memory.resident_peak": "the system's /proc",
    "experiments.benchmark.peer.PublicCode._home": "the public code that --peer names is there to be run",
    "experiments.claims": "what processes of one's own sweep leave each other, in one's own folder",
    "experiments.element": "the state of one's own jobs, in one's own folder",
    "experiments.jobs": "the output of one's own jobs, in one's own folder",
    "experiments.execute": "JSON that was made two lines above",
    "experiments.plan._scalar": "the user's own command line",
    "choose.step.work": "a pickle of its own parent, over a pipe",
    "models.pretrained._manifest": "a file of the package",
    "models.pretrained.pretrained_path": "compared with its SHA-256 before it is parsed",
    "data.mnist_scale._pngs_are_there": "its own folder, of which the MD5 alone is taken",
    "data.mnist_scale._recorded_png_md5": "after its arrays were compared with their SHA-256",
}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_gives_typed_errors_only(name: str) -> None:
    target = TARGETS[name]
    examples = target.examples()

    @BUDGET
    @given(SEEDS)
    def try_one(seed: int) -> None:
        check(target, damaged(examples, seed))

    try_one()


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_example_is_read(name: str) -> None:
    """Else the damage would never be met: the first refusal would hide all others."""
    target = TARGETS[name]
    first = target.packed(target.examples()[0])
    if name in ENDS_AT_A_CHECKSUM:
        with pytest.raises(target.errors, match=ENDS_AT_A_CHECKSUM[name]):
            target.run(first)
    else:
        target.run(first)


ENDS_AT_A_CHECKSUM = {"MNIST-scale": "SHA-256", "MNIST's file": "MD5"}


@pytest.mark.parametrize("content", [b"", b"\0", b"\0" * 5000, b"[" * 100_000, b"\xff" * 300, b"{}", b"null"])
@pytest.mark.parametrize("name", TARGETS)
def test_what_fits_nothing_gives_typed_errors_only(name: str, content: bytes) -> None:
    check(TARGETS[name], content)


# --- what there is to be reached ---


def readers(path: Path) -> Iterator[str]:
    """Every function of a file that reads, as ``module.function``."""
    module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)

    def visit(node: ast.AST, place: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if isinstance(child, ast.Call) and is_reader(child):
                yield place
            yield from visit(child, f"{place}.{child.name}" if named else place)  # type: ignore[attr-defined]

    return visit(ast.parse(path.read_text()), module)


def is_reader(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    known = name in READERS or name.rpartition(".")[2] in READERS
    return known and not _writes(call)


def _writes(call: ast.Call) -> bool:
    """Whether every mode that an ``open`` may have is one of writing."""
    if any(ast.unparse(argument) == "os.O_WRONLY" for argument in call.args):
        return True
    words = [
        node.value for argument in call.args for node in ast.walk(argument) if isinstance(node, ast.Constant)
    ]
    modes = [word for word in words if isinstance(word, str) and set(word) <= set("rwaxbt+") and word]
    return bool(modes) and all(mode[0] in "wax" for mode in modes)


def called_by_targets() -> set[str]:
    """The functions of the package that run while every target reads its examples."""
    seen: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    for target in TARGETS.values():
        for example in target.examples():
            packed = target.packed(example)
            threading.setprofile(note)
            sys.setprofile(note)
            try:
                target.run(packed)
            except target.errors:
                pass
            finally:
                sys.setprofile(None)
                threading.setprofile(None)
    inside = [(Path(file), name) for file, name in seen if Path(file).is_relative_to(SOURCE)]
    return {
        ".".join(file.relative_to(SOURCE).with_suffix("").parts) + f".{name.replace('.<locals>', '')}"
        for file, name in inside
    }


def test_every_function_that_reads_is_reached_or_has_a_reason() -> None:
    found = {name for path in SOURCE.rglob("*.py") for name in readers(path)}
    reached = called_by_targets()
    excused = {
        name
        for name in found
        if any(name == known or name.startswith(f"{known}.") for known in NOT_FROM_OUTSIDE)
    }
    assert sorted(found - reached - excused) == [], "add a target, or a reason"
    unused = {known for known in NOT_FROM_OUTSIDE if not any(name.startswith(known) for name in found)}
    assert unused == set(), "these read nothing any more"
    assert len(found & reached) > 20


@pytest.mark.parametrize(
    ("line", "reads"),
    [
        ("open(path)", True),
        ("path.open('rb')", True),
        ("path.open('wb')", False),
        ("open(part, 'ab' if offset else 'wb')", False),
        ("open(part, 'rb' if offset else 'wb')", True),
        ("os.open(path, os.O_WRONLY)", False),
        ("os.open(path, os.O_RDONLY)", True),
        ("np.load(path)", True),
        ("np.lib.format.read_magic(stream)", True),
        ("zlib.decompressobj()", False),
        ("Image.open(path)", True),
        ("print(path)", False),
    ],
)
def test_the_search_tells_readers_from_others(line: str, reads: bool) -> None:
    call = ast.parse(line).body[0].value  # type: ignore[attr-defined]
    assert is_reader(call) == reads


def test_nothing_in_the_package_runs_what_it_reads() -> None:
    """No eval, no exec, no unpickling, no YAML that builds objects; a child's pickle of its parent apart."""
    banned = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "marshal.loads", "shelve.open"}
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in banned:
                found.add(path.relative_to(SOURCE).as_posix())
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
                safe = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
                name, value = safe[ast.unparse(node.func)]
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get(name) == str(value), f"{path}: {ast.unparse(node)}"
    assert found == {"choose/step.py"}
