"""The command line: what it says of itself, what it prints, and how it ends."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.places import TRAINED, without_heartbeat
from helpers.small_net import SMALL_NET

from pipeline.cli.main import compress
from pipeline.foreign_text import clean_path
from pipeline.search.searchers import SEARCHERS
from pipeline.system.bundled import shipped_folder
from pipeline.system.files import sha256_file
from pipeline.system.units import format_bytes

DRY = ("--target", "raspberrypi", "--dry-run", "--trials", "3", "--supernet", "2", *TRAINED, "--searcher", "random")

SMALL = (*DRY, "--model", SMALL_NET, "--budget", "accuracy_drop=100")

HELP = """\
Usage: compress --target PROFILE [OPTIONS]

  Compress a trained vision network to a measured budget, and prove it.

Options:
  --target PROFILE         Device profile: file or name.  [required]
  --model MODEL            FILE.onnx, a name in models/, torchvision:NAME, or
                           code: FILE.py:F or MODULE:F.  [default: digits]
  --model-arg NAME=VALUE   Factory argument: width=0.5. Repeatable.
  --shape NAME=SIZES       Input of an ONNX file: input=1x3x224x224.
  --weights FILE           A .safetensors file, or a saved state dict.
  --data DATA              A folder, FILE.npy, FILE.npz, torchvision:NAME, or
                           code: FILE.py:F or MODULE:F.  [default: digits]
  --task TASK              Code of your own task: FILE.py:F or MODULE:F.
  --unlabelled FOLDER      Images without labels.
  --budget KEY=VALUE       Limit: latency_p50=50%,25%, params=1M. Repeatable.
  --searcher NAME          docs/searchers.md  [default: ppo-lagrangian]
  --reward NAME            Reward: accuracy, accuracy-entropy, channel-
                           entropy, spatial-entropy, least-entropy.
  --trials N               Plans to measure.  [default: 60]  [x>=1]
  --supernet N             Steps of the supernet.  [default: auto]  [x>=0]
  --epochs N               Epochs of fine-tuning.  [default: auto]
  --finetune-minutes MIN   Time of --epochs auto.  [default: 10]  [x>0]
  --recover METHOD         auto, distil, mimic, blocks or none.
  --learning-rate RATE     Peak rate.  [default: tried]  [x>0]
  --batch-size N           Images per batch.  [default: auto]  [x>=2]
  --training FILE          YAML: optimizer, schedule, averaged weights.
  --importance METHOD      l1, l2, bn, taylor or reconstruction.
  --freeze GLOB            Keep these layers whole: 'layer1.*'.
  --only GLOB              Prune only these layers.
  --min-width GROUP=SHARE  Smallest widths: 'layer4.*=50%'.
  --depth [auto|off]       Drop whole blocks too.  [default: off]
  --seed N                 Random seed.  [default: 0]  [x>=0]
  --device DEVICE          Runs networks: auto, cpu, cuda or cuda:N.
  --out DIR                Run directory, also to resume.  [default: runs/]
  --calibration FILE       A file of `compress calibrate`.
  --workers N|auto         Processes that score plans.  [default: 1]
  --allow-ssh-commands     Let the profile's ssh_config run programs.
  --dry-run                Simulate all measurements.
  --quiet                  Print only the final table.
  --json                   Print JSON to stdout, all else to stderr.
  --version                Show the version and exit.
  -h, --help               Show this message and exit.

Commands:
  calibrate  Fit a predictor of a device's latency from this machine's.
  doctor     Check a device before a long run.
  inspect    Show what can be pruned in a network, and what its layers cost.
  keys       Create, list, rotate and revoke the keys that sign artifacts.
  measure    Measure latency and memory of ONNX files, and compare them.
  report     Write the page of a run again, or of several runs side by side.
  rollback   Return to the previous release.
  ship       Deploy an artifact to devices.
  sign       Sign an artifact, so that devices accept it.
  status     Show the active release of devices.

  Examples:
    compress --target raspberrypi
    compress --target local --budget latency_p50=4ms --budget accuracy_drop=1
    compress --target raspberrypi --model nets.py:make_net --weights net.safetensors --data ./images
"""

NETS = """
from pipeline.training.load import find_model

PREPROCESSING = {"size": 8, "mean": (0.305,), "std": (0.376,), "augment": ("crop",)}

print("nets.py was imported")

