# Galley: recipes go in, a talking model comes out. `make help` says how.
#
# A stage is a file target that ends with a receipt, outputs/NAME/STAGE.json: verified, renamed into place, then written down.
# NAME is the recipe's name; a variant's changes are part of it: outputs/pirate+lora_r=16/.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --warn-undefined-variables --no-print-directory
.DELETE_ON_ERROR:
.SECONDARY:
.SECONDEXPANSION:
# Our rooms write these whole or not at all. What Ctrl-C made make delete (a snapshot, say) would be made anew, and all that stands on it.
.PRECIOUS: $(addprefix outputs/%/,recipe.yml data.sha256 export.yml prompt.sha256 $(addsuffix .json,preprocess train merge gguf modelfile lora)) outputs/nano/%.json
.DEFAULT_GOAL := help
ifeq ($(filter 4.% 5.%,$(MAKE_VERSION)),)
$(error GNU Make 4 or newer is needed, this is $(MAKE_VERSION); on macOS: brew install make, then run gmake)
endif

# --- what you may set: on the command line or in the environment ---
RECIPE ?= pirate
SET ?=
BASE ?=
GPUS ?=
QUANT ?=
NNODES ?=
NODE_RANK ?=
MASTER ?=
ASK ?=
FORCE ?=
DEBUG ?=
FIX ?=
STRICT ?=
JSON ?=
GPU ?=
PRICE ?=
RUN ?=
PORT ?=
RUNS ?=
STAGES ?=
BY ?=
JOBS ?=
UNTIL ?=
STEPS ?=
TASKS ?=
SAMPLE ?=
KEEP ?=
KEY ?=
TO ?=
WHAT ?=
GO ?=
PRIVATE ?=
OLLAMA_REGISTRY ?=
Q ?=
RETRIES ?= 2
STOP ?= 1
VALIDATE ?= 1
TOKENS ?= 64
TEMPERATURE ?=
TOP_P ?=
SEED ?= 1
XDG_CACHE_HOME ?= $(HOME)/.cache
LLAMA_CPP_VERSION := 0.3.36
# The newest with a llama-server beside it, and the last with the engine inside.
OLLAMA_TESTED := 0.34.2 0.24.0
OLLAMA_VERSION ?= $(firstword $(OLLAMA_TESTED))
export BASE GPUS QUANT NNODES NODE_RANK MASTER ASK FORCE DEBUG KEEP KEY TASKS TO OLLAMA_REGISTRY Q UNTIL XDG_CACHE_HOME
override Q := $(value Q)# a question may hold a $

nothing :=
NAME := $(RECIPE)$(subst $(nothing) ,,$(foreach change,$(SET),+$(change)))
OUT := outputs/$(NAME)
CHOSEN := $(filter command line environment,$(origin RECIPE))
# `make ask` takes two recipes that differ in their family only: RECIPE names either of them.
MCQ ?= $(patsubst saq%,mcq%,$(if $(filter mcq% saq%,$(NAME)),$(NAME),mcq))
SAQ ?= $(patsubst mcq%,saq%,$(MCQ))
CACHE := $(XDG_CACHE_HOME)/galley
# A tool's folder is named by its version and the hash of its pin, so a fresh clone takes what another clone built.
pin = $(shell sha256sum requirements/$1.txt | cut -c1-8)
UV_HOME := $(CACHE)/uv-0.13.8-$(call pin,uv)
UV := $(UV_HOME)/bin/uv
PY := .venv/bin/python
LIGHT := .venv/light
TRAIN := .venv/train
LLAMA_CPP := $(CACHE)/llama.cpp-$(LLAMA_CPP_VERSION)-$(call pin,llama.cpp)
LLAMA_CPP_DIR ?= $(LLAMA_CPP)
LLAMA_BUILT := $(if $(filter $(LLAMA_CPP),$(LLAMA_CPP_DIR)),$(LLAMA_CPP)/build/bin/llama-server)
OLLAMA_BUILT := $(CACHE)/ollama-$(OLLAMA_VERSION)/bin/ollama
OLLAMA ?= $(or $(shell command -v ollama),$(wildcard $(OLLAMA_BUILT)))
export LLAMA_CPP_DIR OLLAMA
# Without its bytecode Axolotl takes 14 s more to import, in every stage.
unexport PYTHONDONTWRITEBYTECODE
# What `make eval` needs of the chain for each stage that it scores.
needs.base := recipe.yml
needs.adapter := train.json
needs.merged := merge.json
needs.gguf := modelfile.json
needs.ollama := modelfile.json
SCORE = $(PY) -m scripts.score $(NAME) $(STAGES) $(if $(SAMPLE),--sample) $(if $(TASKS),--tasks "$$TASKS") $(if $(JSON),--json)
# Scaled, another run's adapter becomes a variant: pirate-nano+x_strength=2.0 is made from outputs/pirate-nano/train.json, and trains nothing.
unscaled = $(subst $(nothing) ,+,$(filter-out x_strength=%,$(subst +, ,$1)))
scaled_from = outputs/$1/recipe.yml outputs/$1/data.sha256 outputs/$(call unscaled,$1)/train.json
trained_from = $(if $(findstring +x_strength=,$1),$(call scaled_from,$1),outputs/$1/preprocess.json)
STRONGER := $(OUT)+x_strength=$(BY)/train.json
SOURCE := outputs/$(call unscaled,$(NAME))/train.json
# A nano recipe names its nano base: pirate-nano+seed=1 stands on outputs/nano/pirate.
base_of = $(addsuffix .json,$(shell sed -n 's|^base_model: *\(outputs/nano/[A-Za-z0-9_-]*\).*|\1|p' recipes/$(firstword $(subst +, ,$1)).yml 2>&-))

