"""Batches: normalised as declared; for training also shuffled and augmented, by seed and epoch alone."""

import pytest
import torch

from pipeline.data.folder import memory_fetch
from pipeline.data.images import MOST_VALUES, Images, Splits, evaluation_size
from pipeline.data.preprocessing import Preprocessing


def pixels(images: Images) -> torch.Tensor:
    return torch.cat([batch for batch, _ in images.batches(5)])


def splits_of(count: int, augment: tuple[str, ...] = ()) -> Splits:
    """`count` random 16x16 colour images of two classes."""
    drawn = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), augment=augment)
    parts = torch.arange(count).split([count - 4, 2, 2])
    return Splits.of(memory_fetch(drawn), torch.arange(count) % 2, parts, preprocessing, ("a", "b"), "drawn")  # type: ignore[arg-type]


def test_batches_are_normalised_as_declared_and_in_order() -> None:
    train = splits_of(14).train
    batches = list(train.batches(4))
    raw = train.fetch(train.indices).double() / 255
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)

    assert [len(images) for images, _ in batches] == [4, 4, 2]
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), ((raw - mean) / std).float())
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1] * 5


@pytest.mark.parametrize("augment", [(), ("crop",), ("flip",), ("crop", "flip")])
def test_training_batches_are_the_same_for_a_seed_and_an_epoch_and_no_others(augment: tuple[str, ...]) -> None:
    train = splits_of(68, augment).train

    def epoch(seed: int, number: int) -> torch.Tensor:
        return torch.cat([images for images, _ in train.training_batches(16, seed, number)])

    assert torch.equal(epoch(3, 5), epoch(3, 5))
    assert not torch.equal(epoch(3, 5), epoch(3, 6))
    assert not torch.equal(epoch(3, 5), epoch(4, 5))


def test_only_training_batches_are_augmented() -> None:
    """Without augmentation a training epoch holds exactly the images of the split; with it, others."""
    plain, moved = splits_of(68), splits_of(68, ("crop", "flip"))

    def total(splits: Splits) -> torch.Tensor:
        return torch.cat([images for images, _ in splits.train.training_batches(16, 0, 0)]).sum((1, 2, 3)).sort().values

    assert torch.equal(pixels(plain.train), pixels(moved.train))
    torch.testing.assert_close(total(plain), pixels(plain.train).sum((1, 2, 3)).sort().values)
    assert not torch.allclose(total(moved), total(plain))


def test_flipping_mirrors_left_to_right() -> None:
    train = splits_of(68, ("flip",)).train
    images = next(train.training_batches(64, 0, 0))[0]
    known = {image.numpy().tobytes(): "as it was" for image in pixels(train)}
    known |= {image.flip(2).contiguous().numpy().tobytes(): "mirrored" for image in pixels(train)}
    kinds = [known[image.numpy().tobytes()] for image in images]

    assert 16 < kinds.count("mirrored") < 48


def test_cropping_shifts_by_up_to_an_eighth_and_fills_with_black() -> None:
    """A single bright pixel in the middle of 16x16 lands at most 2 pixels away, in all directions."""
    dot = torch.zeros(200, 1, 16, 16, dtype=torch.uint8)
    dot[:, :, 8, 8] = 255
    images = Images(memory_fetch(dot), torch.zeros(200), torch.arange(200), Preprocessing(augment=("crop",)))
    moved = next(images.training_batches(200, 0, 0))[0]
    seen = {(row - 8, column - 8) for _, _, row, column in moved.nonzero().tolist()}

    assert seen == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}
    assert moved.sum() == 200


def test_a_last_training_batch_of_one_is_left_out() -> None:
    """BatchNorm cannot learn from a single image."""
    assert [len(images) for images, _ in splits_of(4 + 9).train.training_batches(4, 0, 0)] == [4, 4]


def test_a_sample_is_drawn_without_replacement_and_the_same_for_a_seed() -> None:
    train = splits_of(68).train
    one, same, other = (train.sample(10, seed).indices.tolist() for seed in (1, 1, 2))

    assert one == same != other
    assert len(set(one)) == 10


@pytest.mark.parametrize(("side", "size"), [(8, 256), (64, 256), (224, 27), (1100, 4)])
def test_a_batch_for_evaluation_holds_fewer_images_where_they_are_large(side: int, size: int) -> None:
    large = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    images = Images(lambda chosen: large.expand(len(chosen), -1, -1, -1), torch.zeros(600), torch.arange(600), Preprocessing())
    first, _ = next(images.subset(torch.arange(4)).batches())

    assert images.evaluation_size == size
    assert len(first) == 4
    assert images.evaluation_size * large.numel() <= MOST_VALUES or size == 4


def test_no_image_is_lost_between_batches_for_evaluation() -> None:
    images = splits_of(600).train

    assert [len(batch) for batch, _ in images.batches()] == [256, 256, 84]
    assert evaluation_size(0) == 256
