# make all runs the notebooks, each when something that it depends on has changed.

ifeq ($(filter grouped-target,$(.FEATURES)),)
$(error This Makefile needs GNU make >= 4.3, and this is $(MAKE_VERSION). On macOS: brew install make, then gmake)
endif

.DEFAULT_GOAL := all
.SUFFIXES:

PROFILE ?= small
PYTHON3 ?= python3

# An experiment.nc of other tasks, made elsewhere, that notebook 4 joins instead of running its tasks again.
MORE ?=

# The address of a Dask scheduler: its workers train for notebooks 4 and 9 to 11 (CLUSTER.md). The results are the same.
SCHEDULER ?=

# What `make rank` ranks: a file such as those in examples/, and for which share of training all candidates.
MODEL ?= examples/convolutional.py
BUDGET ?= 0.1
RANKED := outputs/rank/$(basename $(notdir $(MODEL)))

# An active conda environment that was made from environment.yml is used as it is; otherwise .venv is built.
ifeq ($(CONDA_DEFAULT_ENV),mmstudy)
PYTHON := python
ENVIRONMENT :=
else
PYTHON := .venv/bin/python
ENVIRONMENT := .venv/.installed
endif

# The sweeps run one process per core: with one thread each, results do not depend on the number of cores.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1

# Memory that was freed stays with the process (glibc): without this, large batches wait for fresh pages at every step.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 4294967296

# Kernels and workers are many: they share the package's bytecode, which Python writes unless this says something.
export PYTHONDONTWRITEBYTECODE :=

# No progress bars in what executed notebooks keep; the runner names the terminal that shows them.
export MMSTUDY_TERMINAL := /dev/null

# ---- What each notebook makes, and the files of the package that it imports, directly or not -----------------------

OUT := outputs/$(PROFILE)
figures = $(foreach name,$(1),figures/$(name).svg figures/$(name).png)

NOTEBOOKS := 0_your_network 1_expansion 2_estimators 3_manifold 4_experiment 5_relation 6_prediction 7_choice 8_answer 9_beyond \
	10_ranking 11_advice

IMPORTS := $(shell $(PYTHON3) mmstudy/core/sources.py $(NOTEBOOKS:%=notebooks/%.ipynb))
imports = $(or $(patsubst $(1):%,%,$(filter $(1):%,$(IMPORTS))),$(shell find mmstudy -name '*.py'))

0_your_network.makes := data/your_network.nc $(call figures,your_network)

1_expansion.makes := data/expansion.nc \
	$(call figures,expansion expansion_all expansion_weights expansion_blocks expansion_contracts expansion_adam)

2_estimators.makes := data/estimators.nc $(call figures,estimators_gallery estimators_rays estimators_truth \
	estimators_symmetries estimators_normalization)

3_manifold.makes := data/manifold.nc $(call figures,manifold_plane manifold_rays)

4_experiment.makes := data/experiment.nc
4_experiment.set := cache=$(OUT)/cache $(MORE:%=more=%)
4_experiment.value := $(SCHEDULER:%=scheduler=%)

5_relation.makes := data/relation.nc $(call figures,relation within build_up tasks sensitivity)
6_prediction.makes := data/prediction.nc data/predictors.csv $(call figures,ranking_static ranking_early regimes)
7_choice.makes := data/choice.nc data/policies.csv $(call figures,scratch policies)
5_relation.reads := $(OUT)/data/experiment.nc
6_prediction.reads := $(OUT)/data/experiment.nc
7_choice.reads := $(OUT)/data/experiment.nc
5_relation.set := experiment=$(OUT)/data/experiment.nc
6_prediction.set := experiment=$(OUT)/data/experiment.nc
7_choice.set := experiment=$(OUT)/data/experiment.nc

8_answer.makes := summary.md
8_answer.reads := $(addprefix $(OUT)/data/,relation.nc prediction.nc choice.nc)
8_answer.set := data=$(OUT)/data

9_beyond.makes := data/beyond.nc data/churn.nc $(call figures,explorers growing churn descent scores)
9_beyond.reads := $(OUT)/data/experiment.nc
9_beyond.set := experiment=$(OUT)/data/experiment.nc
9_beyond.value := $(SCHEDULER:%=scheduler=%)

10_ranking.makes := data/ranking.nc $(call figures,ranking)
10_ranking.reads := $(wildcard examples/convolutional.py)
10_ranking.set := ranking_folder=$(OUT)/cache/ranking
10_ranking.value := $(SCHEDULER:%=scheduler=%)