def chatty(num_classes):
    print("a network is made")
    return find_model("digits").factory(num_classes)
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(compress, arguments, terminal_width=78, catch_exceptions=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run within its budget, told as JSON, in a directory whose name looks like markup and is not UTF-8."""
    out = tmp_path_factory.mktemp("cli") / "[red]run[" / os.fsdecode(b"b] :boat: \xe9t\xe9")
    return out, run(*SMALL, "--json", "--out", str(out))


@pytest.fixture(scope="module")
def missed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A chatty network of the user's own, and a budget that one epoch cannot meet."""
    folder = tmp_path_factory.mktemp("missed")
    (folder / "nets.py").write_text(NETS)
    weights = str(shipped_folder("models") / "digits.safetensors")
    model = ("--model", f"{folder / 'nets.py'}:chatty", "--weights", weights)
    return folder / "run", run(*DRY, *model, "--budget", "accuracy_drop=0", "--json", "--out", str(folder / "run"))


# before anything is done


def test_help_is_one_page_with_three_examples() -> None:
    result = run("--help")

    assert result.output.splitlines() == HELP.splitlines()
    assert len(HELP.splitlines()) <= 60
    assert HELP.count("\n    compress ") == 3
    assert run("-h").output == HELP
    assert result.exit_code == 0


def test_without_arguments_it_shows_the_help() -> None:
    assert run().output.splitlines() == HELP.splitlines()


def test_help_leads_to_every_searcher() -> None:
    """In the document that the help points to, each has a line of its own."""
    text = (Path(__file__).parents[2] / "docs" / "searchers.md").read_text()

    assert "docs/searchers.md" in HELP
    assert all(f"`{name}`" in text for name in SEARCHERS)


def test_help_does_not_wait_for_torch() -> None:
    """torch takes seconds to import."""
    code = "import sys; from pipeline.cli.main import compress; compress(['--help'], standalone_mode=False); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert result.returncode == 0, result.stderr.decode()


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    assert run("--version").output == f"compress, version {project['version']}\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Error: Missing option '--target'. Try --target raspberrypi, or --target local for this machine."),
        (
            ("--searcher", "best"),
            "Error: --searcher: unknown searcher 'best'; choose one of ddpg-entropy, evolution, greedy, knapsack, ppo-lagrangian, ppo-lagrangian-faithful, pretrained, random, surrogate, tpe, uniform, uniform-top-up",
        ),
        (("--trials", "0"), "Error: Invalid value for '--trials': 0 is not in the range x>=1."),
        (
            ("--importance", "l3"),
            "Error: Invalid value for '--importance': 'l3' is not one of 'l1', 'l2', 'bn', 'taylor', 'reconstruction'.",
        ),
        *(
            (
                ("--task", "t.py:task", *option),
                f"Error: {option[0]} is not used with --task, which has its own data and training; leave one out.",
            )
            for option in (("--data", "digits"), ("--unlabelled", "images"), ("--epochs", "auto"), ("--learning-rate", "0.1"))
        ),
        (("--calibratoin", "f"), "Error: No such option '--calibratoin'. Did you mean '--calibration'?"),
        (("again",), "Error: No such command 'again'."),
    ],
)
def test_a_wrong_command_line_ends_with_2(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    target = ("--target", "raspberrypi") if arguments else ("--dry-run",)
    result = run(*target, *arguments, *(() if "again" in arguments else ("--out", str(tmp_path / "run"))))

    assert result.exit_code == 2
    assert result.stdout == ""
    assert " ".join(result.stderr.split()).endswith(complaint)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("budget", "complaint"),
    [
        ("latency_p50", "--budget latency_p50: expected KEY=VALUE, for example --budget latency_p50=50%"),
        ("latency_p50=", "--budget latency_p50=: expected KEY=VALUE, for example --budget latency_p50=50%"),
        ("two words", "--budget 'two words': expected KEY=VALUE, for example --budget latency_p50=50%"),
        ("=50%", "budget: unknown key ''; choose from accuracy_drop, file_size"),
        ("latency=50%", "budget: unknown key 'latency'; choose from accuracy_drop, file_size"),
        ("params=many", "budget: params: expected a number"),
        ("params=-3%", "budget: params: expected a percentage (got '-3%')"),
        ("accuracy_drop=2%", "budget: accuracy_drop: expected points, not % (got '2%')"),
    ],
)
def test_a_malformed_budget_ends_with_12_and_one_line(tmp_path: Path, budget: str, complaint: str) -> None:
    result = run(*DRY, "--budget", budget, "--out", str(tmp_path / "run"))

    assert result.exit_code == 12
    assert without_heartbeat(result.stdout) == ""
    assert result.stderr.startswith(f"compress: {complaint}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_error_is_told_as_json_too(tmp_path: Path) -> None:
    result = run(*DRY, "--budget", "latency=50%", "--json", "--out", str(tmp_path / "run"))
    message = result.stderr.removeprefix("compress: ").rstrip("\n")

    assert json.loads(result.stdout) == {"error": "BudgetError", "message": message, "exit_code": 12}


def test_without_out_the_same_command_finds_its_own_directory_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three commands, two jobs; none gets far, for there are no such images."""
    monkeypatch.chdir(tmp_path)
    for seed in ("1", "2", "1"):
        assert run(*DRY, "--data", "nowhere", "--seed", seed).exit_code == 30
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())

    assert len(names) == 2
    assert all(name.startswith("raspberrypi-digits-random-") for name in names)


# within the budget


def test_json_is_the_only_thing_on_stdout(finished: tuple[Path, Result]) -> None:
    out, result = finished
    found = json.loads(result.stdout)
    model = out / "artifact" / "model.onnx"

    assert result.exit_code == 0
    assert found["verdict"] == "within"
    assert found["figures"] == "simulated"
    assert (found["artifact"], found["model"]) == (str(out / "artifact"), str(model))
    assert found["sha256"] == sha256_file(model)
    assert found["rows"] == json.loads((out / "artifact" / "artifact.json").read_text())["rows"]


def test_the_screen_tells_every_step_and_every_trial(finished: tuple[Path, Result]) -> None:
    lines = finished[1].stderr.splitlines()
    steps = [line.split()[0] for line in lines if "(after " in line]

    assert steps == [
        "load",
        "analyse",
        "rehearse",
        "prepare",
        "measure",
        "supernet",
        "search",
        "confirm",
        "fine-tune",
        "export",
        "ship",
    ]
    assert [line.split()[0] for line in lines if " params  score " in line] == ["1/3", "2/3", "3/3"]
    assert any("note: this machine measures in place of Raspberry Pi 4 Model B" in line for line in lines)


def test_the_same_command_shows_the_table_again_and_quietly_nothing_else(finished: tuple[Path, Result]) -> None:
    """Paths are printed as they are, whatever brackets and colons they hold."""
    out, _ = finished
    model = out / "artifact" / "model.onnx"
    result = run(*SMALL, "--quiet", "--out", str(out))
    lines = result.stdout.splitlines()

    assert result.exit_code == 0
    assert result.stderr == ""
    assert lines[0] == ""
    assert lines[1].split() == ["dense", "after", "change", "budget", "verdict"]
    assert {line.rpartition("  ")[2].strip() for line in lines if "<=" in line} == {"within"}
    assert [line for line in lines if not line.startswith("note: ")][-4:] == [
        "Budget met: every 95 % confidence interval lies below its limit.",
        "figures: simulated (cost model)",
        f"{clean_path(model)} ({format_bytes(model.stat().st_size)})",
        clean_path(out / "artifact" / "report.html"),
    ]


def test_a_finished_run_says_that_it_is_done(finished: tuple[Path, Result]) -> None:
    result = run(*SMALL, "--out", str(finished[0]))

    assert "note: already done:" in result.stdout
    assert "(after" not in result.stdout


# over the budget


def test_a_missed_budget_ends_with_14_and_an_artifact(missed: tuple[Path, Result]) -> None:
    out, result = missed
    row = next(row for row in json.loads(result.stdout)["rows"] if row["key"] == "accuracy_drop")

    assert result.exit_code == 14
    assert json.loads(result.stdout)["verdict"] == row["verdict"] == "over"
    assert (out / "artifact" / "model.onnx").is_file()
    assert "BUDGET MISSED: accuracy (test)" in result.stderr


def test_a_finished_run_that_missed_its_budget_still_ends_with_14(missed: tuple[Path, Result]) -> None:
    out, _ = missed
    nets = ("--model", f"{out.parent / 'nets.py'}:chatty", "--weights", str(shipped_folder("models") / "digits.safetensors"))
    result = run(*DRY, *nets, "--budget", "accuracy_drop=0", "--quiet", "--out", str(out))

    assert result.exit_code == 14


def test_what_the_users_file_prints_does_not_stand_among_the_json(missed: tuple[Path, Result]) -> None:
    _, result = missed

    assert "nets.py was imported" in result.stderr
    assert "a network is made" in result.stderr
    assert result.stdout.count("\n") == 1
