#!/bin/sh
# Checks the GPU of this machine. Needs an NVIDIA driver, a processor and a C library like those of the machine that packed
# it (glibc as new or newer), and for the comparison with the emulator a python3.
# --quick leaves out compute-sanitizer; --patience SECONDS is how long each run of it may take. Other words go to
# `tartlet selftest`: --libcuda PATH, say.
here=$(dirname "$0")

# The newest version of glibc that the binary names, and this machine's: 2.x.
wants=$(LC_ALL=C grep -ao 'GLIBC_2\.[0-9]*' "$here/tartlet" | cut -d. -f2 | sort -n | tail -n 1)
has=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d. -f2)
if [ "${has:-0}" -lt "${wants:-0}" ]; then
    echo "The binary needs glibc 2.$wants, and this machine has ${has:+glibc 2.}${has:-another C library}: run make gpu-check on a system with this machine's C library." >&2
    exit 1
fi

if command -v python3 >/dev/null 2>&1; then
    exec python3 "$here/check.py" "$@"
fi
echo "There is no python3: only the self-test runs, and nothing is compared with the emulator." >&2
[ "$1" = --quick ] && shift
[ "$1" = --patience ] && shift 2
exec "$here/tartlet" selftest --backend cuda "$@"
