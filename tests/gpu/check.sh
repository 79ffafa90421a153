#!/bin/sh
# Checks the GPU of this machine. Needs an NVIDIA driver, a processor and a C library like those of the machine that packed
# it (glibc as new or newer), and for the comparison with the emulator a python3 of 3.9 or newer.
# --help says its words. Without a python3 only the self-test runs; it hears the words that are its own.
here=$(dirname "$0")

if [ ! -x "$here/tartlet" ]; then
    echo "$here/tartlet is not there, or not a program: unpack the bundle anew, where programs may run." >&2
    exit 1
fi
# The kind of processor in the ELF head, and this machine's.
kind=$(od -An -tx1 -j18 -N1 "$here/tartlet" | tr -d ' ')
case $(uname -m) in
    x86_64) own=3e ;;
    aarch64) own=b7 ;;
    *) own=other ;;
esac
if [ "$kind" != "$own" ]; then
    echo "The binary is for another kind of processor than this machine's $(uname -m): run make gpu-check on one of this kind." >&2
    exit 1
fi
# The newest version of glibc that the binary names, and this machine's: 2.x.
wants=$(LC_ALL=C grep -ao 'GLIBC_2\.[0-9]*' "$here/tartlet" | cut -d. -f2 | sort -n | tail -n 1)
has=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d. -f2)
if [ "${has:-0}" -lt "${wants:-0}" ]; then
    echo "The binary needs glibc 2.$wants, and this machine has ${has:+glibc 2.}${has:-another C library}: run make gpu-check on a system with this machine's C library." >&2
    exit 1
fi

if python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    exec python3 -B "$here/check.py" "$@"
fi
# What an earlier run found is not what this one finds.
rm -f "$here/result.json" || exit 1
echo "There is no python3 of 3.9 or newer: only the self-test runs, and nothing is compared with the emulator." >&2
# Our own words go, wherever they stand; the others keep their order.
left=$#
while [ "$left" -gt 0 ]; do
    word=$1
    shift
    left=$((left - 1))
    case $word in
        --quick | --patience=* | --call=* | --seconds=* | --out=*) ;;
        --patience | --call | --seconds | --out) if [ "$left" -gt 0 ]; then shift; left=$((left - 1)); fi ;;
        *) set -- "$@" "$word" ;;
    esac
done
exec "$here/tartlet" selftest --backend cuda "$@"
