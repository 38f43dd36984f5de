# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# make test      everything, as CI runs it: the checks, the container tests and Molecule; STAGES='unit container' for some of it
# make check     what needs no Docker engine: lint, then the unit, integration and fault tests
# make bench     pipelines that a user would write and this one, timed in turn; BENCH_ARGS='--scale 0.3 --rounds 3'
# make demo      a backup and a restore to look at
# make container the image, compose.yml and the alert rules, on a Docker engine
# make molecule  the scenarios of molecule/, on a Docker engine; SCENARIOS='default faults' for some of them
# make images    what containers and Molecule need: a Docker engine, PostgreSQL, MinIO; pulled, or built where it cannot be
# make galaxy    what Galaxy runs on a collection that is uploaded, and a check of its documentation
# make majors    fetch the PostgreSQL majors 13 to 18 that this machine lacks (to test on all of them)
# make lint      ruff, mypy, ansible-lint, hadolint and shellcheck
# make changelog CHANGELOG.md and changelogs/changelog.yaml from changelogs/fragments
# make sanity    what ansible-test asks of a collection; SANITY_ARGS='--test pylint' for some of it
# make venv      .venv from requirements.txt, made again only when that changes
# make clean     remove what these made here
#
# PYTHON=... chooses the interpreter (3.11 to 3.13); PYTEST_ARGS='-k name -x' goes to pytest in check and container.
# Only relative paths: the directory may have any name.

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?=
PYTEST_ARGS ?=
STAGES ?=
BENCH_ARGS ?=
SANITY_ARGS ?=
SCENARIOS ?= default role faults
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv test check bench lint changelog sanity galaxy collections demo images container molecule scenario majors clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# The stamp tells for what the environment was made: these requirements, this place (scripts hold absolute paths) and
# this interpreter. It is written last, so that an environment half made is made again.
venv:
	@set -eu; \
	find_python() { \
	    for name in "$(PYTHON)" python3.13 python3.12 python3.11 python3; do \
	        if [ -n "$$name" ]; then \
	            "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) or print(sys._base_executable))' \
	                2>/dev/null && return; \
	            if [ "$$name" = "$(PYTHON)" ]; then echo "make: $$name is not a Python 3.11 to 3.13" >&2; return 1; fi; \
	        fi; \
	    done; \
	    echo 'make: no Python 3.11, 3.12 or 3.13 here: install one, or name it with PYTHON=' >&2; return 1; \
	}; \
	stamp() { echo "$$PWD"; echo "$$1"; cat requirements.txt; }; \
	python=$$(find_python); \
	if [ -x $(PY) ] && stamp "$$python" | cmp -s - $(VENV)/stamp; then exit 0; fi; \
	echo "make: $(VENV) with $$python"; \
	rm -rf $(VENV); \
	if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then "$$python" -m venv $(VENV); \
	elif "$$python" -m virtualenv --version >/dev/null 2>&1; then "$$python" -m virtualenv --quiet $(VENV); \
	else echo "make: $$python cannot make a virtual environment:" \
	    "install your system's python3-venv package (or virtualenv), or choose another with PYTHON=" >&2; exit 1; fi; \
	$(PY) -m pip install --quiet --requirement requirements.txt; \
	stamp "$$python" > $(VENV)/stamp

lint: collections
	$(PY) -m ruff check .
	$(PY) -m ruff format --check --quiet plugins
	$(PY) -m mypy plugins/module_utils/_pgstream
	$(VENV)/bin/antsibull-changelog lint
	$(VENV)/bin/antsibull-changelog lint-changelog-yaml changelogs/changelog.yaml
	$(PY) -m mypy tests/support/servers.py tests/images/fetch_postgres.py tests/conftest.py
	$(PY) -m mypy tests/everything.py tests/sanity.py tests/galaxy.py
	PATH="$$PWD/$(VENV)/bin:$$PATH" NO_COLOR=1 ANSIBLE_COLLECTIONS_PATH="$$PWD/playbooks/collections:$$PWD/.cache/collections" \
	    $(PY) -m ansiblelint
	$(VENV)/bin/hadolint Dockerfile tests/images/*/Dockerfile molecule/shared/target/Dockerfile
	$(VENV)/bin/shellcheck docker/bin/pgbackup .ci/run # which have no ending; ansible-test looks at the others

changelog: venv
	PATH="$$PWD/$(VENV)/bin:$$PATH" $(VENV)/bin/antsibull-changelog generate --refresh --reload-plugins

sanity: venv
	$(PY) tests/sanity.py $(SANITY_ARGS)

test: venv
	$(PY) tests/everything.py $(STAGES)

check: venv
	@$(MAKE) -s lint
	$(PY) -m pytest -q tests/unit tests/integration tests/faults $(PYTEST_ARGS)

galaxy: collections
	$(PY) tests/galaxy.py

bench: venv
	$(PY) -m tests.bench $(BENCH_ARGS)

demo: venv
	$(PY) tests/demo.py

collections: venv
	$(PY) tests/images/fetch_collections.py

images: collections
	$(PY) tests/images/ensure.py

container: images
	$(PY) -m pytest -q tests/container $(PYTEST_ARGS)

# Each one is run, whatever became of the one before.
molecule: images
	@failed=; for scenario in $(SCENARIOS); do \
	    $(MAKE) -s scenario SCENARIO=$$scenario || failed="$$failed $$scenario"; \
	done; \
	if [ -n "$$failed" ]; then echo "make: failed in Molecule:$$failed" >&2; exit 1; fi

# Molecule looks for ansible-playbook and pytest on PATH, and for its configuration only where there is a Git repository: so
# it is named.
scenario:
	@began=$$(date +%s); \
	PATH="$$PWD/$(VENV)/bin:$$PATH" $(PY) -m molecule -c .config/molecule/config.yml test -s $(SCENARIO); status=$$?; \
	echo "molecule $(SCENARIO): $$(($$(date +%s) - began)) s"; exit $$status

majors: venv
	$(PY) tests/images/fetch_postgres.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .ansible
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
