# Two commands need nothing but Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
RUNTIME := .venv-demo
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test web-test lint bench clean

# Runtime only: no torch, no onnx.
demo: $(RUNTIME)/.ready
	$(RUNTIME)/bin/onnxcam demo

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# The page of examples/web in a headless Chromium: needs Node.js and Debian's chromium.
web-test: $(VENV)/.ready
	cd examples/web && npm ci
	$(BIN)/python -m pytest -q tests/web

# mypy sees no editable installs: it gets the package as a tree of links, export/ in its place.
lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .typed && mkdir -p .typed/onnxcam
	ln -s $(CURDIR)/onnxcam/* .typed/onnxcam/ && ln -s $(CURDIR)/export .typed/onnxcam/export
	cd .typed && ../$(BIN)/mypy --config-file ../pyproject.toml -p onnxcam

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/startup.py

$(RUNTIME)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RUNTIME)
	$(RUNTIME)/bin/python $(PIP) -e ".[cpu]"
	touch $@

# torchvision, timm and grad-cam without their dependencies: those ask for CUDA builds of torch.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) torch==2.13.0
	$(BIN)/python $(PIP) -e ".[cpu,torch,test]"
	$(BIN)/python $(PIP) --no-deps torchvision timm grad-cam captum ttach torchcam
	touch $@

clean:
	rm -rf $(VENV) $(RUNTIME) build dist *.egg-info onnxcam-demo
