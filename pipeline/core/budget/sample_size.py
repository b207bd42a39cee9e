"""Sample size: says before the search whether the test images can show that the accuracy budget is met."""

from collections.abc import Iterable

from pipeline.core.budget.constraint import Constraint
from pipeline.core.paired_difference import apart_on, images_to_show_agreement, images_to_show_no_drop, newcombe, no_drop

__all__ = ["sample_size_notices"]

LEAST_ERROR = 0.005
"""Smallest error rate that is assumed for the dense network; a few hundred validation images cannot show a smaller one."""


def sample_size_notices(
    constraints: Iterable[Constraint],
    *,
    images: int | None,
    tests_each_image: bool,
    dense_accuracy: float | None,
    agreement: bool = False,
) -> tuple[str, ...]:
    """Return a sentence where the accuracy drop will probably stay undecided or will have no interval; else nothing.

    `images`: number of test images. `dense_accuracy`: accuracy of the dense network, in percent. Each is None when not known. The
    networks are assumed to differ, with one right and one wrong, on half as many images as the dense network gets wrong. With
    `agreement`, the dense network's answers are the labels, so it is always right. Then the networks are assumed to differ on
    half as many images as the budget allows.
    """
    limits = [constraint.limit for constraint in constraints if constraint.metric.key == "accuracy_drop"]
    if not limits:
        return ()
    limit = min(limits)
    if not tests_each_image:
        return (
            "the task gives no value per test image, so the accuracy drop has no interval and the verdict uses its value alone",
        )
    if images is None or dense_accuracy is None:
        return ()
    if agreement:
        apart = min(limit, 100) / 200
        reach, needed = newcombe(apart_on(images, apart)).high, images_to_show_agreement(limit, apart)
        network = f"a network that answers {100 * apart:g} % of all images differently"
        remedy, assumed = f"about {needed:,} are needed for it" if needed else "no number of images can show that it is met", ""
    else:
        error = max(1 - dense_accuracy / 100, LEAST_ERROR)
        apart = error / 2
        reach, needed = newcombe(no_drop(images, apart, error)).high, images_to_show_no_drop(limit, apart, error)
        network = "a network without any drop"
        remedy = f"about {needed:,} are needed" if needed else "only a network better than the dense one can be shown to meet it"
        assumed = (
            f" (assumed: only one of the two networks is right on {100 * apart:.1f} % of the images, half the dense network's "
            "errors)"
        )
    if reach <= limit:
        return ()
    return (
        f"accuracy_drop <= {limit:.2f} points will probably stay undecided: with {images:,} test images, even {network} has a "
        f"95 % interval that reaches {reach:.2f} points; {remedy}{assumed}",
    )
