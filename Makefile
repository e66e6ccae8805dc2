# Every target installs what it needs; a second run skips what is done.
PYTHON ?= /usr/bin/python3
VENV   := .venv
export VEDETTE_BUILD ?= release

.PHONY: build
build: $(VENV)/.installed
	$(VENV)/bin/python setup.py -q build_ext --inplace

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(VENV)/bin/pip install -q 'setuptools>=77' 'Cython>=3.1' 'numpy>=1.26'
	$(VENV)/bin/pip install -q --no-build-isolation -e '.[dev]'
	touch $@
