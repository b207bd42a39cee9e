"""Unions: labels that must be removed together, kept in a union-find structure."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIXED", "Labels", "Unions"]

Labels = NDArray[np.int64]
"""An array of labels. A label stands for one position of one axis of one initializer, or for a position that has no weights."""

FIXED = 0
"""The label of a position that is never removed and that no initializer owns, for example a colour of the input image."""


class Unions:
    """Disjoint sets of labels. A set can be frozen: its positions are never removed, for a reason in words.

    >>> unions = Unions()
    >>> a, b = unions.new(2), unions.new(2)
    >>> unions.unite(a, b)
    >>> unions.find(b).tolist() == unions.find(a).tolist()
    True
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1024, dtype=np.int64)
        self._count = 1
        self.fixed_reason = "its channels meet a tensor that keeps its width"
        """Why a set that meets FIXED is frozen, unless `unite` is given a reason."""
        self._reasons: dict[int, str] = {FIXED: self.fixed_reason}

    def new(self, count: int) -> Labels:
        """Return `count` new labels, each in a set of its own."""
        while self._count + count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        labels = np.arange(self._count, self._count + count)
        self._parent[labels] = labels
        self._count += count
        return labels

    def find(self, labels: Labels) -> Labels:
        """Return the label that represents the set of each of `labels`, in the same shape."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[labels] = roots
        return roots

    def unite(self, one: Labels, other: Labels, reason: str | None = None) -> None:
        """Unite the sets of labels at equal positions. The arrays are broadcast to each other. A set that meets FIXED is frozen.

        `reason` is the reason for freezing. The default is the one of the set that is frozen already.
        """
        one, other = self.find(np.asarray(one)), self.find(np.asarray(other))
        both = np.stack([part.ravel() for part in np.broadcast_arrays(one, other)], axis=1)
        both = both[both[:, 0] != both[:, 1]]
        for pair in np.unique(both, axis=0).tolist():
            low, high = sorted(self._root(label) for label in pair)
            if low == high:
                continue
            if low == FIXED:
                self._reasons.setdefault(high, reason or self.fixed_reason)
                continue
            self._parent[high] = low
            if high in self._reasons:
                self._reasons.setdefault(low, self._reasons.pop(high))

    def freeze(self, labels: Labels, reason: str) -> None:
        """Freeze the sets of `labels`."""
        for root in np.unique(self.find(np.asarray(labels))).tolist():
            self._reasons.setdefault(root, reason)

    def reason(self, label: int) -> str | None:
        """Why the set of `label` is frozen; None when it is not."""
        return self._reasons.get(self._root(label))

    def frozen(self, labels: Labels) -> NDArray[np.bool_]:
        """Whether the set of each of `labels` is frozen."""
        return np.isin(self.find(labels), np.fromiter(self._reasons, dtype=np.int64))

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            label = int(self._parent[label])
        return label
