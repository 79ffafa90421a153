#!/bin/sh
# Checks the GPU of this machine. Needs an NVIDIA driver, a processor and a C library like those of the machine that packed
# it (glibc as new or newer), and for the comparison with the emulator a python3.
# --quick leaves out compute-sanitizer. Other words go to `tartlet selftest`: --libcuda PATH, say.
here=$(dirname "$0")
if command -v python3 >/dev/null 2>&1; then
    exec python3 "$here/check.py" "$@"
fi
echo "There is no python3: only the self-test runs, and nothing is compared with the emulator." >&2
[ "$1" = --quick ] && shift
exec "$here/tartlet" selftest --backend cuda "$@"
