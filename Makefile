# Every target sets up what it needs on a bare Linux machine: Python 3.11 or newer, git and a package
# registry; no root. What is already there is left as it is, so a second run starts at once.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.ONESHELL:
.SILENT:
SHELL := /bin/sh
.SHELLFLAGS := -eu -c

# The virtual environment. Made here, and made again if its Python no longer runs.
VENV ?= .venv
# The Python that makes it; empty takes the first that is new enough.
PYTHON ?=
# For the command behind `make train`, and for pytest behind `make test`.
ARGS ?=
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
# For `make tensorboard`.
LOGDIR ?= runs
PORT ?= 6006

# Where data sets are kept; a folder that the user has set stays. This is where the programs look by
# themselves too, so that commands outside make find what make has fetched.
ifeq ($(strip $(RLMIX_DATA)),)
RLMIX_DATA := $(HOME)/.cache/rlmix/data
endif
export RLMIX_DATA

RUN := "$(VENV)/bin/python"
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev

.PHONY: help train test gpu-check gpu-carry data install install-dev lint format docs tensorboard clean FORCE

help: ## List the targets
	sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target text; do
		printf '  make %-12s %s\n' "$$target" "$$text"
	done
	echo
	echo 'Variables: ARGS, PYTEST_ARGS, PYTHON, VENV, RLMIX_DATA, LOGDIR, PORT, as in'
	echo '  make train ARGS="--help"'
	echo '  make test PYTEST_ARGS="tests/classifier -x"'

train: $(CORE) data ## Set up, then train the agent: experiments/train_agent.py ARGS
	echo "==> experiments/train_agent.py $(ARGS)"
	exec $(RUN) experiments/train_agent.py $(ARGS)

test: $(DEV) data ## Set up, then run the tests: pytest PYTEST_ARGS
	echo "==> pytest $(PYTEST_ARGS)"
	exec $(RUN) -m pytest $(PYTEST_ARGS)

# Without setting anything up where this Python has the packages: such a machine may reach no registry.
gpu-check: ## Check and measure a CUDA machine: experiments/benchmarks/gpu_check.py ARGS
	python="$(or $(PYTHON),$(wildcard $(VENV)/bin/python),python3)"
	PYTHONPATH="src$${PYTHONPATH:+:$$PYTHONPATH}" exec "$$python" experiments/benchmarks/gpu_check.py $(ARGS)

gpu-carry: $(DEV) ## Make a folder that takes the GPU check to a machine without a registry: ARGS
	exec $(RUN) experiments/benchmarks/gpu_carry.py $(ARGS)

lint: $(DEV) ## Check style, format and types
	echo '==> ruff check'
	$(RUN) -m ruff check .
	echo '==> ruff format --check'
	$(RUN) -m ruff format --check .
	echo '==> mypy'
	$(RUN) -m mypy

format: $(DEV) ## Sort imports and format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# No --quiet here: it hides warnings, and with them what makes a strict build fail.
docs: $(DEV) ## Build the documentation into site/; broken links and references fail
	echo '==> mkdocs build'
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build
	echo '    .venv/bin/python -m http.server -d site   # then open http://localhost:8000'

tensorboard: $(CORE) ## Show the curves of LOGDIR on this machine at PORT
	exec $(RUN) -m tensorboard.main --logdir "$(LOGDIR)" --host 127.0.0.1 --port $(PORT)

install: $(CORE) ## Set up for training only
	echo '    source .venv/bin/activate   # then the commands of README.md'

install-dev: $(DEV) ## Set up for training, testing and Ray

