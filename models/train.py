"""Train a network of this folder (or any other) with the pipeline's own schedule, and keep its weights.

python models/train.py --model digits --data digits --epochs 60 --out models/digits.safetensors
python models/train.py --model resnet20 --weights w.safetensors --data ./images --learning-rate 0.02 --out resnet20.safetensors
"""

import json
from pathlib import Path

import click
import safetensors.torch
import torch

from pipeline.errors import CompressError
from pipeline.system.files import write_atomically
from pipeline.training.finetune import Tracking, TrainingData, finetune
from pipeline.training.load import find_model, load_data, load_model, settle_normalisation
from pipeline.training.scoring import accuracy
from pipeline.training.settings import FinetuneSettings


@click.command()
@click.option("--model", required=True, help="A name in models/, torchvision:<name>, or file.py:factory.")
@click.option("--data", required=True, help="A folder of images, digits, torchvision:<name>, or file.py:factory.")
@click.option("--weights", type=click.Path(path_type=Path), help="Continue from these; otherwise start from scratch.")
@click.option("--epochs", default=60, show_default=True)
@click.option("--learning-rate", default=0.1, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--half", is_flag=True, help="Store the weights as float16.")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(
    model: str,
    data: str,
    weights: Path | None,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    half: bool,
    out: Path,
) -> None:
    """Train, choose the epoch on validation images, report the test accuracy once."""
    torch.manual_seed(seed)
    try:
        source = find_model(model)
        splits = load_data(data, source.preprocessing, seed)
        classes = len(splits.classes)
        network = load_model(source, weights, classes) if weights else source.factory(num_classes=classes)
        splits = settle_normalisation(network, splits)
        settings = FinetuneSettings(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, distillation=0.0)
        checkpoint = out.with_suffix(".training")

        def progress(done: int, total: int, text: str) -> None:
            if done % max(1, total // epochs) == 0:
                click.echo(text)

        tuned = finetune(
            network, None, TrainingData(splits.train, splits.validation), settings, seed, Tracking(checkpoint, progress)
        )
        network, best = tuned.module, max(tuned.accuracies)
        tensors = {
            name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in network.state_dict().items()
        }
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        test = accuracy(network, splits.test)
        notes = {
            "data": splits.description,
            "test_accuracy": f"{test:.2f}",
            "validation_accuracy": f"{best:.2f}",
            "settings": json.dumps([epochs, learning_rate, batch_size, seed]),
        }
        write_atomically(out, safetensors.torch.save(tensors, metadata=notes))
        checkpoint.unlink(missing_ok=True)
    except CompressError as problem:
        raise click.ClickException(str(problem)) from None
    click.echo(f"{out}: validation {best:.2f} %, test {test:.2f} %")


if __name__ == "__main__":
    main()
