# Everything on a fresh machine with python3 (3.11 or newer) and make.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test soak lint clean

demo: $(READY)
	$(BIN)/lclab demo

test: lint
	$(BIN)/python -m pytest

soak: $(READY)
	LCLAB_SOAK=100 $(BIN)/python -m pytest tests/sweeps/test_soak.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

# Compiled here and now: where Python may not write bytecode, every process would take three times as long to start.
# uv does not read pip's configuration: hand it the local wheels that pip would look at, where there are any.
$(READY): pyproject.toml constraints.txt overrides.txt
	@python3 -c 'import sys; sys.exit("python3 is %d.%d; 3.11 or newer is needed" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null)}" \
	  $(BIN)/python -m uv pip install --quiet --python $(BIN)/python \
	  --constraint constraints.txt --override overrides.txt --compile-bytecode --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
