"""Intervals: the mean of paired differences, with its 95 % interval."""

import math
from collections.abc import Sequence

import numpy as np

from pipeline.core.statistics import student

__all__ = ["mean_difference"]


def mean_difference(differences: Sequence[float], digits: int = 2) -> str:
    """'+1.20 ± 0.40', by Student's t. A single difference has no interval.

    >>> mean_difference([1.0, 2.0, 3.0])
    '+2.00 ± 2.48'
    """
    count = len(differences)
    if count < 2:
        return f"{np.mean(differences):+.{digits}f}"
    reach = student(count - 1) * float(np.std(differences, ddof=1)) / math.sqrt(count)
    return f"{np.mean(differences):+.{digits}f} ± {reach:.{digits}f}"
