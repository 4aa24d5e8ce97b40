# The two commands of the README: `make demo` and `make test`. Both work on a fresh machine with
# Python 3.11, make and pip. `make check` is what CI runs, in an environment that exists already;
# `make check-fast` is the part of it to run while editing (under a minute).
PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
VENV ?= .venv
# torchvision (timm and clean-fid need it) must match torch.
TORCH ?= torch==2.14.1 torchvision==0.29.1
OUT ?= out
BIN := $(VENV)/bin
# Byte code comes with the first import: compiling all of torch takes a third of its installation.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test check check-fast lint types tests test-all test-oldest docs page release dist clean

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/.user: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[safetensors]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[dev,docs,metrics,measured,train]"
	# Trained weights that ship in a package, for tests/test_zoo.py; its metadata pins an old torch.
	$(PIP) --no-deps facenet-pytorch
	touch $@ $(VENV)/.user

demo: $(VENV)/.user
	mkdir -p $(OUT)
	$(BIN)/python examples/make_demo_snapshot.py $(OUT)/demo.pkl
	$(BIN)/dsconvert $(OUT)/demo.pkl --out $(OUT)/demo-fast.pkl --polish 1.5 --overwrite
	$(BIN)/dsconvert compare $(OUT)/demo.pkl $(OUT)/demo-fast.pkl --seeds 0-5 --out $(OUT)/side_by_side.png --overwrite

# The demo's generator in a browser, with all its files: the only target that needs npm.
# The version is the one of dsconvert/web/runtime.py, which refuses any other.
ORT_WEB := onnxruntime-web-1.30.0.tgz

$(VENV)/.page: $(VENV)/.user
	$(PIP) --editable ".[safetensors,onnx]"
	touch $@

$(OUT)/$(ORT_WEB):
	mkdir -p $(OUT)
	cd $(OUT) && npm pack --silent onnxruntime-web@1.30.0

page: $(VENV)/.page $(OUT)/$(ORT_WEB)
	test -f $(OUT)/demo-fast.pkl || $(MAKE) demo
	$(BIN)/dsconvert export $(OUT)/demo-fast.pkl --original $(OUT)/demo.pkl --out $(OUT)/page/ --runtime $(OUT)/$(ORT_WEB) --title "dsconvert demo" --overwrite

test: $(VENV)/.dev
	$(MAKE) check

# One thread a worker: processes with several each wait for one another on a small machine.
# Byte code is kept also where the environment forbids it: tests start many processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint:
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

# Side by side: the type checker has one process, and the last tests leave a worker idle.
check: lint
	$(MAKE) --jobs=2 types tests

types:
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

tests:
	$(PYTEST) -m "not extended"

check-fast: lint
	$(PYTEST) -m "not slow and not extended"

# Everything, also what takes minutes more and rarely finds more: before a release.
test-all: $(VENV)/.dev lint
	$(PYTEST)

# The oldest Python and packages that pyproject.toml allows; run by hand (it downloads an old torch).
test-oldest:
	$(OLDEST_PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --requirement tests/oldest.txt
	.venv-oldest/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest --numprocesses auto --dist worksteal -m "not extended"

# make release VERSION=1.0.0: the version, the changelog's heading and the citation's date.
release:
	$(PYTHON) tools/release.py $(VERSION)

# The wheel and the sdist of the committed files, into $(OUT)/dist, checked; the sdist's tests run.
dist: $(VENV)/.dev
	$(PIP) build twine "setuptools>=77" wheel
	OMP_NUM_THREADS=1 $(BIN)/python tools/check_dist.py $(OUT)/dist

# The site, into $(OUT)/site; any broken link or reference fails it.
docs:
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --site-dir $(OUT)/site

clean:
	rm -rf $(VENV) $(OUT)
