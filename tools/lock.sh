#!/bin/sh
# Resolve the exact versions that `make` installs, for Python 3.11 to 3.13 on any system. torch is left out on purpose:
# its version stands in requirements/torch.txt and its build depends on the machine.
set -eu
compile() {
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command 'make lock' \
        --override requirements/without-torch.txt --no-emit-package torch "$@" >/dev/null
}
compile --upgrade pyproject.toml requirements/run.in --extra transformers -o requirements/lock.txt
compile --upgrade --group dev -c requirements/lock.txt -o requirements/dev.txt
