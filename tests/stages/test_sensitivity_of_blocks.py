"""With few pictures, a search starts from what dropping each block and removing channels of each group costs, in one unit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.analysed import builder_with_blocks
from torch import Tensor, nn

from pipeline.core.progress import Notices, NullCallback
from pipeline.core.run import open_run
from pipeline.data.images import Splits
from pipeline.data.preprocessing import Preprocessing
from pipeline.search.sensitivity import probing_plans
from pipeline.stages.block_losses import with_block_losses
from pipeline.stages.context import Provenance, RunContext
from pipeline.stages.initial_weights import cut_from_dense
from pipeline.stages.search_space import search_space
from pipeline.stages.sensitivity import output_difference, output_distance, sensitivity_path
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification


class TwoHeads(nn.Module):
    """Returns x times `scale`, and a sum of x."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale * x, x.sum(1)


def test_the_difference_is_the_mean_over_the_outputs_of_their_shares_of_the_variance() -> None:
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    dense = [TwoHeads(1.0)(part) for part in x.split(16)]
    values = x.numpy().astype(np.float64)
    share = np.square(0.5 * values).mean() / np.square(values - values.mean(0)).mean()

    assert output_difference(TwoHeads(1.0), dense, x.split(16)) == 0
    assert output_difference(TwoHeads(0.5), dense, x.split(16)) == pytest.approx(share / 2)
    assert output_distance(TwoHeads(1.0), dense, x.split(16)) == 0 < output_distance(TwoHeads(0.5), dense, x.split(16))


def test_the_journal_has_the_losses_of_blocks_among_the_distances_of_groups_and_a_resumed_run_reads_them(tmp_path: Path) -> None:
    builder = builder_with_blocks("resnet")
    pictures = torch.randn(32, *builder.example.shape[1:], generator=torch.Generator().manual_seed(0))
    parts = torch.arange(24), torch.arange(24, 28), torch.arange(28, 32)
    splits = Splits.of(lambda chosen: pictures[chosen], torch.arange(32) % 4, parts, Preprocessing(), "abcd", "random")
    task, paths = Classification(splits, FinetuneSettings(), 0), []
    for _ in range(2):
        with open_run(tmp_path / "run", {"seed": 0}) as run:
            context = RunContext(run, builder, task, None, (), NullCallback(), Notices(NullCallback()), Provenance((), {}, ""))  # type: ignore[arg-type]
            weights = cut_from_dense(context)
            space = with_block_losses(weights, search_space(builder, 1))
            paths.append(sensitivity_path(context, space, weights))
            kept = run.facts("sensitivity")
    plans = [plan for each in probing_plans(space).values() for plan in each]
    assert kept is not None
    distances = dict(zip(plans, kept["distances"], strict=True))
    blocks = [choice for choice in space.choices if choice.is_block]

    assert [distances[probing_plans(space)[block.name][0]] for block in blocks] == [pytest.approx(block.loss, abs=1e-6) for block in blocks]  # fmt: skip
    assert all(distances[plan] > 0 for plan in plans)
    assert [path(0.5) for path in paths if path] == [paths[0](0.5)] * 2  # type: ignore[misc]
