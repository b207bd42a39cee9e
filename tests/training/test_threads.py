"""Cores: a searcher's answers do not hang on how many there are."""

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from pipeline.training.threads import compute_threads


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def computed() -> bytes:
    """What the agents' model computes: factors and inverses of matrices a hundred wide."""
    drawn = np.random.default_rng(0).standard_normal((150, 150))
    factor = np.linalg.cholesky(drawn @ drawn.T + np.eye(150))
    return bytes((np.linalg.inv(factor) @ drawn).tobytes())


def test_torch_and_numpy_compute_with_as_many_threads_as_asked_and_then_as_before() -> None:
    before = torch.get_num_threads(), blas_threads()
    with compute_threads(1):
        assert (torch.get_num_threads(), blas_threads()) == (1, {1})
    assert (torch.get_num_threads(), blas_threads()) == before


def test_what_is_computed_with_one_thread_is_the_same_wherever() -> None:
    found = set()
    for cores in (1, 2):
        with threadpool_limits(cores, "blas"), compute_threads(1):
            found.add(computed())

    assert len(found) == 1
