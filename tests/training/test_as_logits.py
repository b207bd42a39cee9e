"""Networks that end with softmax train like the same networks without it."""

import pytest
import torch

from pipeline.training.epochs import as_logits, distillation_loss, training_loss
from pipeline.training.settings import FinetuneSettings

LOGITS = 3 * torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_losses_of_probabilities_are_those_of_logits(dtype: torch.dtype) -> None:
    student, teacher = LOGITS
    probabilities = [each.to(dtype).softmax(1).float() for each in (student, teacher)]
    labels, settings = torch.arange(8) % 5, FinetuneSettings()
    rounding = {torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]

    torch.testing.assert_close(
        distillation_loss(*probabilities, 4.0), distillation_loss(student, teacher, 4.0), rtol=rounding, atol=rounding
    )
    torch.testing.assert_close(
        training_loss(*probabilities, labels, settings),
        training_loss(student, teacher, labels, settings),
        rtol=rounding,
        atol=rounding,
    )


def test_the_gradient_through_a_softmax_is_that_of_the_logits() -> None:
    gradients = []
    for last in (lambda logits: logits, lambda logits: logits.softmax(1)):
        student = LOGITS[0].clone().requires_grad_()
        distillation_loss(last(student), last(LOGITS[1]), 4.0).backward()
        gradients.append(student.grad)

    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "outputs",
    [LOGITS[0], LOGITS[0].abs(), torch.zeros(4, 5), torch.full((4, 5), float("nan")), torch.ones(4, 1), LOGITS[0].sigmoid()],
    ids=["logits", "positive", "zeros", "not finite", "one output", "sigmoid"],
)
def test_other_outputs_are_left_alone(outputs: torch.Tensor) -> None:
    assert as_logits(outputs) is outputs


def test_a_probability_of_zero_is_a_finite_logit() -> None:
    assert as_logits(torch.tensor([[1.0, 0.0]])).isfinite().all()
