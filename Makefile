# The two commands that matter: `make say TEXT="Hello."` and `make test`. Both set everything up the first time.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TEXT   ?= Hello. This is my voice, made from three seconds of a recording.
OUT    ?= out.wav

.PHONY: say test test-all check clean
.DEFAULT_GOAL := help
.PHONY: help
help:
	@echo 'make say TEXT="..." [REF=voice.wav REF_TEXT="..."] [OUT=out.wav]   speak'
	@echo 'make test       the tests (a few minutes); make test-all adds the slow ones'
	@echo 'make check      what the tests do not see: ruff, mypy --strict'
	@echo 'make eval-codec, make eval-speech SPEAKER=...   how good it is (docs/evaluation.md); make bench, make long-text   how fast'
	@echo 'make sanitise   what is compiled, tested with checks of addresses (gcc)'
	@echo 'make train-kill   training killed at random, and whether its weights stay the same (docs/training.md)'
	@echo 'make prepare-kill, make prepare-speed   preparing with many workers: killed at random, and how fast (docs/data.md)'

# One stamp a set of packages: instant while pyproject.toml is unchanged.
$(VENV)/.installed: pyproject.toml src/valle/native/frames.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "valle needs Python 3.10 or newer; this is " + sys.version.split()[0] + ": set PYTHON=... to a newer one")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing valle into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check -q -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $@

# The texts travel through the environment, unexpanded: quotes and dollar signs stay what they are.
say: export SAY_TEXT := $(value TEXT)
say: export SAY_REF := $(value REF)
say: export SAY_REF_TEXT := $(value REF_TEXT)
say: export SAY_OUT := $(value OUT)
say: $(VENV)/.installed
	@$(BIN)/valle say $(if $(REF),-r "$$SAY_REF") $(if $(REF_TEXT),-s "$$SAY_REF_TEXT") -o "$$SAY_OUT" -- "$$SAY_TEXT"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests && $(BIN)/ruff format --check src tests && $(BIN)/mypy

# What is compiled, with the compiler's checks of addresses and undefined behaviour (gcc).
.PHONY: sanitise
sanitise: $(VENV)/.installed-dev
	@mkdir -p build
	gcc -O1 -g -std=c11 -fsanitize=address,undefined -fno-omit-frame-pointer -shared -fPIC -pthread src/valle/native/frames.c -o build/frames-sanitised.so -lm
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
	    VALLE_NATIVE=build/frames-sanitised.so $(BIN)/python -m pytest tests/native

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache

# Measuring (docs/evaluation.md). WHISPER: a folder or a name that faster-whisper fetches; SPEAKER: an ONNX file.
WHISPER  ?= base
SPEAKER  ?=
MANIFEST ?= ../shared/speech/manifest.jsonl
CODEC    ?= src/valle/assets/model/codec
JUDGES    = --manifest $(MANIFEST) --whisper $(WHISPER) $(if $(SPEAKER),--speaker $(SPEAKER))

$(VENV)/.installed-eval: $(VENV)/.installed
	@echo "installing what measuring needs"
	@$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[eval]'
	@touch $@

.PHONY: eval-codec eval-speech bench
eval-codec: $(VENV)/.installed-eval
	$(BIN)/valle eval codec --codec $(CODEC) $(JUDGES) $(ARGS)

eval-speech: $(VENV)/.installed-eval
	$(BIN)/valle eval speech $(if $(MODEL),--model $(MODEL)) $(JUDGES) $(ARGS)

# Long checks of preparing (docs/data.md, many workers). CORPUS: a folder with a manifest; ARGS="--n 40" for a rehearsal.
CORPUS   ?= ../shared/speech
WORKERS  ?= 2

$(VENV)/.installed-cluster: $(VENV)/.installed
	@echo "installing what many workers need"
	@$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[cluster]'
	@touch $@

.PHONY: prepare-kill prepare-speed
prepare-kill prepare-speed: prepare-%: $(VENV)/.installed-cluster
	$(BIN)/python tests/long/prepare.py $* --corpus $(CORPUS) --codec $(CODEC) --workers $(WORKERS) $(ARGS)

# Long checks of training (docs/training.md): killed at random 20 times, the weights at the end are the same.
.PHONY: train-kill
train-kill: $(VENV)/.installed-dev
	$(BIN)/python tests/long/train.py $(ARGS)

# Ten thousand characters: all spoken, in bounded memory (docs/performance.md).
.PHONY: long-text
long-text: $(VENV)/.installed
	$(BIN)/python tests/long/long_text.py $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/valle bench $(ARGS)
