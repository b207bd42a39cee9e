"""Coverage-guided fuzzing of the readers, each with limited time, memory and input. It is not part of the tests: `make fuzz`.

python tests/helpers/fuzz.py [--seconds N] [READER ...]     all readers by default; exits with 1 if one of them failed
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

FOUND = Path("fuzz-found")
CHILD = "COMPRESS_FUZZ_READER"
NOT_HERE = ("answers",)
"""It starts processes, and fuzzing would start thousands. tests/project/test_fuzz.py covers a few of them."""


def fuzz(name: str) -> None:
    """Fuzz in a process of its own. This does not return."""
    import atheris

    # the readers and the Python modules that they depend on; torch and onnx are not instrumented
    with atheris.instrument_imports(include=["pipeline", "yaml", "json"]):
        from helpers.readers import READERS
    reader = READERS[name]
    folder = Path(tempfile.mkdtemp(prefix="compress-fuzz-", dir=os.environ["COMPRESS_FUZZ_FOLDER"]))
    corpus = folder.parent / "corpus"
    corpus.mkdir()
    (corpus / "valid").write_bytes(reader.valid(folder))
    path = folder / reader.name

    def once(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(reader.error):
            reader.read(path)

    atheris.Setup([*sys.argv, str(corpus)], once)
    atheris.Fuzz()


def run(name: str, seconds: int) -> bool:
    """Fuzz one reader, print a line, and return whether it had no failure."""
    FOUND.mkdir(exist_ok=True)
    prefix = f"{FOUND}/{name.replace(' ', '-')}-"
    limits = [f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-timeout=20", "-max_len=4096", f"-artifact_prefix={prefix}"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, CHILD: name, "COMPRESS_FUZZ_FOLDER": folder}
        done = subprocess.run(
            [sys.executable, __file__, *limits], env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    counts = re.findall(r"^#(\d+)\s.*?cov: (\d+)", done.stderr, flags=re.MULTILINE)
    runs, covered = counts[-1] if counts else ("0", "0")
    # libFuzzer exits with 0 when its time is over, and reports the number of runs
    stood = done.returncode == 0 and counts != []
    print(f"{name}: {runs} runs, {covered} branches, {'stood' if stood else f'FELL OVER, see {prefix}*'}", flush=True)
    if not stood:
        print(done.stderr[-3000:])
    return stood


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("readers", nargs="*")
    options = parser.parse_args()
    from helpers.readers import READERS

    names = options.readers or [name for name in READERS if name not in NOT_HERE]
    stood = [run(name, options.seconds) for name in names]
    if all(stood):
        FOUND.rmdir()
    return 0 if all(stood) else 1


if __name__ == "__main__":
    if CHILD in os.environ:
        fuzz(os.environ[CHILD])
    sys.exit(main())
