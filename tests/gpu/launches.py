"""The self-test's launches beside the emulator's.

Owns: the comparison with recorded.json. Never: a kernel's check; the binary has those.

recorded.json is what the same binary found on the emulator: of each launch its name, the seed of its data, and what came out.
The self-test makes the same launches from the same seeds here. Where a kernel's bits do not depend on the device, the
digests of all that a launch wrote must be equal. Where they do (attention, products of bf16), the binary holds each number
within its bounds, and here the launch's numbers, of many some, are compared with the emulator's: the root mean square of the
differences, as a share of that of the numbers, is at most what the record says.
"""

import struct


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


def of_check(check, recorded):
    """One entry per launch, recorded or made here: its name, seed, whether as recorded, how far apart (exact ones: none)."""
    found = {(launch["launch"], launch["seed"]): launch for launch in check.get("launches", [])}
    entries = []
    known = {(record["launch"], record["seed"]) for record in recorded.get("launches", [])}
    for record in recorded.get("launches", []):
        name, seed = record["launch"], record["seed"]
        launch, distance = found.get((name, seed), {}), None
        if "digest" in record:
            well = record["digest"] == launch.get("digest")
        elif "numbers" in record and "within" in record:
            distance = apart(launch, record) if "numbers" in launch else float("nan")
            well = distance <= record["within"]  # NaN is not
        else:
            well = False  # nothing is expected of it
        entries.append({"launch": name, "seed": seed, "passed": well, "apart": distance})
    unknown = [launch for launch in found if launch not in known]
    return entries + [{"launch": name, "seed": seed, "passed": False, "apart": None} for name, seed in unknown]


def compare(report, recorded):
    """Of each check: its name, whether all is well, words, and the entries of its launches."""
    wanted = {check["name"]: check for check in recorded["checks"]}
    bandwidth = next((c.get("bytes_per_second") for c in report["checks"] if c["name"] == "bandwidth"), None)
    rows = []
    for check in report["checks"]:
        name, well, words = check["name"], check["passed"], []
        record = wanted.pop(name, None)
        if not well:
            words.append(check["wrong"])
        elif record is None:
            well = False
            words.append("not recorded on the emulator: pack the bundle anew")
        launches = of_check(check, record) if well else []
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
