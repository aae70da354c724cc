# make retrain DATA=flowers    folders of labelled photos → a classifier
# make plan DATA=flowers       what that would do and why, without doing it
# make test                    lint, types, layers and all tests
# make benchmark               the pipeline against the pattern of retrain.py, on this machine
# make tensorboard             the curves and pictures of all trainings
# make luigid                  the central scheduler and its page, for several workers (docs/operations.md)
# make install                 only the set-up that the first does too
# make clean                   remove the virtual environment

DATA ?= flowers
# More parameters of the task, e.g. ARGS="--learning-rate 0.1", or of the benchmarks, e.g. ARGS="--photos data/flowers"
ARGS ?=
# As in [paths] of luigi.cfg.
STORE ?= store

# Of make luigid; the workers read it in configs/luigid.cfg.
PORT ?= 8082

VENV := .venv
# The first Python that TensorFlow has a package for.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
# CUDA's libraries, where there is an NVIDIA GPU to use them.
EXTRA := $(if $(wildcard /proc/driver/nvidia/version),[gpu])
INSTALL := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check

.PHONY: retrain plan test browser benchmark tensorboard luigid install clean

retrain: $(VENV)/installed
	@$(VENV)/bin/luigi --module pipeline Export --data '$(DATA)' $(ARGS)

plan: $(VENV)/installed
	@$(VENV)/bin/python -m pipeline plan --data '$(DATA)' $(ARGS)

test: $(VENV)/installed-test browser
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# The tests look at the pages in a real browser.
browser:
	@if ! command -v chromedriver >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo 'installing chromium and chromium-driver with apt-get, for the tests (once; about 400 MB)' >&2; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium chromium-driver >/dev/null; \
		else \
			echo 'warning: there is no chromedriver, so tests/test_report.py and tests/test_serve.py will fail; install Chromium and its chromedriver' >&2; \
		fi; \
	fi

benchmark: $(VENV)/installed
	@$(VENV)/bin/python -m benchmarks $(ARGS)

tensorboard: $(VENV)/installed
	@$(VENV)/bin/tensorboard --logdir '$(STORE)/runs/TrainFinalLayer' $(ARGS)

# Whoever reaches its port can stop and start tasks: only this machine does.
luigid: $(VENV)/installed
	@mkdir -p '$(STORE)'
	@echo 'the scheduler and its page: http://127.0.0.1:$(PORT)' >&2
	@LUIGI_CONFIG_PATH=configs/luigid.cfg $(VENV)/bin/luigid --address 127.0.0.1 --port '$(PORT)' --state-path '$(STORE)/luigid.state' $(ARGS)

install: $(VENV)/installed

clean:
	rm -rf $(VENV) .luigi

$(VENV)/installed: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo 'error: Python 3.10, 3.11, 3.12 or 3.13 is needed; name one with PYTHON=/path/to/python3.12' >&2; exit 30; }
	@echo 'installing into $(VENV) (once; about $(if $(EXTRA),6,2) GB)' >&2
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --editable '.$(EXTRA)'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@$(INSTALL) --editable '.[test]'
	@touch $@
