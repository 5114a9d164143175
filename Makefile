# make setup        .venv with everything in it; all other targets see to what they need themselves
# make quickstart   fetch, fine-tune, evaluate, show (ARGS="..." goes to `mmlm quickstart`)
# make test         the fast tests, two files at once (ARGS="..." goes to pytest: ARGS="-n 0 --pdb")
# make test-slow    the slow ones, likewise;  make test-all: both
# make families     every decoder of the installed transformers, the slow ones too; writes docs/decoders.md
# make backbones    a network of each family of the installed timm and open_clip; writes docs/backbones.md
# make zener        token configurations compared, by a probe and by tuning the default decoder; writes docs/zener.md
# make zener-probe  the probe alone, in minutes (ARGS="..." goes to `python -m finetune.zener`)
# make harnesses    the tests that need lmms-eval or lm_eval, in an environment of their own: .venv-harnesses, 7 GB
# make check        format, lint, types; not the tests, which .ci/run would then run twice
# make clean        removes what make made here, .venv and .venv-harnesses too; runs/ and the cache folder stay

PYTHON ?= python3
BIN := .venv/bin
USER := .venv/.quickstart# what the quickstart needs
DEV := .venv/.dev# and what the tests need: torchao makes each start of transformers a second slower
HARNESSES := .venv-harnesses/.made# lmms-eval, lm_eval and the hundred packages that they come with

# Waiting OpenMP threads spin; where another process wants the core, that makes torch 5 to 15 times slower.
test test-slow families backbones zener zener-probe harnesses: export GOMP_SPINCOUNT = 0

.PHONY: setup quickstart test test-slow test-all families backbones zener zener-probe harnesses check clean

setup: $(DEV)

$(USER): EXTRAS := quickstart
$(DEV): EXTRAS := quickstart,dev
$(USER) $(DEV): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmlm needs Python 3.11 or newer and $(PYTHON) is %d.%d; name a newer one: make setup PYTHON=python3.12" % sys.version_info[:2])'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[$(EXTRAS)]"
	touch $@

quickstart: $(USER)
	$(BIN)/mmlm quickstart $(ARGS)

test: setup
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(ARGS)

test-slow: setup
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile $(ARGS)

test-all: test test-slow

families: setup
	$(BIN)/python -m pytest tests/mmlm/test_families.py --families docs/decoders.md $(ARGS)

backbones: setup
	$(BIN)/python -m pytest tests/vision/test_families.py --backbones docs/backbones.md $(ARGS)

zener: zener-probe
	$(BIN)/python -m finetune.zener tune configs/zener.yaml --page docs/zener.md $(ARGS)

zener-probe: setup
	$(BIN)/python -m finetune.zener probe configs/zener.yaml --page docs/zener.md $(ARGS)

$(HARNESSES): pyproject.toml
	test -x .venv-harnesses/bin/pip || $(PYTHON) -m venv .venv-harnesses
	.venv-harnesses/bin/python -m pip install --disable-pip-version-check -e . "lmms-eval>=0.7.3" "lm_eval>=0.4.13" "hypothesis>=6.170" "pytest>=9.2"
	touch $@

harnesses: $(HARNESSES)
	.venv-harnesses/bin/python -m pytest tests/eval/test_lmms.py tests/eval/test_lm_eval.py $(ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-harnesses build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
