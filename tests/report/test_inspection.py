"""The pictures beside a record are read whole or refused."""

import io
import re
import zipfile

import numpy as np
import pytest

from equiscale.errors import RecordError
from equiscale.report.inspection import read_inspection


def test_reads_what_was_written(tmp_path, make_arrays):
    path, arrays = tmp_path / "run.npz", make_arrays()
    np.savez(path, **arrays)
    inspection = read_inspection(path)
    assert [layer.name for layer in inspection.layers] == ["main.0", "main.4", "main.8"]
    np.testing.assert_array_equal(inspection.samples, arrays["samples"])
    np.testing.assert_array_equal(inspection.layers[1].filters, arrays["filters/main.4"])
    assert inspection.layers[2].features.shape == (3, 3, 7, 7)


def _broken(tmp_path, arrays):
    path = tmp_path / "run.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sample_labels", np.zeros(3), "shape (12,) in the array 'sample_labels'"),
        ("samples", np.zeros((12, 28)), "got float64 (12, 28)"),
        ("samples", np.zeros((0, 28, 28)), "got float64 (0, 28, 28)"),
        ("samples", np.zeros((12, 4, 28, 28)), "shape (None, 3, None, None) in the array 'samples'"),
        ("filter_scales/main.4", np.ones(2), "shape (3,) in the array 'filter_scales/main.4'"),
        ("features/main.4", np.ones((3, 1, 7, 7)), "shape (3, 3, None, None)"),
        ("feature_inputs", np.array([["a"]]), "'feature_inputs.npy' holds <U1 (1, 1), not numbers"),
        ("feature_inputs", np.ones((3, 8, 8)), "expected whole numbers in the array 'feature_inputs'"),
        ("feature_inputs", np.ones((3, 8, 513), np.uint8), "pictures of at most 512 pixels in the array"),
        ("features/main.4", np.ones((3, 3, 0, 7)), "shape (3, 3, None, None)"),
        ("feature_factors", np.array([0.25, 0, 1]), "finite positive numbers in the array 'feature_factors'"),
        ("filter_scales/main.4", np.array([1, 2, np.nan]), "finite positive numbers in the array"),
    ],
)
def test_wrong_shapes(tmp_path, make_arrays, name, value, message):
    with pytest.raises(RecordError, match=re.escape(message)):
        read_inspection(_broken(tmp_path, {**make_arrays(), name: value}))


def test_missing_array(tmp_path, make_arrays):
    arrays = make_arrays()
    del arrays["features/main.8"]
    with pytest.raises(RecordError, match=r"expected the array 'features/main.8' among the pictures"):
        read_inspection(_broken(tmp_path, arrays))


def test_pickles_are_refused(tmp_path, make_arrays):
    arrays = {**make_arrays(), "extra": np.array([{}], dtype=object)}
    with pytest.raises(RecordError, match=r"'extra.npy' holds object \(1,\), not numbers"):
        read_inspection(_broken(tmp_path, arrays))


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(RecordError, match=r"expected the pictures of a run in .*: .*No such file"):
        read_inspection(tmp_path / "absent.npz")
    (tmp_path / "run.npz").write_bytes(b"PK not a zip")
    with pytest.raises(RecordError, match="not a zip file"):
        read_inspection(tmp_path / "run.npz")


def test_a_header_larger_than_its_data_is_refused_before_allocation(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "run.npz", "w") as archive:
        archive.writestr("samples.npy", stream.getvalue())
    with pytest.raises(RecordError, match=r"samples\.npy is shorter than its header says"):
        read_inspection(tmp_path / "run.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_without_a_bound_are_refused(tmp_path, make_arrays, method):
    """A few bytes of bzip2 unpack to gigabytes in one step."""
    np.savez(tmp_path / "plain.npz", **make_arrays())
    plain = zipfile.ZipFile(tmp_path / "plain.npz")
    with plain, zipfile.ZipFile(tmp_path / "run.npz", "w", method) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(RecordError, match=r"'samples.npy' packed by another method than deflate"):
        read_inspection(tmp_path / "run.npz")


def test_a_name_twice_and_too_many_layers_are_refused(tmp_path, make_arrays):
    np.savez(tmp_path / "run.npz", **make_arrays())
    with zipfile.ZipFile(tmp_path / "run.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("samples.npy", archive.read("samples.npy"))
    with pytest.raises(RecordError, match="two arrays of one name"):
        read_inspection(tmp_path / "run.npz")
    layers = {f"filters/{index}": np.ones((1, 1, 1, 1)) for index in range(33)}
    with pytest.raises(RecordError, match="at most 32 layers among the pictures of a run, got 36"):
        read_inspection(_broken(tmp_path, {**make_arrays(), **layers}))


def test_too_many_bytes_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "run.npz", samples=np.zeros(40 * 2**20, np.uint8))
    with pytest.raises(RecordError, match="more than 33554432"):
        read_inspection(tmp_path / "run.npz")


def test_colour_samples_and_networks_without_drawable_layers(tmp_path, make_arrays):
    arrays = {name: array for name, array in make_arrays().items() if "main." not in name}
    arrays["samples"] = np.zeros((12, 3, 20, 30), np.uint8)
    inspection = read_inspection(_broken(tmp_path, arrays))
    assert (inspection.samples.shape, inspection.layers) == ((12, 3, 20, 30), ())


def _layer(filters, scales, name="wide"):
    return {
        f"filters/{name}": np.ones((filters, scales, 1, 1)),
        f"filter_scales/{name}": np.ones(scales),
        f"features/{name}": np.ones((3, scales, 1, 1)),
    }


def test_more_tiles_than_can_be_drawn_are_refused(tmp_path, make_arrays):
    arrays = make_arrays()
    assert len(read_inspection(_broken(tmp_path, {**arrays, **_layer(64, 32)})).layers) == 4
    for filters, scales in ((65, 1), (1, 33), (256, 512)):
        message = f"at most 64 filters on 32 scales in the layer 'wide' .* got {filters} on {scales}"
        with pytest.raises(RecordError, match=message):
            read_inspection(_broken(tmp_path, {**arrays, **_layer(filters, scales)}))
    few = {name: array for name, array in arrays.items() if "main." not in name}
    whole = {**few, **_layer(61, 32, "a"), **_layer(61, 32, "b")}
    assert len(read_inspection(_broken(tmp_path, whole)).layers) == 2
    with pytest.raises(RecordError, match=r"at most 4096 filters and features among .*, got 4128"):
        read_inspection(_broken(tmp_path, {**few, **_layer(61, 32, "a"), **_layer(62, 32, "b")}))


def test_a_file_is_measured_before_it_is_opened(tmp_path, make_arrays):
    path = _broken(tmp_path, make_arrays())
    with path.open("r+b") as file:
        file.truncate(2**25 + 1)
    with pytest.raises(RecordError, match="a file of 33554433 bytes, more than 33554432"):
        read_inspection(path)


def test_long_lists_of_arrays_are_refused(tmp_path, make_arrays):
    more = {f"more/{index}": np.ones(1) for index in range(257 - len(make_arrays()))}
    with pytest.raises(RecordError, match="257 arrays, more than 256"):
        read_inspection(_broken(tmp_path, {**make_arrays(), **more}))
    more.popitem()
    read_inspection(_broken(tmp_path, {**make_arrays(), **more}))
    with zipfile.ZipFile(tmp_path / "run.npz", "w") as archive:
        for index in range(71):
            archive.writestr(f"{index:060000}", b"")
    with pytest.raises(RecordError, match="an index of 4263266 bytes, more than 4194304"):
        read_inspection(tmp_path / "run.npz")