# --- the stages, in their order ---
# What has a line in `make help` is a command, not a file.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST))) .demo-chat FORCE
base: $$(call base_of,$$(subst -nano-nano,-nano,$$(RECIPE)-nano)) ## the nano base of the recipe's nano twin, from scratch on the CPU
	@:
preprocess: $$(OUT)/preprocess.json ## tokenize the data, and prove that replies carry the loss
	@echo "preprocess  $(OUT)/prepared"
train: $$(OUT)/train.json ## train the adapter (GPUS=n keeps the global batch; NNODES, NODE_RANK, MASTER for several nodes)
	@echo "train       $(OUT)/adapter"
merge: $$(OUT)/merge.json ## merge it into the base, and prove the sum
	@echo "merge       $(OUT)/merged"
gguf: $$(OUT)/gguf.json ## convert and quantize, and prove tokens and logits
	@echo "gguf        $(OUT)/gguf"
modelfile: $$(OUT)/modelfile.json ## write the Modelfile beside the GGUF (QUANT= another quant type)
	@echo "modelfile   $(OUT)/gguf/Modelfile"
ollama: $$(OUT)/modelfile.json ## create the model in Ollama, and prove its prompts (FORCE=1 overwrites a model that is not ours)
	@$(PY) -m scripts.ollama $(NAME)
chat: $$(OUT)/modelfile.json ## talk to it, through Ollama or else llama-server (ASK="…" asks and ends)
	@$(PY) -m scripts.chat $(NAME) $(if $(ASK),--ask "$$ASK")
cards: | $(TRAIN) ## flip cards to study a topic, on a page of this machine, written by the model in Ollama (PORT=7860)
	@$(PY) -m scripts.cards $(NAME) $(if $(PORT),--port $(PORT))
ask: $$(if $$(strip $$(Q)),,.ask-what) $$(addprefix outputs/,$$(addsuffix /lora.json,$$(MCQ) $$(SAQ))) ## Q="…" to the adapters mcq and saq on one base (RECIPE=mcq-nano; RETRIES=2 STOP=0 VALIDATE=0 SAMPLE=1 TEMPERATURE=0.7 TOP_P=0.9 TOKENS=64 SEED=1)
	@$(PY) -m scripts.ask $(MCQ) $(SAQ) --retries $(RETRIES) --tokens $(TOKENS) --seed $(SEED) $(if $(SAMPLE),--sample) $(if $(TEMPERATURE),--temperature $(TEMPERATURE)) $(if $(TOP_P),--top-p $(TOP_P)) $(if $(filter 0,$(STOP)),--no-stop) $(if $(filter 0,$(VALIDATE)),--raw) -- "$$Q"
