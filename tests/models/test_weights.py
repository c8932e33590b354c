"""Networks as files: what is saved is loaded bit by bit, and nothing else is loaded."""

import contextlib
import copy
import json
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from equiscale import ScaleGrid, create_model, list_models, load_published_state_dict
from equiscale.basis import (
    DiscoBasis,
    FourierBesselBasis,
    GaussianDerivativeBasis,
    HermiteBasis,
    basis_entry,
    list_bases,
)
from equiscale.errors import CheckpointError, ModelError, SettingError
from equiscale.models import model_entry, registry
from equiscale.models import weights as weights_module
from equiscale.models.registry import ModelEntry, Registered
from equiscale.models.settings_json import BASES, SettingsJsonError, decode, encode
from equiscale.models.weights import load, save, weights_info
from equiscale.models.weights_file import digest_of
from equiscale.train.checkpoint import save_checkpoint

LARGE = (*list_models("wrn_16_*"), *list_models("wrn_10_2*"))
SMALL = [name for name in list_models() if name not in LARGE]
FLIPS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TINY = {"channels": (2, 3, 4), "hidden": 8}


def trained(name: str, **overrides: Any) -> nn.Module:
    """A network none of whose tensors is what a fresh one would have."""
    network, generator = create_model(name, **overrides), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point() and not key.endswith(("log_min_scale", "log_range")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.05)
            elif not tensor.is_floating_point():
                tensor.fill_(11)
    return network.eval()


def outputs(network: nn.Module) -> torch.Tensor:
    """Logits of one image of the smallest size that networks of its kind take."""
    side = 64 if hasattr(network, "smallest") and network.smallest > 32 else 28
    image = torch.rand(
        1, network.settings.in_channels, side, side, generator=torch.Generator().manual_seed(6)
    )
    with torch.no_grad():
        return network(image)


@pytest.fixture
def tiny() -> nn.Module:
    return trained("mnist_ses_vector_28", **TINY)


