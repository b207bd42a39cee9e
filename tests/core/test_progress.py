"""The progress of steps that go through images."""

import torch

from pipeline.core.progress import begin_step, count_images
from pipeline.training.own_task import OwnTask


def test_images_are_counted_after_they_were_used_and_named_by_their_step() -> None:
    """five images in batches of two: what is done when a batch begins was done before it"""
    reported: list[tuple[int, int, str]] = []
    batches = [(torch.zeros(n, 1), torch.zeros(n)) for n in (2, 2, 1)]
    step = begin_step(lambda *each: reported.append(each), "testing")
    done_before = [reported[-1][0] for _ in count_images(batches, 5, "scoring", step)]

    assert done_before == [0, 2, 4]
    assert reported == [
        (0, 0, "testing"),
        (0, 5, "testing: scoring"),
        (2, 5, "testing: scoring, image 2 of 5"),
        (4, 5, "testing: scoring, image 4 of 5"),
        (5, 5, "testing: scoring, image 5 of 5"),
    ]


def test_the_statistics_of_the_dense_network_count_their_images() -> None:
    reported: list[int] = []
    task = OwnTask(torch.zeros(300, 1, 1, 1), evaluate=lambda module: 0.0, train=lambda module: module)
    for _ in task.calibration(lambda done, total, text: reported.append(done)):
        pass

    assert reported == [0, 256, 300]
