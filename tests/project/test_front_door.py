"""The front door: `from pipeline import ...`."""

import doctest
import importlib
import subprocess
import sys

import pytest

import pipeline

LAZY = """
import sys
import pipeline
from pipeline import Job, Limit, Metric, Problem
Job(target="raspberrypi")
print(sorted({"torch", "optuna", "onnx", "onnxruntime", "matplotlib"} & set(sys.modules)))
"""


def test_the_front_door_has_these_names_and_no_others() -> None:
    assert pipeline.__all__ == ["Job", "Limit", "Metric", "OwnTask", "Problem", "compress", "compress_budgets", "load_compressed"]
    assert set(pipeline.__all__) <= set(dir(pipeline))


def test_a_job_is_made_without_importing_torch_or_optuna() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_compress_is_the_function_whichever_module_was_imported_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import of the module of the same name would make the module an attribute of the package."""
    monkeypatch.setattr(pipeline, "compress", pipeline.compress)
    monkeypatch.delitem(sys.modules, "pipeline.compress")
    importlib.import_module("pipeline.compress")

    assert type(pipeline.compress).__name__ == "function"


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'prune'"):
        _ = pipeline.prune


# the example of `load_compressed` is that of `compress` with one line more, and that of `compress_budgets` has two limits
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("load_compressed", "compress_budgets")))
        for name in pipeline.__all__
    ],
)
def test_the_example_in_the_docstring_runs(name: str) -> None:
    examples = doctest.DocTestFinder(recurse=False).find(getattr(pipeline, name), name, globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for example in examples:
        runner.run(example)

    assert runner.tries > 0
    assert runner.failures == 0