@pytest.fixture
def file(tiny: nn.Module, tmp_path: Path) -> Path:
    save(tiny, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


# --- round trips ---


@pytest.mark.parametrize("name", SMALL)
def test_every_registered_network_comes_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    network = trained(name)
    save(network, tmp_path / "network.safetensors")
    loaded = load(tmp_path / "network.safetensors")
    assert type(loaded) is type(network)
    assert not loaded.training
    saved, found = network.state_dict(), loaded.state_dict()
    assert list(saved) == list(found)
    assert all(torch.equal(saved[key], found[key]) and saved[key].dtype == found[key].dtype for key in saved)
    assert torch.equal(outputs(loaded), outputs(network))


def test_the_networks_of_the_round_trips_are_all_but_the_large_ones() -> None:
    assert len(SMALL) >= 50
    assert {type(model_entry(name).settings) for name in LARGE} <= {
        type(model_entry(name).settings) for name in SMALL
    }


@pytest.mark.parametrize("name", list_models())
def test_settings_of_every_registered_network_have_a_json_form(name: str) -> None:
    published = model_entry(name).settings
    assert decode(json.loads(json.dumps(encode(published))), type(published)) == published


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("mnist_ses_scalar_28", {"num_classes": 3, "in_channels": 2, "dropout": 0.25, "kernel_size": 9}),
        ("mnist_disco", {"basis": HermiteBasis(7, "A", degenerate="allow"), "grid": ScaleGrid([1.1, 2.3])}),
        ("mnist_disco", {"basis": DiscoBasis(3, sigma=0.77, correlation=0.5), "effective_size": 3}),
        ("scale_ses_vector", {"basis": GaussianDerivativeBasis(5, 3, radius=None), "channels": [3, 4]}),
        ("scale_ses_scalar", {"basis": FourierBesselBasis(5, 2.7, degenerate="allow")}),
        ("mnist_ss_28", {"unused": False}),
        ("mnist_kanazawa_28", {"scales": (0.5, 1, 2)}),
        ("wrn_10_1_ses_c", {"width": 2, "lift_again": (2,), "num_classes": 100}),
    ],
)
def test_overrides_are_kept(name: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    channels = TINY if name.startswith("mnist") else {}
    network = trained(name, **(channels | overrides))
    save(network, tmp_path / "network.safetensors")
    loaded = load(tmp_path / "network.safetensors")
    for field, value in overrides.items():
        assert getattr(loaded.settings, field) == (tuple(value) if isinstance(value, list) else value)
    assert torch.equal(outputs(loaded), outputs(network))


def test_every_family_of_filters_can_be_read() -> None:
    assert {type(basis_entry(name).build(3)) for name in list_bases()} == set(BASES)


def test_float64_networks_keep_all_digits(float64: None, tmp_path: Path) -> None:
    network = trained("mnist_disco", **TINY)
    save(network, tmp_path / "network.safetensors")
    loaded = load(tmp_path / "network.safetensors")
    assert loaded.main[0].weight.dtype == torch.float64
    image = torch.rand(1, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(image), network(image))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_halves_the_file_and_rounds_filters_alone(
    dtype: torch.dtype, rounding: float, tmp_path: Path
) -> None:
    network = trained("mnist_cnn_28")
    for stored, name in ((None, "whole"), (dtype, "half")):
        save(network, tmp_path / name, dtype=stored)
    sizes = [(tmp_path / name).stat().st_size for name in ("half", "whole")]
    assert 0.5 < sizes[0] / sizes[1] < 0.51
    loaded = load(tmp_path / "half").state_dict()
    for key, tensor in network.state_dict().items():
        assert loaded[key].dtype == tensor.dtype
        if tensor.ndim < 2:
            assert torch.equal(loaded[key], tensor)
        else:
            error = ((loaded[key] - tensor) / tensor).abs().max()
            assert rounding / 4 < error <= rounding


def test_what_float16_cannot_hold_is_refused_and_bfloat16_holds(tiny: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with torch.no_grad():
        tiny.linear[0].weight[0, :2] = 70_000.0
    with pytest.raises(
        CheckpointError, match=r"finite numbers in linear.0.weight in torch.float16, got 2 .*bfloat16"
    ):
        save(tiny, path, dtype=torch.float16)
    assert not path.exists()
    save(tiny, path, dtype=torch.bfloat16)
    assert load(path).linear[0].weight[0, 0].item() == pytest.approx(70_000, rel=2**-8)


def test_notes_and_the_header_are_read_without_the_network(tiny: nn.Module, tmp_path: Path) -> None:
    notes = {"mean": 0.1607, "classes": ["zero", "one"], "rotated": False, "of": {"run": None}}
    save(tiny, tmp_path / "tiny.safetensors", notes=notes)
    info = weights_info(tmp_path / "tiny.safetensors")
    assert (info.model, info.notes) == ("mnist_ses_vector_28", notes)
    assert info.settings["channels"] == [2, 3, 4]
    assert info.elements == sum(tensor.numel() for tensor in tiny.state_dict().values())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from torch.compile itself
def test_copies_pickles_and_compiled_networks_are_saved_as_themselves(
    tiny: nn.Module, tmp_path: Path
) -> None:
    path, expected = tmp_path / "tiny.safetensors", outputs(tiny)
    for same in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny)), torch.compile(tiny), tiny.train()):
        save(same, path)
        assert torch.equal(outputs(load(path)), expected)
        path.unlink()


