"""What `make gpu-check` packs, run on a machine with a GPU: the self-test, and its results beside the emulator's.

Owns: the comparison, the sanitizers' runs, one table, one JSON (result.json). Never: a kernel's check; the binary has
those. Only Python's standard library is used.

recorded.json is what the same binary found on the emulator: of each launch its name, the seed of its data, and what came out.
The self-test makes the same launches from the same seeds here. Where a kernel's bits do not depend on the device, the
digests of all that a launch wrote must be equal. Where they do (attention, products of bf16), the binary holds each number
within its bounds, and here the launch's numbers, of many some, are compared with the emulator's: the root mean square of the
differences, as a share of that of the numbers, is at most what the record says.
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


def give_up(why):
    """Ends with a sentence, which result.json has too."""
    keep({"passed": False, "why": why})
    sys.exit(why)


def keep(result):
    (HERE / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def recording():
    path = HERE / "recorded.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as cause:
        give_up(f"{path} cannot be read ({cause}): unpack the bundle anew")


def selftest(arguments):
    command = [str(BINARY), "selftest", "--backend", "cuda", "--json", *arguments]
    status, output, complaint = run(command, PATIENCE)
    try:
        report = json.loads(output)
    except json.JSONDecodeError:
        give_up(complaint or f"the self-test ended with status {status} and said nothing")
    if report.get("broken_off"):
        print(report["broken_off"], file=sys.stderr)
    return report


def numbers(launch):
    """Its floats, of their bits in hexadecimal digits."""
    data = bytes.fromhex(launch["numbers"])
    return struct.unpack(f"<{len(data) // 4}f", data)


def apart(launch, recorded):
    """The root mean square of the differences, as a share of that of what is recorded."""
    got, want = numbers(launch), numbers(recorded)
    if len(got) != len(want):
        return float("nan")
    difference, size = sum((a - b) ** 2 for a, b in zip(got, want)), sum(b**2 for b in want)
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return (difference / size) ** 0.5


def compare_launches(check, recorded):
    """One row per launch that is recorded: its name, seed, whether it is as recorded, how far apart (exact ones: none)."""
    found = {(launch["launch"], launch["seed"]): launch for launch in check.get("launches", [])}
    rows = []
    for record in recorded.get("launches", []):
        name, seed = record["launch"], record["seed"]
        launch, distance = found.get((name, seed), {}), None
        if "digest" in record:
            well = record["digest"] == launch.get("digest")
        else:
            distance = apart(launch, record) if "numbers" in launch else float("nan")
            well = distance <= record["within"]  # NaN is not
        rows.append({"launch": name, "seed": seed, "passed": well, "apart": distance})
    return rows


def compare(report, recorded):
    """One row per check: name, whether all is well, words, and the rows of its launches."""
    wanted = {check["name"]: check for check in recorded["checks"]}
    bandwidth = next((c.get("bytes_per_second") for c in report["checks"] if c["name"] == "bandwidth"), None)
    rows = []
    for check in report["checks"]:
        name, well, words = check["name"], check["passed"], []
        record = wanted.pop(name, {})
        launches = compare_launches(check, record) if well else []
        if not well:
            words.append(check["wrong"])
        wrong = [launch for launch in launches if not launch["passed"]]
        for launch in wrong:
            far = f", {launch['apart']:.1e} apart" if launch["apart"] is not None else ""
            words.append(f"NOT as on the emulator: {launch['launch']}, seed {launch['seed']}{far}")
        if launches and not wrong:
            distances = [launch["apart"] for launch in launches if launch["apart"] is not None]
            most = max((r["within"] for r in record["launches"] if "within" in r), default=None)
            far = f", at most {max(distances):.1e} apart, {most:.1e} allowed" if distances else ""
            words.append(f"{len(launches)} launches as on the emulator{far}")
        rate = check.get("bytes_per_second")
        if rate:
            share = f", {100 * rate / bandwidth:.0f} % of the bandwidth" if bandwidth and name != "bandwidth" else ""
            words.append(f"{rate / 1e9:.1f} GB/s{share}")
        if check.get("operations_per_second"):
            words.append(f"{check['operations_per_second'] / 1e12:.1f} TOP/s")
        rows.append((name, well and not wrong, "; ".join(words) or f"{check['cases']} cases", launches))
    rows += [(name, False, "not run on this device", []) for name in wanted]
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
        rows.append((name, status == 0, lines[-1].strip("= ") if lines else complaint, []))
    return rows


def main():
    words = argparse.ArgumentParser(prog="check.sh", epilog="Other words go to `tartlet selftest`.", allow_abbrev=False)
    words.add_argument("--quick", action="store_true", help="leave out compute-sanitizer")
    words.add_argument("--patience", type=float, default=PATIENCE, help="seconds that a run of it may take")
    words, arguments = words.parse_known_args()
    quick = words.quick
    # What an earlier run found is not what this one finds. It also shows that this one can be kept.
    try:
        keep({"passed": False, "why": "it did not come to its end"})
    except OSError as cause:
        sys.exit(f"{cause.filename} cannot be written ({cause.strerror}): unpack the bundle where you may write")
    recorded = recording()
    report = selftest(arguments)
    rows = compare(report, recorded)
    sanitized = [] if quick else sanitizers(arguments, words.patience)
    print(report["device"])
    print(f"\n{'kernel':<20} {'registers':>9} {'spilled bytes':>14}")
    for kernel in report["kernels"]:
        print(f"{kernel['name']:<20} {kernel['registers']:>9} {kernel['spilled_bytes']:>14}")
    print(f"\n{'check':<28} {'':<6} result")
    for name, well, words, _ in rows + sanitized:
        print(f"{name:<28} {'ok' if well else 'FAILED':<6} {words}")
    if not sanitized:
        print("\ncompute-sanitizer was not run" + (" (--quick)" if quick else ": it is not there"))
    passed = all(well for _, well, _, _ in rows + sanitized)
    keys = ("name", "passed", "result", "launches")
    result = {
        "device": report["device"],
        "passed": passed,
        "compared": [dict(zip(keys, row)) for row in rows],
        "sanitizers": [dict(zip(keys, row)) for row in sanitized],
        "selftest": report,
    }
    keep(result)
    print(f"\ngpu-check {'passed' if passed else 'FAILED'}; the numbers are in result.json")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