clean: ## Remove caches and build outputs (runs, data and the environment stay)
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis ./*.egg-info src/*.egg-info
	for room in agent envs classifier experiments tests docs src; do
		find "$$room" -type d -name __pycache__ -prune -exec rm -rf {} +
	done

# A stamp holds the folder that was installed: an environment that moved, or serves another checkout, is
# installed again, or imports would come from the old place; and so is one whose Python is gone.
stale = $(if $(and $(findstring |$(CURDIR)|,|$(file <$(1))|),$(wildcard $(VENV)/bin/python)),,FORCE)

$(CORE): pyproject.toml $(call stale,$(CORE))
	$(call prepare)
	$(call install,.)
	echo '$(CURDIR)' > "$(CORE)"

$(DEV): pyproject.toml $(call stale,$(DEV))
	$(call prepare)
	$(call install,.[dev$(comma)all])
	echo '$(CURDIR)' > "$(CORE)"
	echo '$(CURDIR)' > "$(DEV)"

comma := ,

# A virtual environment whose Python and pip run.
define prepare
	works() { "$(VENV)/bin/python" -m pip --version >/dev/null 2>&1; }
	if ! works; then "$(VENV)/bin/python" -m ensurepip >/dev/null 2>&1 || true; fi
	if ! works; then
		python=
		for candidate in $(if $(strip $(PYTHON)),'$(PYTHON)',python3.11 python3 python3.12 python3.13 python3.14 python); do
			if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
				python=$$candidate
				break
			fi
		done
		if [ -z "$$python" ]; then
			echo "RL-Mix needs Python 3.11 or newer; found: $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1)" >&2
			echo 'Install one, or name it: make PYTHON=/path/to/python3.11 ...' >&2
			exit 1
		fi
		if ! "$$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
			echo "$$python cannot make virtual environments: its venv or ensurepip module is missing." >&2
			echo 'On Debian and Ubuntu it is the package python3.11-venv (the number is that of your Python).' >&2
			echo 'Install it, or name another Python: make PYTHON=/path/to/python3.11 ...' >&2
			exit 1
		fi
		echo "==> Virtual environment $(VENV) with $$($$python --version)"
		if [ -f "$(VENV)/pyvenv.cfg" ]; then clear=--clear; else clear=; fi
		"$$python" -m venv $$clear "$(VENV)"
	fi
endef

# pip writes a package's INSTALLER file last. A package without one was cut off: forgotten here, pip
# installs it again, where it would otherwise take it for complete. Compiling every module is left to
# the first import, which needs few of them.
define install
	echo '==> Dependencies into $(VENV) (the first time 6 GB, some minutes)'
	$(RUN) - <<'END'
import pathlib, shutil, sysconfig
found = pathlib.Path(sysconfig.get_path("purelib")).glob("*.dist-info")
torn = [info for info in found if not (info / "INSTALLER").exists()]
print(*(f"    installing again, was interrupted: {info.stem}" for info in torn), sep="\n", end="\n" if torn else "")
[shutil.rmtree(info) for info in torn]
END
	$(RUN) -m pip install -qq --no-compile --disable-pip-version-check -e '$(1)'
endef

# Fashion-MNIST comes in a Debian package, which can be unpacked without root, so that a machine that
# reaches nothing but its package registries can train. Where that fails, training downloads the data
# itself and tests that need it are skipped: this step never fails.
data: ## Fetch Fashion-MNIST (30 MB) into RLMIX_DATA
	package=dataset-fashion-mnist
	source=usr/share/datasets/fashion-mnist
	folder="$$RLMIX_DATA/fashion-mnist"
	complete() {
		for name in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do
			gzip -t "$$1/$$name-ubyte.gz" 2>/dev/null || return 1
		done
	}
	if complete "$$folder" || complete "/$$source"; then exit 0; fi
	if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
		echo '==> Fashion-MNIST: no apt-get here; the data will be downloaded on first use'
		exit 0
	fi
	echo "==> Fashion-MNIST into $$folder"
	if ! mkdir -p "$$folder" || ! temp=$$(mktemp -d "$$RLMIX_DATA/.fetch.XXXXXX"); then exit 0; fi
	temp=$$(cd "$$temp" && pwd)
	trap 'rm -rf "$$temp"' EXIT
	trap 'exit 130' INT TERM
	# apt reads a folder of package lists; where the machine has none yet, lists of our own will do.
	apt() {
		timeout 300 apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=1 -o Acquire::http::Timeout=20 \
			-o Acquire::https::Timeout=20 "$$@"
	}
	# The paths are absolute: apt takes a relative one from the system's own folder.
	own_lists() { apt -o Dir::State::Lists="$$temp/lists" -o Dir::Cache="$$temp/cache" "$$@"; }
	fetch() {
		cd "$$temp" && mkdir -p lists/partial cache/archives/partial unpacked || return 1
		apt download "$$package" || { own_lists update && own_lists download "$$package"; } || return 1
		dpkg -x "$$package"_*.deb unpacked && complete "unpacked/$$source"
	}
	if (fetch) </dev/null >"$$temp/log" 2>&1 && mv -f "$$temp/unpacked/$$source"/*.gz "$$folder"; then exit 0; fi
	sed -n 's/^[EW]: /    /p' "$$temp/log" | tail -n 3
	echo '    package not available; the data will be downloaded on first use'
