from collections.abc import Callable

import pytest
import torch

from equiscale.data import TensorBatches, random_rescale
from equiscale.data.augment import apply_crop_flip_cutout, crop_flip_cutout, draw_crop_flip_cutout
from equiscale.data.transforms import BatchTransform, draw_factors, rescale_as_pillow
from equiscale.errors import SettingError, ShapeError

IMAGES = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).expand(10, 1, 4, 4)
LABELS = torch.arange(10)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 2]), (5, [5, 5]), (100, [10])])
def test_one_epoch_is_every_image_once_with_its_label(batch_size: int, sizes: list[int]) -> None:
    batches = TensorBatches(IMAGES, LABELS, batch_size=batch_size)
    pairs = list(batches.epoch())
    assert len(batches) == len(pairs)
    assert [len(images) for images, _ in pairs] == sizes
    assert torch.cat([labels for _, labels in pairs]).tolist() == list(range(10))


def test_shuffled_epochs_keep_images_and_labels_together() -> None:
    batches = TensorBatches(IMAGES, LABELS, batch_size=4, shuffle=True)
    generator = seeded(0)
    epochs = []
    for _ in range(2):
        pairs = list(batches.epoch(generator))
        for images, labels in pairs:
            assert images[:, 0, 0, 0].tolist() == labels.tolist()
        epochs.append(torch.cat([labels for _, labels in pairs]).tolist())
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1] != list(range(10))


def test_an_epoch_is_the_same_for_a_seed_and_leaves_the_global_generator_alone() -> None:
    def augment(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        assert generator is not None
        return random_rescale(images, generator=generator)

    batches = TensorBatches(IMAGES, LABELS, batch_size=3, transform=augment, shuffle=True)
    state = torch.get_rng_state()
    first, second, other = (
        torch.cat([images for images, _ in batches.epoch(seeded(seed))]) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_transform_sees_whole_batches() -> None:
    seen = []

    def remember(images: torch.Tensor, _: torch.Generator | None) -> torch.Tensor:
        seen.append(tuple(images.shape))
        return images.float()

    pairs = list(TensorBatches(IMAGES, LABELS, batch_size=6, transform=remember).epoch())
    assert seen == [(6, 1, 4, 4), (4, 1, 4, 4)]
    assert pairs[0][0].dtype == torch.float32


def test_refuses_what_cannot_be_batched() -> None:
    with pytest.raises(ShapeError, match="expected one label for each image, got 10 images and 9 labels"):
        TensorBatches(IMAGES, LABELS[:9], batch_size=2)
    with pytest.raises(SettingError, match="expected a positive batch size, got 0"):
        TensorBatches(IMAGES, LABELS, batch_size=0)
    with pytest.raises(SettingError, match="images and labels on one device, got cpu and meta"):
        TensorBatches(IMAGES, LABELS.to("meta"), batch_size=2)
    with pytest.raises(
        SettingError, match=r"generator of the CPU for a shuffled epoch, got None; give torch"
    ):
        TensorBatches(IMAGES, LABELS, batch_size=2, shuffle=True).epoch()


def thirds(rank: int) -> Callable[[int], torch.Tensor]:
    return lambda count: torch.arange(count).tensor_split(3)[rank]


PHOTOGRAPHS = torch.randint(256, (11, 3, 8, 8), dtype=torch.uint8, generator=seeded(4))
CUT = {"pad": 2, "crop": 8, "cutout": 3, "mean": 0.5, "std": (0.2, 0.3, 0.4)}


def cropped(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    assert generator is not None
    return crop_flip_cutout(images, generator=generator, **CUT)


CROPPED = BatchTransform(
    lambda images, drawn: apply_crop_flip_cutout(images, drawn, **CUT),
    lambda shape, generator: draw_crop_flip_cutout(shape, pad=2, crop=8, generator=generator),
)
RESCALED = BatchTransform(
    rescale_as_pillow,
    lambda shape, generator: draw_factors(shape[0], low=0.5, high=2.0, generator=generator),
)


@pytest.mark.parametrize(
    ("shared", "whole"),
    [
        (CROPPED, cropped),
        (RESCALED, lambda images, generator: random_rescale(images, generator=generator)),
        (cropped, cropped),
        (BatchTransform(lambda images, _: images / 2), lambda images, _: images / 2),
        (None, None),
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_shares_of_batches_are_the_batches_bit_for_bit(shared, whole, shuffle: bool) -> None:
    options = {"batch_size": 4, "shuffle": shuffle}
    labels = torch.arange(len(PHOTOGRAPHS))
    expected = TensorBatches(PHOTOGRAPHS, labels, transform=whole, **options)
    batches = TensorBatches(PHOTOGRAPHS, labels, transform=shared, **options)
    once = list(batches.epoch(seeded(1)))
    parts = [list(batches.epoch(seeded(1), share=thirds(rank))) for rank in range(3)]
    for index, (images, classes) in enumerate(expected.epoch(seeded(1))):
        assert torch.equal(once[index][0], images)
        assert torch.equal(torch.cat([part[index][0] for part in parts]), images)
        assert all(torch.equal(part[index][1], classes) for part in parts)
    assert [len(images) for images, _ in parts[2]] == [1, 1, 1]


def test_only_the_images_of_a_share_are_transformed_where_drawing_is_a_step_of_its_own() -> None:
    seen = []

    def apply(images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        seen.append((len(images), drawn.tolist()))
        return images

    def draw(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        assert tuple(shape) == (5, 1, 4, 4)
        return torch.arange(shape[0])

    batches = TensorBatches(IMAGES, LABELS, batch_size=5, transform=BatchTransform(apply, draw))
    list(batches.epoch(seeded(0), share=thirds(1)))
    assert seen == [(2, [2, 3]), (2, [2, 3])]


def test_says_how_large_its_batches_are_and_what_a_transform_lacks() -> None:
    batches = TensorBatches(IMAGES, LABELS, batch_size=4, transform=RESCALED)
    assert batches.sizes == [4, 4, 2]
    with pytest.raises(SettingError, match="expected a generator for the augmentation, got None"):
        next(batches.epoch())