def test_the_callers_generator_is_left_alone(tiny: nn.Module, file: Path) -> None:
    before = torch.get_rng_state()
    load(file)
    save(tiny, file)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failed_save_leaves_the_old_file(
    tiny: nn.Module, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(path: Path, content: bytes) -> None:
        with path.open("wb") as opened:
            opened.write(content[:100])
        raise OSError("disk full")

    old = file.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", cut)
    with pytest.raises(OSError, match="disk full"):
        save(tiny, file)
    assert file.read_bytes() == old
    assert list(file.parent.iterdir()) == [file]


# --- what cannot be saved ---


@dataclass(frozen=True)
class OwnBasis:
    """A basis that somebody wrote."""

    num_functions: int = 1

    def sample(self, kernel_size: int, grid: ScaleGrid) -> torch.Tensor:
        return torch.ones(1, len(grid), kernel_size, kernel_size, dtype=torch.float64)


def with_another_layer(network: nn.Module) -> nn.Module:
    network.linear[4] = nn.Linear(8, 7)
    return network


def with_another_activation(network: nn.Module) -> nn.Module:
    network.linear[2] = nn.GELU()
    return network


def with_one_more_buffer(network: nn.Module) -> nn.Module:
    network.register_buffer("average", torch.zeros(3))
    return network


def with_nan(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        network.linear[4].bias[3] = torch.nan
    return network


def with_adopted_bases(network: nn.Module) -> nn.Module:
    bases = {
        f"{name}.basis": module.basis
        for name, module in network.named_modules()
        if hasattr(module, "windows")
    }
    load_published_state_dict(network, network.state_dict() | bases, adopt_bases=True)
    return network


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            with_another_layer,
            r"that create_model\('mnist_ses_vector_28'\) builds .* another linear.4.weight, linear.4",
        ),
        (with_another_activation, r"another linear.2; save its weights with safetensors.torch.save_file"),
        (with_one_more_buffer, "another average; save"),
        (with_nan, r"finite numbers in linear.4.bias in the network, got 1 .*; nothing was saved"),
        (with_adopted_bases, r"got a network that adopted others, as main.0.basis; .*adopt_bases=True"),
        (
            lambda _: nn.Sequential(nn.Conv2d(1, 1, 3)),
            r"a network of create_model, got a Sequential; save its weights .*state_dict\(\), path\)",
        ),
        (lambda network: network.main, "a network of create_model, got a Sequential"),
        (
            lambda _: create_model("scale_ses_vector", basis=OwnBasis(), channels=(2,)),
            "scale_ses_vector: expected .* equiscale's own bases, got OwnBasis as basis; save its weights",
        ),
        (
            lambda _: create_model("mnist_ses_vector_28", **TINY, kernel_size=67),
            "a finite number of at most 65 as kernel_size, got 67",
        ),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(
    tiny: nn.Module, tmp_path: Path, change: Callable[[nn.Module], nn.Module], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(change(tiny), tmp_path / "network.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.int8}, r"a dtype of torch.float16, .* or None, got torch.int8"),
        ({"notes": {"when": object()}}, "JSON values as notes, got: .*not JSON serializable"),
        ({"notes": {"error": float("nan")}}, "JSON values as notes, got: "),
        ({"notes": {"log": "x" * 70_000}}, "at most 65536 characters of notes"),
    ],
)
def test_illegal_options_are_refused(
    tiny: nn.Module, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        save(tiny, tmp_path / "network.safetensors", **options)
    assert list(tmp_path.iterdir()) == []


# --- files that are none, or damaged ---


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert type(caught.value) is CheckpointError
    return str(caught.value)


def test_what_is_no_network_file_is_refused_with_the_way_out(tiny: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert "got: No such file or directory; check the path" in refused(path)
    assert "got: Is a directory" in refused(tmp_path)
    path.write_bytes(b"")
    assert "got a header of 0 bytes" in refused(path)
    torch.save(tiny.state_dict(), path)
    assert re.search(r"expected a safetensors file at .*, got a header of \d{12,} bytes", refused(path))
    path.write_bytes(struct.pack("<Q", 2**23 + 1) + bytes(100))
    assert "got a header of 8388609 bytes" in refused(path)
    path.write_bytes(struct.pack("<Q", 40) + b"{" * 40)
    assert "expected a complete safetensors file" in refused(path)
    save_file(tiny.state_dict(), path)
    assert "build the network with create_model and load them with load_state_dict" in refused(path)
    save_checkpoint(path, {"model": tiny.state_dict()}, identity="a run", progress={})
    assert "the checkpoint of an unfinished training" in refused(path)


def test_every_truncated_file_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for size in {*range(0, len(whole), 211), len(whole) - 1}:
        file.write_bytes(whole[:size])
        assert "expected a" in refused(file)
    file.write_bytes(whole + b"\0")
    assert "expected a complete safetensors file" in refused(file)


@FLIPS
@given(data=st.data())
def test_no_flipped_bit_anywhere_is_loaded(file: Path, data: st.DataObject) -> None:
    whole = file.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(header, len(whole) - 1)))
    damaged = bytearray(whole)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path = file.with_name("damaged.safetensors")
    path.write_bytes(damaged)
    refused(path)


@FLIPS
@given(data=st.data())
def test_text_in_the_place_of_the_header_is_refused(file: Path, data: st.DataObject) -> None:
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    start = data.draw(st.integers(8, 7 + length))
    junk = data.draw(st.binary(min_size=1, max_size=min(64, 8 + length - start)))
    damaged = whole[:start] + junk + whole[start + len(junk) :]
    if damaged == whole:
        return
    path = file.with_name("damaged.safetensors")
    path.write_bytes(damaged)
    refused(path)


# --- files that somebody changed, with a digest that fits ---


def forge(
    path: Path,
    *,
    metadata: dict[str, str] | None = None,
    settings: Callable[[dict[str, Any]], Any] | None = None,
    tensors: Callable[[dict[str, torch.Tensor]], Any] | None = None,
) -> None:
    with safe_open(path, framework="pt") as opened:
        entries = dict(opened.metadata())
    state = load_file(path)
    if settings:
        document = json.loads(entries["settings"])
        changed = settings(document)
        entries["settings"] = changed if isinstance(changed, str) else json.dumps(document)
    if tensors:
        tensors(state)
    entries |= metadata or {}
    save_file(state, path, entries | {"digest": digest_of(entries, state)})


def test_a_forged_file_that_says_the_truth_is_loaded(tiny: nn.Module, file: Path) -> None:
    forge(file, metadata={"notes": '{"by": "hand"}'}, settings=lambda document: document.update(dropout=0.5))
    loaded = load(file)
    assert (loaded.settings.dropout, weights_info(file).notes) == (0.5, {"by": "hand"})
    assert torch.equal(outputs(loaded), outputs(tiny))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 10**9}, "a finite number of at most 1.04858e+06 as hidden, got 1000000000"),
        ({"hidden": 10**6}, r"tensors of the file, got one with \(1000000, 16\) in it"),
        ({"num_classes": 10**6}, r"tensors of the file, got one with \(1000000, 8\) in it"),
        ({"channels": [2, 3, 10**6]}, r"tensors of the file, got one with \(1000000, 3, 1, 49\) in it"),
        (
            {"channels": [2, 3, 5]},
            r"got main.8.weight of shape \(4, 3, 1, 49\) instead of \(5, 3, 1, 49\), .* and 2 more",
        ),
        ({"channels": [2, 3]}, "expected 3 values as channels, got "),
        ({"channels": list(range(1000))}, "a list of at most 64 values as channels"),
        ({"channels": "2, 3, 4"}, "a list of at most 64 values as channels, got 2, 3, 4"),
        ({"hidden": 8.0}, "a whole number as hidden, got 8.0"),
        ({"hidden": True}, "a whole number as hidden, got True"),
        ({"hidden": None}, "a whole number as hidden, got None"),
        ({"hidden": {"type": "HermiteBasis"}}, "a whole number as hidden, got {'type'"),
        ({"hidden": -1}, r"settings in .* with which 'mnist_ses_vector_28' can be built, got: "),
        ({"dropout": "0.5"}, "a number as dropout, got 0.5"),
        ({"dropout": 10**400}, "a finite number of at most 1024 as dropout"),
        ({"dropout": 1.5}, "legal settings, got: expected a dropout with 0 <= p < 1, got 1.5"),
        ({"degenerate": "ignore"}, "'error' or 'warn' or 'allow' as degenerate, got ignore"),
        ({"kernel_size": 10**5}, "a finite number of at most 65 as kernel_size"),
        ({"kernel_size": 12}, "can be built, got: expected an odd kernel_size"),
        ({"num_scales": 10**6}, "a finite number of at most 32 as num_scales"),
        ({"num_scales": 32, "kernel_size": 65, "effective_size": 33}, "at most 33554432 sampled numbers"),
        ({"__class__": "os.system"}, "fields of SesSettings as settings, got __class__"),
        ({"type": "MnistSettings"}, "an object of type SesSettings as settings"),
        ({"type": ["SesSettings"]}, "an object of type SesSettings as settings"),
    ],
)
def test_changed_settings_are_refused(file: Path, change: dict[str, Any], message: str) -> None:
    forge(file, settings=lambda document: document.update(change))
    found = refused(file)
    assert re.search(message if "\\" in message or ".*" in message else re.escape(message), found), found
    assert len(found) < 900


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "SesSettings", "dropout": NaN}', "NaN is not finite"),
        ('{"type": "SesSettings", "mult": -Infinity}', "-Infinity is not finite"),
        ('{"type": "SesSettings", "mult": 1e999}', "a finite number of at most 1024 as mult, got inf"),
        ('{"type": "SesSettings", "hidden": 8, "hidden": 8}', "a name stands twice"),
        ("[" * 60_000, "expected JSON as settings"),
        ('{"a":' * 12_000, "expected JSON as settings"),
        ("[1]", "a JSON object as settings, got [1]"),
        ("1" * 5000, "expected JSON as settings"),
        ("1" * 70_000, "at most 65536 characters of settings, got 70000"),
        ("", "expected JSON as settings"),
    ],
)
def test_settings_that_are_no_settings_are_refused(file: Path, text: str, message: str) -> None:
    forge(file, settings=lambda _: text)
    assert message in refused(file)


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        ({"type": "OwnBasis"}, "a basis of type BSplineBasis, DiscoBasis, "),
        ({"type": "os.system"}, "a basis of type BSplineBasis, DiscoBasis, "),
        ("HermiteBasis", "a basis of type BSplineBasis, DiscoBasis, "),
        (
            {"type": "HermiteBasis", "effective_size": 5, "power": 2},
            "fields of HermiteBasis as basis, got power",
        ),
        ({"type": "HermiteBasis"}, "the field effective_size as basis"),
        ({"type": "HermiteBasis", "effective_size": 5, "mult": 0.5}, "legal basis, got: expected mult"),
        ({"type": "HermiteBasis", "effective_size": 3}, "effective_size=3, that of HermiteBasis"),
    ],
)
def test_changed_bases_are_refused(tmp_path: Path, basis: object, message: str) -> None:
    path = tmp_path / "network.safetensors"
    save(trained("scale_ses_vector", channels=(2,)), path)
    forge(path, settings=lambda document: document.update(basis=basis))
    assert message in refused(path)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"type": "ScaleGrid", "values": []}, "legal grid, got: expected at least one scale"),
        ({"type": "ScaleGrid", "values": [2, 1]}, "legal grid, got: expected strictly increasing"),
        ({"type": "ScaleGrid", "values": [1, "2"]}, "a number as values, got 2"),
        ({"type": "ScaleGrid"}, "the field values as grid"),
        ([1, 2], "an object of type ScaleGrid as grid"),
    ],
)
def test_changed_grids_are_refused(tmp_path: Path, grid: object, message: str) -> None:
    path = tmp_path / "network.safetensors"
    save(trained("scale_ses_vector", channels=(2,)), path)
    forge(path, settings=lambda document: document.update(grid=grid))
    assert message in refused(path)


