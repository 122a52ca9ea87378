# Two commands for a new user: `make demo` and `make test`. Everything lands in .venv here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check format extras clean

demo: $(STAMP)
	$(BIN)/dreamactor demo --out demo_out

# Two at a time, each with one thread; then, one by one, those that a busy machine could fail.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not alone"
	$(BIN)/python -m pytest -m alone

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pose estimators of others, for their tests; without the second OpenCV that both of them name.
extras: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  onnxruntime absl-py attrs flatbuffers 'protobuf<5'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  mediapipe==0.10.21 rtmlib==0.0.16

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps stlpips_pytorch==0.0.2
	touch $@

clean:
	rm -rf $(VENV) demo_out build *.egg-info
