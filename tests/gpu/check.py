"""What `make gpu-check` packs, run on a machine with a GPU: the self-test, and its results beside the emulator's.

Owns: the comparison, the sanitizers' runs, one table, one JSON (result.json). Never: a kernel's check; the binary has
those. Only Python's standard library is used.

recorded.json is what the same binary found on the emulator, from the same seeds. Where a kernel's bits do not depend on the
device, digests of all that it computed must be equal. Where they do (attention, products of bf16), the binary holds each
number within its bounds, and here a sample is compared with the emulator's: the root mean square of the differences, as a
share of that of the numbers, is at most what the record says.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
BINARY = HERE / "tartlet"
# The tools of compute-sanitizer. Each finds what the others do not look for.
TOOLS = ["memcheck", "racecheck", "initcheck", "synccheck"]
# Seconds for one run: under a sanitizer a kernel is some hundred times slower.
PATIENCE = 1800


def run(command, patience):
    """The exit status, standard output and standard error; a command that does not end is ended, with all that it started."""
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True)
    except OSError as cause:
        return None, "", f"{command[0]} cannot be run here ({cause}): pack it on a machine with this kind of processor"
    try:
        output, complaint = child.communicate(timeout=patience)
        return child.returncode, output, complaint.strip()
    except subprocess.TimeoutExpired:
        return None, "", f"it did not end within {patience:g} s"
    finally:
        # A sanitizer starts the program and ends without it. Whoever is interrupted here leaves nothing behind either.
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


def selftest(arguments):
    command = [str(BINARY), "selftest", "--backend", "cuda", "--json", *arguments]
    status, output, complaint = run(command, PATIENCE)
    try:
        report = json.loads(output)
    except json.JSONDecodeError:
        sys.exit(complaint or f"the self-test ended with status {status} and said nothing")
    if report.get("broken_off"):
        print(report["broken_off"], file=sys.stderr)
    return report


def numbers(sample):
    """Its floats, of their bits in hexadecimal digits."""
    data = bytes.fromhex(sample["numbers"])
    return struct.unpack(f"<{len(data) // 4}f", data)


def apart(sample, recorded):
    """The root mean square of the differences, as a share of that of what is recorded."""
    got, want = numbers(sample), numbers(recorded)
    if len(got) != len(want):
        return float("nan")
    return (sum((a - b) ** 2 for a, b in zip(got, want)) / sum(b**2 for b in want)) ** 0.5


def compare(report, recorded):
    """One row per check: name, whether all is well, words."""
    wanted = {check["name"]: check for check in recorded["checks"]}
    bandwidth = next((c.get("bytes_per_second") for c in report["checks"] if c["name"] == "bandwidth"), None)
    rows = []
    for check in report["checks"]:
        name, well, words = check["name"], check["passed"], []
        if not well:
            words.append(check["wrong"])
        record = wanted.pop(name, {})
        if record.get("digest") and well:
            well = record["digest"] == check.get("digest")
            words.append("as on the emulator" if well else "NOT as on the emulator")
        if record.get("sample") and well:
            distance, most = apart(check["sample"], record["sample"]), record["sample"]["within"]
            well = distance <= most  # NaN is not
            words.append(f"{'' if well else 'NOT '}as on the emulator: {distance:.1e} apart, {most:.1e} allowed")
        rate = check.get("bytes_per_second")
        if rate:
            share = f", {100 * rate / bandwidth:.0f} % of the bandwidth" if bandwidth and name != "bandwidth" else ""
            words.append(f"{rate / 1e9:.1f} GB/s{share}")
        if check.get("operations_per_second"):
            words.append(f"{check['operations_per_second'] / 1e12:.1f} TOP/s")
        rows.append((name, well, ", ".join(words) or f"{check['cases']} cases"))
    rows += [(name, False, "not run on this device") for name in wanted]
    return rows


def sanitizers(arguments, patience):
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if not tool:
        return []
    rows = []
    for name in TOOLS:
        command = [tool, "--tool", name, "--error-exitcode", "9", str(BINARY), "selftest", "--backend", "cuda"]
        status, output, complaint = run([*command, "--untimed", *arguments], patience)
        lines = [line for line in (output + "\n" + complaint).splitlines() if line.startswith("=========")]
        rows.append((name, status == 0, lines[-1].strip("= ") if lines else complaint))
    return rows


def main():
    words = argparse.ArgumentParser(prog="check.sh", epilog="Other words go to `tartlet selftest`.", allow_abbrev=False)
    words.add_argument("--quick", action="store_true", help="leave out compute-sanitizer")
    words.add_argument("--patience", type=float, default=PATIENCE, help="seconds that a run of it may take")
    words, arguments = words.parse_known_args()
    quick = words.quick
    # What an earlier run found is not what this one finds. It also shows that this one can be kept.
    try:
        (HERE / "result.json").write_text("")
    except OSError as cause:
        sys.exit(f"{cause.filename} cannot be written ({cause.strerror}): unpack the bundle where you may write")
    report = selftest(arguments)
    recorded = json.loads((HERE / "recorded.json").read_text())
    rows = compare(report, recorded)
    sanitized = [] if quick else sanitizers(arguments, words.patience)
    print(report["device"])
    print(f"\n{'kernel':<20} {'registers':>9} {'spilled bytes':>14}")
    for kernel in report["kernels"]:
        print(f"{kernel['name']:<20} {kernel['registers']:>9} {kernel['spilled_bytes']:>14}")
    print(f"\n{'check':<20} {'':<6} result")
    for name, well, words in rows + sanitized:
        print(f"{name:<20} {'ok' if well else 'FAILED':<6} {words}")
    if not sanitized:
        print("\ncompute-sanitizer was not run" + (" (--quick)" if quick else ": it is not there"))
    passed = all(well for _, well, _ in rows + sanitized)
    keys = ("name", "passed", "result")
    result = {
        "device": report["device"],
        "passed": passed,
        "compared": [dict(zip(keys, row)) for row in rows],
        "sanitizers": [dict(zip(keys, row)) for row in sanitized],
        "selftest": report,
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"\ngpu-check {'passed' if passed else 'FAILED'}; the numbers are in result.json")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
