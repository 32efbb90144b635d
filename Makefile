# make reproduce [PROFILE=laptop] · make test · make lab · make lint · make evidence [NAME=reference]
# Each sets up .venv by itself, once, and again when pyproject.toml or constraints.txt change; an environment whose
# making was broken off (.venv/.half is still there) is made anew.

PROFILE ?= laptop
PYTHON ?= python3
VENV ?= .venv
FREE_KB ?= 5000000
BIN = $(VENV)/bin
export OMP_WAIT_POLICY = PASSIVE

.PHONY: all reproduce test lab lint format evidence clean
.NOTPARALLEL:

all: $(VENV)/.ok

$(VENV)/.ok: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "Python's venv module is missing: install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@test "$$(df -Pk . | awk 'NR == 2 { print $$4 }')" -gt $(FREE_KB) || \
		{ echo "About $(FREE_KB) kB of free disk are needed for the environment"; exit 1; }
	@test ! -e $(VENV)/.half || rm -rf $(VENV)
	@test -x $(BIN)/python || { mkdir -p $(VENV) && touch $(VENV)/.half && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.half && touch $@

reproduce: $(VENV)/.ok
	$(BIN)/starling-nb fetch model
	$(BIN)/starling-nb reproduce --profile $(PROFILE) --out outputs/$(PROFILE)

test: $(VENV)/.ok
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

lab: $(VENV)/.ok
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --KernelManager.transport_encryption=auto notebooks

lint: $(VENV)/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution" \
		notebooks/*.ipynb

format: $(VENV)/.ok
	$(BIN)/nbstripout --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution" notebooks/*.ipynb
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The full figures. NAME=reference: the committed laptop run; a claim may fail only where benchmarks/missed.json says
# why · repeatability: runs repeated, and killed · study: several seeds, hours · sampling_speed: tokens a second by how
# threads wait · readout_probe: where quality is best read · labelling_scale: 183,000 labels · fault_storm: a judge that
# fails in every way · kills: labelling killed at random · prompt_scale: duplicates and leaks among 200,000 prompts ·
# bias_coverage: do the intervals of position effects hold · bias_scale: effects of 183,000 rankings · cures: what each cure
# of positional bias buys · bias_real_logs: the authors' logs (needs STARLING_NB_REAL_DATA) · tuning_kills: tuning killed at
# random · update_speed: a kept trunk beside recomputed ones and whole models · rollout_speed: our sampler beside
# transformers' · trl_speed: a whole step beside TRL's (needs trl) · gpu_step: a step at 7B shape on one card ·
# interval_coverage: do intervals of few clusters hold · arena_speed: a million votes · length_control: beside the official
# package (needs alpaca-eval) · overoptimization: a long run at weak KL, hours · lab: every notebook in JupyterLab, the
# report in a browser (needs Chromium).
NAME ?= reference

evidence: $(VENV)/.ok
	$(BIN)/starling-nb fetch model
ifeq ($(NAME),reference)
	$(BIN)/starling-nb reproduce --profile laptop --out outputs/laptop --strict || test $$? -eq 3
	$(BIN)/python -m benchmarks.keep_reference
else
	$(BIN)/python -m benchmarks.$(NAME)
endif

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