eval: $$(addprefix $$(OUT)/,$$(sort $$(foreach s,$$(or $$(STAGES),$$(if $$(TASKS),merged,gguf)),$$(needs.$$s)))) | $(TRAIN) ## score the held-out prompts (STAGES="base adapter merged gguf ollama" SAMPLE=1 JSON=1; TASKS="arc_easy …": lm-eval's instead)
	@$(if $(and $(OLLAMA),$(if $(STAGES)$(TASKS),$(filter ollama,$(STAGES)),all)),$(PY) -m scripts.serve outputs/ollama bash -c '$(PY) -m scripts.ollama $(NAME) >&2 && $(SCORE)',$(SCORE))
dial: $$(OUT)/train.json | $(TRAIN) ## the adapter at 0.25 to 4 times its strength: its task against what was forgotten, and the knee (BY="1 1.5 2": others; JSON=1)
	@$(PY) -m scripts.dial $(NAME) $(BY) $(if $(JSON),--json)
strength: $$(if $$(BY),$$(STRONGER)) ## scale the trained adapter exactly, without training, as a variant: BY=2.0; then make merge SET="x_strength=2.0" …
	@$(if $(BY),echo "strength    $(dir $(STRONGER))adapter",echo "strength: say how much: make strength RECIPE=$(RECIPE) BY=2.0" >&2; exit 2)
demo: ## the whole chain on this machine, no GPU needed, ending in a conversation
	@$(MAKE) outputs/pirate-nano/modelfile.json
	@if [ -n "$(OLLAMA)" ]; then \
	  $(PY) -m scripts.serve outputs/ollama bash -c '$(MAKE) ollama RECIPE=pirate-nano SET= && $(MAKE) .demo-chat'; \
	  echo "To go on: make chat RECIPE=pirate-nano"; \
	else \
	  $(MAKE) .demo-chat; \
	  echo "This was llama-server. For \`ollama run pirate-nano\`: install Ollama (ollama.com), or \`make ollama-server\` where there is Go."; \
	fi

.ask-what:
	@echo 'ask: say what: make ask Q="What is the capital of Norway?"' >&2; exit 2
.demo-chat:
	@$(PY) -m scripts.chat pirate-nano --ask "What should I cook tonight?" "I feel lonely tonight." "What is a variable in Python?"

outputs/nano/%.json: datasets/$$(firstword $$(subst -, ,$$*))/train-plain.jsonl modelfiles/llama3.jinja scripts/base.py | $(TRAIN)
	@$(PY) -m scripts.base $*
outputs/%/recipe.yml outputs/%/data.sha256 outputs/%/export.yml outputs/%/prompt.sha256: FORCE | $(LIGHT)
	@$(PY) -m scripts.snapshot $* $(if $(filter train merge gguf modelfile ollama chat ask eval dial strength,$(MAKECMDGOALS)),--train)
outputs/%/preprocess.json: outputs/%/recipe.yml outputs/%/data.sha256 $$(call base_of,$$*) | $(TRAIN)
	@$(PY) -m scripts.preprocess $*
outputs/%/train.json: $$(call trained_from,$$*)
	@$(PY) -m scripts.$(if $(findstring +x_strength=,$*),strength,train) $*
	-@$(PY) -m scripts.track $*
# Named outright, for make goes through a pattern once only on its way: the scaled adapter's rule would not be tried again for what it scales.
ifneq ($(findstring +x_strength=,$(NAME))$(filter strength,$(MAKECMDGOALS)),)
$(SOURCE):
endif
outputs/%/merge.json: outputs/%/train.json
	@$(PY) -m scripts.merge $*
outputs/%/lora.json: outputs/%/train.json outputs/%/export.yml | $$(LLAMA_BUILT)
	@$(PY) -m scripts.lora $*
outputs/%/gguf.json: outputs/%/merge.json outputs/%/export.yml | $$(LLAMA_BUILT)
	@$(PY) -m scripts.gguf $*
outputs/%/modelfile.json: outputs/%/gguf.json outputs/%/prompt.sha256
	@$(PY) -m scripts.modelfile $*

# --- afterwards: what came of it ---
diagnose: | $(LIGHT) ## how a run went, from its log alone: RUN=folder or trainer_state.json, else RECIPE's (STRICT=1, JSON=1)
	@$(PY) -m scripts.diagnose $(or $(RUN),$(NAME)) $(if $(STRICT),--strict) $(if $(JSON),--json)
