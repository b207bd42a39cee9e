"""The small families are what they say: quick, small, and free of state between calls."""

import pytest
import torch
from helpers.families import FAMILIES, LIMIT_PARAMETERS


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_each_image_of_a_batch_as_it_answers_it_alone(name: str) -> None:
    module, example = FAMILIES[name]()
    other = torch.randn(example.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        alone = torch.cat([module(example), module(other)])
        together = module(torch.cat([example, other]))

    assert len(example) == 1
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert float((alone[0] - alone[1]).abs().max()) > 1e-3  # the answer depends on the input


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_small_and_made_the_same_each_time(name: str) -> None:
    (module, example), (again, same) = FAMILIES[name](), FAMILIES[name]()

    assert sum(value.numel() for value in module.parameters()) < LIMIT_PARAMETERS
    assert torch.equal(example, same)
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), again.state_dict().values(), strict=True))