11_advice.makes := data/advice.nc data/verdicts.nc $(call figures,advice)
11_advice.reads := $(wildcard examples/*.py)
11_advice.set := advice_cache=$(OUT)/cache/advice
11_advice.value := $(SCHEDULER:%=scheduler=%)

# ---- Commands --------------------------------------------------------------------------------------------------

.PHONY: all test lint notebooks reference compare rank docs bench clean help

targets = $(addprefix $(OUT)/,$($(1).makes) notebooks/$(1).ipynb)
TARGETS := $(foreach notebook,$(NOTEBOOKS),$(call targets,$(notebook)))

# The runner moves results into place when they are whole: old ones stay until then, whatever becomes of a run.
.PRECIOUS: $(TARGETS)

all: $(TARGETS) ## Run the notebooks into outputs/PROFILE (PROFILE=small)

test: $(ENVIRONMENT) ## Test the package, and run the notebooks as they are committed
	$(PYTHON) -m pytest tests notebooks --numprocesses=auto --dist=loadfile --nbval-lax --nbval-current-env \
		--nbval-cell-timeout=300 --nbval-kernel-startup-timeout=120

lint: $(ENVIRONMENT) ## Check style (of the notebooks too), docstrings and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

# nbval takes a cell without a count for one that has not run: the counts, 1, 2, ... after a fresh run, stay.
notebooks: $(ENVIRONMENT) ## Run the notebooks in place, write the tables of operators and networks, to be committed
	$(PYTHON) -m mmstudy.validation.preservation README.md
	$(PYTHON) tests/networks_page.py NETWORKS.md
	$(PYTHON) -m nbconvert --to notebook --inplace --execute --ExecutePreprocessor.record_timing=False \
		$(NOTEBOOKS:%=notebooks/%.ipynb)
	$(PYTHON) -m nbstripout --keep-output --keep-count --extra-keys metadata.language_info \
		$(NOTEBOOKS:%=notebooks/%.ipynb)

reference: $(ENVIRONMENT) ## Copy the results of all tasks to outputs/reference, to be committed, and the answer to the README
	$(MAKE) all PROFILE=full
	rm -rf outputs/reference/data outputs/reference/figures
	mkdir -p outputs/reference
	cp -R $(addprefix outputs/full/,data figures summary.md) outputs/reference
	$(PYTHON) -m mmstudy.study.abstract README.md outputs/reference/summary.md

compare: $(ENVIRONMENT) ## Hold the results of PROFILE against the reference, and say what moved
	$(PYTHON) -m mmstudy.study.compare $(OUT)/data outputs/reference/data

rank: $(ENVIRONMENT) ## Rank the expansions of a network: MODEL=examples/convolutional.py BUDGET=0.1
	$(PYTHON) notebooks/run.py notebooks/10_ranking.ipynb --profile rank --into $(RANKED) --expect $(10_ranking.makes) \
		--set model=$(MODEL) --set ranking_folder=$(RANKED)/cache --value ranking_budget=$(BUDGET) \
		$(10_ranking.value:%=--value %)

docs: $(ENVIRONMENT) ## Write the pages of all functions, room by room, into outputs/docs
	$(PYTHON) -m pdoc --docformat google --output-directory outputs/docs \
		$(patsubst mmstudy/%/__init__.py,mmstudy.%,$(wildcard mmstudy/*/__init__.py))

bench: $(ENVIRONMENT) ## Measure what batching gains here, and what a cluster costs, into outputs/bench
	$(PYTHON) benchmarks/bench.py
	$(PYTHON) benchmarks/scheduling.py

clean: ## Remove what make has made: the outputs but for the reference, and the environments
	rm -rf $(filter-out outputs/reference,$(wildcard outputs/*)) .venv .venv-bench

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

# ---- Rules -----------------------------------------------------------------------------------------------------

# The runner must be make's own child, to notice when make is gone: no shell syntax in this recipe.
define rule
$(call targets,$(1)) &: notebooks/$(1).ipynb notebooks/run.py notebooks/profiles/$(PROFILE).yml \
		$(call imports,$(1)) $($(1).reads) | $(ENVIRONMENT)
	$$(PYTHON) notebooks/run.py notebooks/$(1).ipynb --profile $$(PROFILE) \
		--expect $($(1).makes) $($(1).set:%=--set %) $($(1).value:%=--value %)
endef
$(foreach notebook,$(NOTEBOOKS),$(eval $(call rule,$(notebook))))

# The stamp comes last: an environment that is half made is made again.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed, and $(PYTHON3) is not: make PYTHON3=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON3) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,docs]'
	@touch $@
