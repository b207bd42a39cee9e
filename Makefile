# One word per action. `make demo` and `make test` set up everything they need on a fresh machine.
PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin

.PHONY: demo test test-all image fuzz check docs sshd format bench bench-link train-demo build clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 18

demo: $(ENV)/.installed ## compress the demo network for the Raspberry Pi profile, to an artifact and a report
	$(BIN)/compress --target hw_profiles/raspberrypi.yaml || test $$? -eq 14  # 14: the artifact is there, its verdict undecided or over

test: $(ENV)/.installed-dev check sshd ## lint, types, import contracts, and the tests that take less than ten minutes
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -q

test-all: $(ENV)/.installed-dev check sshd ## also the slow tests
	$(BIN)/pytest -q -m "slow or not slow"

fuzz: $(ENV)/.installed-dev ## test every reader with hostile input, guided by coverage, for a minute each
	$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install -q --disable-pip-version-check -e '.[fuzz]'
	PYTHONPATH=tests $(BIN)/python tests/helpers/fuzz.py --seconds 60

check: $(ENV)/.installed-dev docs ## ruff, mypy strict, import-linter, codespell, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CONTRIBUTING.md CHANGELOG.md docs pipeline models tests benchmarks hw_profiles

docs: $(ENV)/.installed-dev ## the documentation as a site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

sshd: # for the tests over ssh; skipped where it cannot be had
	@sh tests/sshd.sh

format: $(ENV)/.installed-dev ## format the code with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(ENV)/.installed-dev ## measure the cost of a candidate, here and with a graph library alone
	$(BIN)/python benchmarks/candidate.py

bench-link: $(ENV)/.installed-dev sshd ## measure the traffic and time of a candidate over a slow link
	$(BIN)/python benchmarks/link.py

train-demo: $(ENV)/.installed ## train models/digits.safetensors again
	$(BIN)/python models/train.py --model digits --data digits --epochs 40 --half --out models/digits.safetensors

image: ## build the container image without a daemon and test it (root, Debian, 20 GB)
	sh tests/image.sh

build: $(ENV)/.installed-dev ## the wheel
	$(BIN)/pip wheel -q --no-deps -w dist .

clean: ## remove the environment and everything generated
	rm -rf $(ENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The stamp is younger than pyproject.toml when what it lists is installed.
$(ENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(ENV)
	$(BIN)/pip install -q --disable-pip-version-check -e .
	touch $@

$(ENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(ENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@ $(ENV)/.installed
