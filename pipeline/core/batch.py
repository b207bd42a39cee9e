"""Batch: the inputs of a network with several inputs, for some samples. It is cut and split like a tensor."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.feeds import Arrays

__all__ = ["Batch", "Inputs", "Outputs", "arrays_in", "joined", "on_processor", "outputs_of", "tensors_of"]


@dataclass(frozen=True)
class Batch:
    """One tensor per input, in the order of the network's inputs. The first axis of each is the sample.

    >>> batch = Batch((torch.zeros(4, 3, 8, 8), torch.tensor([1, 2, 3, 4])))
    >>> len(batch), [tuple(tensor.shape) for tensor in batch[:1].tensors]
    (4, [(1, 3, 8, 8), (1,)])
    """

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, chosen: slice | Tensor) -> "Batch":
        return Batch(tuple(tensor[chosen] for tensor in self.tensors))

    def split(self, size: int) -> tuple["Batch", ...]:
        """Return parts of `size` samples. The last one may have fewer."""
        return tuple(Batch(parts) for parts in zip(*(tensor.split(size) for tensor in self.tensors), strict=True))

    def numel(self) -> int:
        """Return the number of values of all inputs."""
        return sum(tensor.numel() for tensor in self.tensors)

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> "Batch":
        """Return the same values in this memory format. It changes images only, which have four axes."""
        return Batch(
            tuple(
                tensor.contiguous(memory_format=memory_format) if tensor.dim() == 4 else tensor.contiguous()
                for tensor in self.tensors
            )
        )

    def to(self, device: torch.device | str, memory_format: torch.memory_format = torch.preserve_format) -> "Batch":
        """Return the same values on `device`. The memory format changes images only."""
        return Batch(
            tuple(
                tensor.to(device, memory_format=memory_format) if tensor.dim() == 4 else tensor.to(device)
                for tensor in self.tensors
            )
        )


Inputs = Tensor | Batch
"""What a network gets: a tensor, (N, C, H, W), or a `Batch` if it has several inputs."""


Outputs = Tensor | tuple[Tensor, ...]
"""What a network returns: a tensor, (N, ...), or a tuple if it has several outputs."""


def tensors_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return one tensor per input."""
    return inputs.tensors if isinstance(inputs, Batch) else (inputs,)


def arrays_in(values: Inputs | Outputs) -> Arrays:
    """Return inputs or outputs as arrays, one per input or output."""
    tensors = values if isinstance(values, tuple) else tensors_of(values)
    return tuple(tensor.detach().cpu().numpy() for tensor in tensors)


def joined(parts: Iterable[Inputs]) -> Inputs:
    """Return `parts`, at least one, as one batch."""
    found = list(parts)
    if not isinstance(found[0], Batch):
        return torch.cat([tensor for part in found for tensor in tensors_of(part)])
    return Batch(tuple(torch.cat(tensors) for tensors in zip(*(tensors_of(part) for part in found), strict=True)))


def on_processor(outputs: Outputs) -> Outputs:
    """Return `outputs` in the memory of the processor."""
    return outputs.cpu() if isinstance(outputs, Tensor) else tuple(each.cpu() for each in outputs)


def outputs_of(answer: object) -> tuple[Tensor, ...]:
    """Return the outputs of a network that gives a tensor or a tuple of tensors. Raises TypeError for anything else."""
    if isinstance(answer, Tensor):
        return (answer,)
    if isinstance(answer, tuple) and answer and all(isinstance(each, Tensor) for each in answer):
        return answer
    raise TypeError(f"the network returns a {type(answer).__name__} in place of tensors")
