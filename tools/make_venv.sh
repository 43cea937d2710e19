#!/bin/sh
# Make .venv with the first Python that is new enough. An argument names the only one to try.
set -eu
if [ $# -gt 0 ]; then candidates=$1; else candidates="python3 python3.13 python3.12 python3.11"; fi
for python in $candidates; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        echo "Making .venv with $("$python" --version) ..."
        if "$python" -m venv .venv; then exit 0; fi
        rm -rf .venv
        echo "$python could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)." >&2
        exit 1
    fi
done
echo "Pilotlight needs Python 3.11 or newer; tried: $candidates. Name one: make PYTHON=/path/to/python3.12 ..." >&2
exit 1