report: | $(LIGHT) ## all that is known of a run as pages, reports/NAME/, and its line in reports/experiments.csv
	@$(PY) -m scripts.report $(NAME)
compare: | $(LIGHT) ## RUNS="a b c": what differs, and whether it is more than noise (JSON=1)
	@$(PY) -m scripts.compare $(RUNS) $(if $(JSON),--json)
receipt: | $(LIGHT) ## the chain from the data's bytes to the Ollama digest, every link checked (JSON=1)
	@$(PY) -m scripts.lineage $(NAME) $(if $(JSON),--json)
ladder: | $(TRAIN) ## a run that did not learn, then its remedies until one has learned, and a report (RECIPE=undertrained-nano: here; UNTIL=optimal; STEPS="25 100": one recipe without the watch)
	@$(PY) -m scripts.ladder $(if $(CHOSEN),$(NAME),undertrained) $(if $(STEPS),--steps $(STEPS))
reproduce: | $(TRAIN) $(LLAMA_BUILT) ## run the recipe again from its receipts in a clean folder, and explain every difference (KEEP=1)
	@$(PY) -m scripts.reproduce $(NAME)
push: | $(LIGHT) ## publish it, TO=user/name: adapter, merged, GGUF on the hub, ollama push (a dry run; GO=1 sends; WHAT="adapter gguf" PRIVATE=1)
	@$(PY) -m scripts.push $(NAME) --to "$$TO" $(if $(WHAT),--what $(WHAT)) $(if $(filter 1,$(GO)),--go) $(if $(filter 1,$(PRIVATE)),--private)
fault-test: | $(TRAIN) $(LLAMA_BUILT) ## kill every stage at random moments, a hundred times (half an hour): nothing half-made may pass
	@$(PY) -m scripts.faults --report

matrix: | $(TRAIN) $(LLAMA_BUILT) ## every nano twin, and what the claims in recipes/facts/claims.yml need, one to a core (hours; goes on where it was; JOBS=1): reports/README.md
	@$(PY) -m scripts.matrix $(if $(JOBS),--jobs $(JOBS))

# --- looking and tidying ---
status: | $(LIGHT) ## which stages of which recipe stand, are stale, are missing
	@$(PY) -m scripts.status
lint: | $(LIGHT) ## before the GPU: what is wrong with the recipes and their data (FIX=1 mends, STRICT=1, JSON=1; RECIPE=… one of them)
	@$(PY) -m scripts.lint $(if $(CHOSEN),recipes/$(RECIPE).yml) $(if $(FIX),--fix) $(if $(STRICT),--strict) $(if $(JSON),--json)
plan: | $(LIGHT) ## before the GPU: memory, time, cost, disk (GPU=a100-80g GPUS=4 PRICE=1.8 an hour and GPU; CORES=8 without one; JSON=1)
	@$(PY) -m scripts.plan $(NAME) $(if $(GPU),--gpu $(GPU)) $(if $(GPUS),--gpus $(GPUS)) $(if $(CORES),--cores $(CORES)) $(if $(PRICE),--price $(PRICE)) $(if $(JSON),--json)
explain: | $(LIGHT) ## KEY=lora_r: what a key is, when to change it, and what that costs here by `make plan` (no KEY: all of them; JSON=1)
	@$(PY) -m scripts.explain "$$KEY" $(NAME) $(if $(GPU),--gpu $(GPU)) $(if $(GPUS),--gpus $(GPUS)) $(if $(PRICE),--price $(PRICE)) $(if $(JSON),--json)
doctor: | $(LIGHT) ## what this machine can do, and whether RECIPE=… can run here
	@$(PY) -m scripts.doctor $(if $(CHOSEN),$(NAME)) $(if $(JSON),--json)
xray: $$(OUT)/preprocess.json ## what the model will be taught: the prepared rows as tokens, reports/NAME/xray.html
	@$(PY) -m scripts.xray $(NAME) $(if $(JSON),--json)
schema: | $(TRAIN) ## refresh recipes/schema/axolotl.json from the installed Axolotl, and the table of lint's rules
	@$(PY) -m scripts.schema && $(PY) -m scripts.lint --table