def test_a_blur_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save(trained("wrn_10_1_dss"), path)
    forge(path, settings=lambda document: document.update(num_scales=30))
    assert "a blur of at most 4096 pixels as settings, got 5.36871e+08" in refused(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"model": "mnist_ses_vector_99"},
            "got 'mnist_ses_vector_99'; the file is damaged or was changed, or",
        ),
        ({"model": "mnist_cnn_28"}, "an object of type MnistSettings as settings"),
        (
            {"model": "mnist_ses_scalar_28"},
            "num_batches_tracked, no main.5.weight, no main.5.bias and 31 more",
        ),
        ({"model": "../../etc/passwd"}, "got '../../etc/passwd'"),
        ({"format": "equiscale-model-2"}, "the format equiscale-model-1 in"),
        ({"format": "equiscale-model-2"}, "got 'equiscale-model-2'; upgrade equiscale"),
        ({"notes": "[]"}, "a JSON object as notes, got []"),
    ],
)
def test_changed_headers_are_refused(file: Path, metadata: dict[str, str], message: str) -> None:
    forge(file, metadata=metadata)
    assert message in refused(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("main.0.weight"),
            "got no main.0.weight; the file is damaged or was changed",
        ),
        (lambda state: state.update(extra=torch.zeros(2)), "got an additional 'extra'"),
        (
            lambda state: state.update({"linear.4.bias": torch.zeros(11)}),
            "got linear.4.bias of shape (11,) instead of (10,)",
        ),
        (
            lambda state: state.update({"linear.4.bias": torch.zeros(10, dtype=torch.int32)}),
            "got linear.4.bias of type I32 instead of F16 or BF16 or F32 or F64",
        ),
        (
            lambda state: state.update({"main.3.num_batches_tracked": torch.tensor(1.0)}),
            "got main.3.num_batches_tracked of type F32 instead of I64",
        ),
        (
            lambda state: state["linear.4.bias"].__setitem__(0, torch.inf),
            "finite numbers in linear.4.bias in",
        ),
        (
            lambda state: state["linear.1.running_var"].fill_(torch.nan),
            "finite numbers in linear.1.running_var in",
        ),
    ],
)
def test_changed_tensors_are_refused(
    file: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    forge(file, tensors=change)
    assert message in refused(file)


def test_a_digest_of_something_else_is_refused(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        entries = dict(opened.metadata())
    state = load_file(file)
    state["linear.4.bias"][0] += 1
    save_file(state, file, entries)
    assert "expected the SHA-256" in refused(file)
    del entries["digest"]
    save_file(state, file, entries)
    assert "expected digest in the header" in refused(file)


def test_numbers_beyond_the_file_are_refused_before_they_are_made(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allowance is asked before torch is: the memory for a million hidden units is never touched."""
    made: list[int] = []
    original = weights_module._Allowance._take

    def take(self: Any, size: Any) -> None:
        original(self, size)
        made.append(torch.Size(size).numel())

    monkeypatch.setattr(weights_module._Allowance, "_take", take)
    forge(file, settings=lambda document: document.update(hidden=10**6))
    refused(file)
    assert 0 < sum(made) < 10_000
    made.clear()
    forge(file, settings=lambda document: document.update(hidden=8))
    load(file)
    assert sum(made) >= sum(parameter.numel() for parameter in load(file).parameters())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([*encode(model_entry("mnist_disco").settings), "extra"]),
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**12), 10**12)
        | st.integers(-3, 70)
        | st.floats()
        | st.sampled_from(["HermiteBasis", "ScaleGrid", "A", "allow"]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["type", "values", "effective_size", "kind", "mult"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    ),
)
def test_any_json_in_any_field_is_read_or_refused(name: str, value: object) -> None:
    published = model_entry("mnist_disco").settings
    with contextlib.suppress(SettingsJsonError):
        found = decode(encode(published) | {name: value}, type(published))
        assert encode(found)[name] == value or isinstance(value, dict)


def test_a_field_that_is_newer_than_the_file_keeps_its_default(tiny: nn.Module, file: Path) -> None:
    forge(file, settings=lambda document: document.pop("max_order"))
    assert load(file).settings == tiny.settings


# --- networks of one's own in the registry ---


@dataclass(frozen=True)
class OwnSettings:
    """Settings of a network that somebody registered."""

    width: int = 4
    names: dict[str, int] | None = None
    num_classes: int = 10
    in_channels: int = 1


def test_a_network_of_ones_own_is_saved_once_it_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = model_entry("mnist_cnn_28")
    own = ModelEntry("own", "Own", OwnSettings(), lambda s: nn.Linear(s.width, s.num_classes), entry.citation)
    monkeypatch.setitem(registry._REGISTRY, "own", own)
    network = create_model("own", width=6)
    save(network, tmp_path / "own.safetensors")
    assert torch.equal(load(tmp_path / "own.safetensors").weight, network.weight)
    with pytest.raises(CheckpointError, match=r"own: expected numbers, choices, .*, got dict as names"):
        save(create_model("own", names={"a": 1}), tmp_path / "own.safetensors")
    network.registered = Registered("another", replace(OwnSettings(), width=6))
    with pytest.raises(ModelError, match="got 'another'"):
        save(network, tmp_path / "own.safetensors")
