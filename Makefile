# Every target makes .venv when it is not there; a second call is quick. pip would compile all modules of torch to
# bytecode, which takes a minute; Python compiles those that are imported, once, if it may store them.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
DOCS_STAMP := .venv/.docs-ready

.PHONY: setup demo test lint bench docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segkit needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Name another: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[all,dev,cluster,indices,tensorboard,openvino]'
	@touch $@

demo: setup
	$(BIN)/segkit demo demo

lint: setup
	$(BIN)/ruff check segkit tests tools
	$(BIN)/ruff format --check segkit tests tools
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

bench: setup
	for bench in tools/bench_*.py; do $(BIN)/python $$bench || exit 1; done

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[docs]'
	@touch $@

# The documentation as a site: open site/index.html. The variable silences the theme's notice about mkdocs 2. With
# --quiet, --strict would not see the warnings that it is for.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build site *.egg-info
