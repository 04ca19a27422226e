#!/bin/sh
# Make the development environment in the folder given, with everything that run, test and check need.
# Interrupted, it can be run again: the stamp is written last.
set -eu
venv=$1
find_python() {
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(not sys.version_info >= (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.10 or newer was found. Install one, or run: make PYTHON=/path/to/python3" >&2
  exit 1
}
python=$(find_python)
if [ ! -x "$venv/bin/python" ]; then
  "$python" -m venv "$venv"
fi
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  "$venv/bin/python" -m pip install --quiet "$TORCH"
fi
"$venv/bin/python" -m pip install --quiet --editable ".[dev]"
touch "$venv/.installed"