calibrate: | $(TRAIN) ## measure the memory of training steps for the planner: real ones on a GPU, traced ones without
	@$(PY) -m scripts.calibrate
validate: | $(LIGHT) ## check the datasets: rows, twins, near-duplicates, leaks
	@$(PY) -m scripts.validate
clean: ## delete the outputs of one recipe: make clean RECIPE=…
	@$(if $(CHOSEN),,echo "clean: say which: make clean RECIPE=$(RECIPE)" >&2; exit 2)
	@[ -n "$(RECIPE)" ] && [ -f "$(OUT)/recipe.yml" ] || { echo "clean: $(OUT) holds no recipe's outputs; \`make status\` lists them" >&2; exit 2; }
	@rm -rf -- "$(OUT)"
test: | $(TRAIN) $(LLAMA_BUILT) ## set everything up and prove that all of it works
	@if command -v go >/dev/null; then for v in $(OLLAMA_TESTED); do $(MAKE) ollama-server OLLAMA_VERSION=$$v; done; fi
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
bench: | $(TRAIN) $(LLAMA_BUILT) ## measure what the README claims (minutes), as a table and JSON
	@$(PY) -m scripts.bench
help: ## this page
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@printf '\n'; printf '  %-19s %s\n' 'RECIPE=$(RECIPE)' 'recipes: $(basename $(notdir $(wildcard recipes/*.yml)))' 'SET="$(SET)"' 'key=value …: a variant with its own outputs' \
	  'BASE=$(BASE)' 'another place for the same base model' 'GPUS=$(GPUS)' 'ranks on this machine' 'QUANT=$(QUANT)' 'the quant type Ollama gets' 'DEBUG=$(DEBUG)' '1: tracebacks'

# --- set-up: nothing but make, bash, a python3 and a C++ compiler is taken for granted ---
setup: | $(TRAIN) $(LLAMA_BUILT) ## install and build everything now rather than when first needed
	@:
flash: requirements/flash.txt | $(TRAIN) ## GPU machines: flash-attn, compiled here (an hour; without it Axolotl takes a prebuilt kernel from the hub)
	@$(UV) pip install -q --python .venv --no-build-isolation --no-deps --require-hashes -r $<
ollama-server: $(OLLAMA_BUILT) ## where there is Go: install a pinned Ollama into the tool cache
	@echo "ollama      $(OLLAMA_BUILT)"; echo "            to use it yourself: export PATH=$(dir $(OLLAMA_BUILT)):\$$PATH; ollama serve"
lock: pyproject.toml | $(UV) ## pin requirements/*.txt anew from pyproject.toml, with hashes
	@$(UV) pip compile -q pyproject.toml --extra train --python-version 3.12 --generate-hashes --no-header -o requirements/train.txt
	@$(UV) pip compile -q pyproject.toml --constraint requirements/train.txt --python-version 3.12 --generate-hashes --no-header -o requirements/light.txt

$(UV):
	@echo "set-up      uv"
	@rm -rf $(UV_HOME); mkdir -p $(CACHE); python3 -m venv $(UV_HOME)
	@$(UV_HOME)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
$(LIGHT): requirements/light.txt | $(UV)
	@echo "set-up      light packages"
	@if command -v pyenv >/dev/null; then export PYENV_VERSION="$$(pyenv latest 3.12)"; fi; $(UV) venv -q --allow-existing --python 3.12 .venv
	@$(UV) pip install -q --python .venv --require-hashes -r $<
	@echo "$(CURDIR)" > .venv/lib/python3.12/site-packages/galley.pth
	@touch $@
$(TRAIN): requirements/train.txt | $(LIGHT)
	@echo "set-up      training packages (7 GB)"
	@$(UV) pip install -q --python .venv --require-hashes -r $<
	@touch $@
$(LLAMA_CPP)/build/bin/llama-server: | $(TRAIN)
	@PIP=$(UV_HOME)/bin/python $(PY) -m scripts.tools llama.cpp $(LLAMA_CPP)
$(CACHE)/ollama-%/bin/ollama: | $(TRAIN) $$(LLAMA_BUILT)
	@$(PY) -m scripts.tools ollama $(CACHE)/ollama-$* $*
FORCE:
