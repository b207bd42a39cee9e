"""Which peak learning rate suits the fine-tuning of a cut network? Run: python benchmarks/learning_rates.py --help

The plan of a finished run is cut again from the dense network, with the least-squares reconstruction of that run, and fine-tuned
once at every rate. Images and their order are the same. Validation accuracy is measured after each epoch; test images are not
used. A rate that is in the file of results is not run again.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import click

from pipeline.core.artifact import read_artifact
from pipeline.core.profile import load_profile
from pipeline.graph.reconstruct import start_reconstruction
from pipeline.graph.shrink import shrink
from pipeline.stages.job import Job
from pipeline.stages.prepare import load_model_and_task, start_building
from pipeline.stages.shared_device import share_device
from pipeline.system.files import write_atomically
from pipeline.training.finetune import Tracking, TrainingData, finetune
from pipeline.training.learning_rates import RATES
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--target", default="raspberrypi", show_default=True)
@click.option("--model", required=True)
@click.option("--weights", type=click.Path(path_type=Path))
@click.option("--data", required=True)
@click.option("--rate", "rates", type=float, multiple=True, default=RATES, show_default=True)
@click.option("--epochs", default=1, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the order of the images.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/learning_rates.jsonl"), show_default=True)
def main(
    run: Path,
    target: str,
    model: str,
    weights: Path | None,
    data: str,
    rates: tuple[float, ...],
    epochs: int,
    seed: int,
    out: Path,
) -> None:
    """Fine-tune the plan in the folder RUN, which had no supernet, at every rate."""
    if (run / "supernet.safetensors").is_file():
        raise click.ClickException(f"{run}: fine-tuned from a supernet, not from a compensated cut; choose another run")
    job = Job(target=target, model=model, weights=weights, data=data, finetuning=FinetuneSettings(epochs=epochs))
    profile = load_profile(target)
    loaded = load_model_and_task(job, profile)
    task = loaded.task
    if not isinstance(task, Classification):
        raise click.ClickException(f"{data}: there are no labelled images to fine-tune on")
    with tempfile.TemporaryDirectory() as scratch, share_device(profile, print) as device:
        builder = start_building(job, loaded, Path(scratch) / "dense.onnx", device)
    kept = builder.kept(read_artifact(run / "artifact").shipped.plan)
    student = shrink(builder.module, builder.space, kept).eval()
    start_reconstruction(builder.module, builder.space, (pixels for pixels, _ in task.calibration())).apply(student, kept)

    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    for rate in rates:
        key = {"run": run.name, "epochs": epochs, "seed": seed, "learning_rate": rate}
        found = next((line for line in lines if line.items() >= key.items()), None)
        if found is None:
            checkpoint = out.parent / f"learning-rate-{rate:g}.safetensors"  # a checkpoint of another plan is not resumed
            settings = replace(job.finetuning, learning_rate=rate)
            images = task.splits
            tuned = finetune(
                student, loaded.module, TrainingData(images.train, images.validation), settings, seed, Tracking(checkpoint)
            )
            checkpoint.unlink()
            found = {**key, "validation": [round(score, 2) for score in tuned.accuracies]}
            lines.append(found)
            write_atomically(out, "".join(json.dumps(line) + "\n" for line in lines).encode())
        print(f"{rate:g}: {max(found['validation']):.2f} % after {epochs} epochs", flush=True)


if __name__ == "__main__":
    main()
