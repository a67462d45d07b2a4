# make lab    open the tour in JupyterLab         make test   run every notebook and every test
# make check  exported, clean, formatted          make clean  remove the environment
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: lab test check clean
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

check: $(VENV)/built
	$(BIN)/python tests/check_clean.py

clean:
	rm -rf $(VENV)
