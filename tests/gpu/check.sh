#!/bin/sh
# Checks the GPU of this machine. Needs an NVIDIA driver, and for the comparison with the emulator a python3.
# --quick leaves out compute-sanitizer. Other words go to `tartlet selftest`: --libcuda PATH, say.
cd "$(dirname "$0")" || exit 1
if command -v python3 >/dev/null 2>&1; then
    exec python3 check.py "$@"
fi
echo "There is no python3: only the self-test runs, and nothing is compared with the emulator." >&2
exec ./tartlet selftest --backend cuda "$@"
