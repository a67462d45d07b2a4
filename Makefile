# make lab    open the tour in JupyterLab         make test   run every notebook and every test
# make test-browser   the notebooks in JupyterLab in a real browser
# make check  exported, clean, formatted          make clean  remove the environment
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: lab test test-browser check clean
.DEFAULT_GOAL := lab

# Built once from the pins; again whenever a file that decides what is installed has changed
$(VENV)/built: settings.ini setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# JupyterLab listens on this machine alone and asks for its token, which the address below carries
lab: $(VENV)/built
	$(BIN)/jupyter lab --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) nbs/000_tour.ipynb

test: $(VENV)/built
	$(BIN)/python tests/run_notebooks.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests

# A real browser in front of a real JupyterLab; needs Debian's chromium, or CHROMIUM=its path
test-browser: $(VENV)/built
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m browser tests/test_browser.py

check: $(VENV)/built
	$(BIN)/python tests/check_clean.py

clean:
	rm -rf $(VENV)
