# What one does with a checkout of phaul. As root, on Debian 12 or 13; `make setup` installs the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
STAMP := .venv/.set-up
# mmdebstrap makes the file system of the lab's hosts, util-linux and iproute2 their namespaces and links.
SYSTEM_PACKAGES := debian-archive-keyring iproute2 mmdebstrap nftables util-linux
MINIMUM_PYTHON := (3, 11)

export DEBIAN_FRONTEND := noninteractive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup system-packages image machines examples proto lint unit test test-long fuzz demo vagrant-demo bench soak wheel deb lab-up lab-down clean soak-network

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: system-packages $(STAMP) ## install what phaul and its tests need: Debian packages, and .venv

# Finds a Python that can make virtual environments: the one in PATH, or else Debian's.
FIND_PYTHON = for python in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < $(MINIMUM_PYTHON))' 2>/dev/null \
		&& { echo $$python; break; }; done || true

system-packages:
	@missing=(); \
	if command -v dpkg-query >/dev/null; then \
		for package in $(SYSTEM_PACKAGES); do \
			[[ $$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null) == installed ]] || missing+=($$package); \
		done; \
		if [[ ! -e $(STAMP) && -z "$$($(FIND_PYTHON))" ]]; then missing+=(python3 python3-venv); fi; \
	else \
		for program in ip mmdebstrap nft nsenter unshare; do \
			PATH=$$PATH:/usr/sbin:/sbin command -v $$program >/dev/null || missing+=($$program); \
		done; \
		if (($${#missing[@]})); then \
			echo "setup: this is no Debian: please install $${missing[*]} by your own means" >&2; exit 1; \
		fi; \
	fi; \
	if (($${#missing[@]})); then \
		if ((EUID != 0)); then echo "setup: $${missing[*]} must be installed: please run it as root" >&2; exit 1; fi; \
		echo "setup: installing the Debian packages $${missing[*]}"; \
		log=$$(mktemp); \
		{ apt-get update && apt-get install -y --no-install-recommends "$${missing[@]}"; } </dev/null >$$log 2>&1 \
			|| { cat $$log >&2; rm $$log; exit 1; }; \
		rm $$log; \
	fi
	@# A virtual environment whose Python was removed, or that came with a copied checkout, is made again.
	@if [[ -e $(STAMP) ]] && ! $(PYTHON) -c 'import phaul' 2>/dev/null; then rm -f $(STAMP); fi

$(STAMP): pyproject.toml | system-packages
	@python=$$($(FIND_PYTHON)); \
	if [[ -z $$python ]]; then echo "setup: there is no Python >= 3.11 with venv on this machine" >&2; exit 1; fi; \
	if ! $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		echo "setup: making .venv with $$($$python --version)"; \
		$$python -m venv --clear .venv; \
	fi
	@echo "setup: installing phaul and its tools into .venv"
	@# Dependency groups came with pip 25.1.
	@$(PYTHON) -m pip install --quiet --quiet --root-user-action ignore --upgrade 'pip>=25.1' </dev/null
	@$(PYTHON) -m pip install --quiet --quiet --root-user-action ignore --editable . --group dev </dev/null
	@touch $@

image: setup
	@.venv/bin/phaul lab build

proto: setup ## generate phaul/rpc from proto/
	@$(PYTHON) -m tests.generate_stubs

lint: setup ## ruff, mypy and the import rules
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

unit: setup ## the tests that need neither root nor CRIU
	@.venv/bin/pytest tests/unit tests/component

# Without them only the tests on them are skipped, or say why they fail.
machines: image
	@.venv/bin/phaul lab build --vm || echo "make: no virtual machines on this machine"

test: setup image machines ## all tests, the lab's with real CRIU too
	@.venv/bin/pytest || { test $$? -eq 1 && \
	  echo "Machines are shared and faults are timed: what failed above is run once more, and must pass now." && \
	  .venv/bin/pytest --last-failed; }

# Without a wheel of atheris the inputs are made without looking at what code they reach.
fuzz: setup ## 10 minutes of hostile input for each of seven surfaces (FUZZ_SECONDS)
	@$(PYTHON) -m pip install --quiet --quiet --root-user-action ignore --group fuzz </dev/null || true
	@$(PYTHON) -m tests.fuzz

examples: setup ## PostgreSQL, OpenSSH, and docs/hooks beside HAProxy, keepalived and BIND, in an image that has them
	@$(PYTHON) -m phaul.lab.tools_image
	@.venv/bin/pytest tests/lab/test_real_servers.py tests/lab/test_hook_examples.py

demo: setup image ## move a running server between two hosts, and watch
	@.venv/bin/phaul demo

test-long: setup image machines ## installing on virtual machines, all of it, ipvlan and bonds: some fifteen minutes
	@PHAUL_LONG_TESTS=1 .venv/bin/pytest tests/vm/test_install.py tests/vm/test_vagrant.py tests/vm/test_ipvlan.py tests/vm/test_bonds.py

vagrant-demo: setup image ## the same between virtual machines, made ready over SSH: of Vagrant, else emulated ones
	@if command -v vagrant >/dev/null; then cd vagrant && vagrant up && \
		vagrant ssh client -c 'sudo /opt/phaul-here/bin/python /vagrant/vagrant/demo.py'; \
	else $(PYTHON) -m tests.vm.vagrant_demo; fi

bench: setup image ## measure phaul against CRIU by hand
	@$(PYTHON) -m tests.bench

soak: setup image ## 200 moves of a Redis under load, every fourth with a fault: at most 20 minutes
	@$(PYTHON) -m tests.soak

soak-network: setup image ## 200 moves of 24 connections over every kind of network: at most 20 minutes
	@$(PYTHON) -m tests.soak --network

wheel: setup ## phaul as a Python package, in dist/
	@$(PYTHON) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

deb: setup ## phaul as Debian packages, for Debian 12 and 13, in dist/
	@$(PYTHON) -m phaul.install.debian --python 3.11 --python 3.13 --out dist

lab-up: setup image ## two hosts and a client on this machine, to try phaul on
	@.venv/bin/phaul lab up

lab-down: setup ## take them down
	@.venv/bin/phaul lab down

clean: ## remove what was made in this checkout (not the lab's image)
	@rm -rf .venv .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
