"""Sizes of objects from masks and boxes, and the range they span."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equiscale.choose import factor_range, read_object_sizes
from equiscale.errors import DataError, SettingError


def write_mask(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask).save(path)


def boxes(*annotations: dict) -> str:
    images = [{"id": 7, "width": 200, "height": 100}, {"id": 8, "width": 50, "height": 80}]
    return json.dumps({"images": images, "annotations": list(annotations), "categories": []})


def test_each_value_of_a_mask_is_an_object_and_its_size_is_that_of_its_box(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[3:7, 10:19] = 1  # 4 × 9
    mask[20:30, 20:30] = 5
    mask[25, 25] = 0  # a hole
    write_mask(tmp_path / "mask.png", mask)
    assert read_object_sizes(tmp_path) == pytest.approx([6 / 40, 10 / 40])


def test_many_objects_have_the_boxes_that_a_search_for_each_finds(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 40, (13, 9)).astype(np.uint8)
    write_mask(tmp_path / "mask.png", mask)
    expected = []
    for label in range(1, 40):
        rows, columns = np.nonzero(mask == label)
        if len(rows):
            expected.append(math.sqrt((np.ptp(rows) + 1) * (np.ptp(columns) + 1)) / 9)
    assert len(expected) > 30
    assert read_object_sizes(tmp_path) == pytest.approx(expected)


def test_colours_of_a_mask_are_objects_and_opacity_is_none(tmp_path: Path) -> None:
    mask = np.zeros((20, 20, 4), np.uint8)
    mask[..., 3] = 255
    mask[2:4, 2:4, 0] = 200
    mask[10:18, 10:18, 1] = 200
    write_mask(tmp_path / "mask.png", mask)
    assert sorted(read_object_sizes(tmp_path)) == pytest.approx([2 / 20, 8 / 20])
    write_mask(tmp_path / "mask.png", mask[..., :3])
    assert sorted(read_object_sizes(tmp_path)) == pytest.approx([2 / 20, 8 / 20])


def test_boxes_are_measured_against_the_shorter_side_of_their_own_image(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "boxes.json").write_text(
        boxes(
            {"image_id": 7, "bbox": [1, 2, 40, 10]},
            {"image_id": 8, "bbox": [0, 0, 25, 25]},
            {"image_id": 8, "bbox": [0, 0, 50, 50], "iscrowd": 1},
            {"image_id": 8, "bbox": [0, 0, 0, 50]},
        )
    )
    assert read_object_sizes(tmp_path) == pytest.approx([20 / 100, 25 / 50])


def test_a_missing_folder_and_one_without_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder of masks \(\.png\) or boxes"):
        read_object_sizes(tmp_path / "none")
    with pytest.raises(DataError, match=r"of objects in .*, got none"):
        read_object_sizes(tmp_path)
    write_mask(tmp_path / "empty.png", np.zeros((20, 20), np.uint8))
    with pytest.raises(DataError, match="got none"):
        read_object_sizes(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["no json", "[]", '{"images": []}', boxes({"image_id": 9, "bbox": [0, 0, 1, 1]}), boxes({"image_id": 7})],
)
def test_other_json_is_refused_with_its_file_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(DataError, match=r"expected COCO's 'images'.*boxes\.json, got something else"):
        read_object_sizes(tmp_path)


def test_a_damaged_mask_is_refused_with_its_file_name(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(DataError, match=r"expected a mask in .*broken\.png"):
        read_object_sizes(tmp_path)


def test_the_range_is_the_middle_of_the_sizes_against_their_median() -> None:
    sizes = [2.0 ** (i / 100) for i in range(101)]
    low, high = factor_range(sizes)
    assert low == pytest.approx(2**-0.45)
    assert high == pytest.approx(2**0.45)
    assert factor_range([1000 * size for size in sizes]) == pytest.approx((low, high))
    wild = [*sizes, 1e-9, 1e9]
    assert factor_range(wild)[1] / factor_range(wild)[0] < 2.1


@pytest.mark.parametrize("sizes", [[], [1.0], [1.0, 0.0], [1.0, math.nan]])
def test_too_few_sizes_and_senseless_ones_are_refused(sizes: list[float]) -> None:
    with pytest.raises(SettingError, match="expected at least two sizes of objects, finite and positive"):
        factor_range(sizes)
