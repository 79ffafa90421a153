"""How fast it is, and beside what: `tartlet bench`, PyTorch, ncu, llama.cpp.

Owns: which figures are asked for, what they are compared with, and the words. Never: a clock; the tools have those.
"""

import csv
import json
import shutil
import sys

from stages import NOTE, OK, OPEN, SHORT, Unknown, Wrong, output_of, run

# Rows and columns of the matrices, and bytes of the copy, that PyTorch is timed with.
TORCH = """
import json, torch
if not torch.cuda.is_available():
    raise SystemExit("PyTorch sees no GPU")
def rate(work, amount):
    times = []
    for number in range(13):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(); work(); end.record(); torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return amount / sorted(times[3:])[5]
a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
out = torch.empty_like(a)
matrix = rate(lambda: torch.mm(a, b, out=out), 2 * 8192**3)
x = torch.randint(0, 255, (1 << 30,), device="cuda", dtype=torch.uint8)
y = torch.empty_like(x)
copy = rate(lambda: y.copy_(x), 2 << 30)
print(json.dumps({"version": torch.__version__, "bf16_operations_per_second": matrix, "copy_bytes_per_second": copy}))
"""


def torch(limit):
    """PyTorch's rates on this device: what it found, and words."""
    status, _, _ = run([sys.executable, "-c", "import torch"], limit)
    if status is None:
        raise Unknown("PyTorch was not loaded in time")
    if status != 0:
        raise Unknown("this python3 has no PyTorch")
    status, output, complaint = run([sys.executable, "-c", TORCH], limit)
    if status != 0:
        raise Unknown((complaint.splitlines() or [f"PyTorch ended with status {status}"])[-1])
    found = json.loads(output)
    words = f"bf16 {found['bf16_operations_per_second'] / 1e12:.0f} TFLOP/s, copy {found['copy_bytes_per_second'] / 1e9:.0f} GB/s"
    return found, f"PyTorch {found['version']}: {words}"


def bench(binary, model, figures, programs, libcuda, limit):
    """What `tartlet bench` reports of these figures."""
    command = [str(binary), "bench", "--backend", "cuda", "--json", "--model", str(model), *libcuda]
    command += [word for figure in figures for word in ("--only", figure)]
    if "tax" in figures:
        command += ["--inferlets", str(programs)]
    return json.loads(output_of(command, limit))


def rows(plan, report, torch_found, overlaps):
    """A row for each figure of a model, held against its bars. What a bar is of and nobody knows leaves the row open.

    A bar may be another one where launches overlap, and beside it a goal is told: no state follows from that.
    """
    measures = {measure["name"]: measure for measure in report["measures"]}
    if not measures:
        raise Wrong("nothing was measured")
    bars, found = plan.get("bars", {}), []
    for name, measure in measures.items():
        if name.startswith("tax.") and name not in ("tax.total", "tax.step"):
            continue
        words, got = [f"{measure['median']:,.5g} {measure['unit']}"], {"median": measure["median"]}
        if measure.get("share") is not None and not name.startswith("prefill."):
            got["share"] = measure["share"]
            words.append(f"{100 * got['share']:.1f} % of the copy")
        if name.startswith("sequences.") and "sequences.1" in measures and name != "sequences.1":
            got["times"] = measure["median"] / measures["sequences.1"]["median"]
            words.append(f"{got['times']:.1f} times one")
        if name.startswith("prefill."):
            rate = 2 * plan["values"] * measure["median"]
            words.append(f"{rate / 1e12:.3g} TFLOP/s")
            if torch_found:
                got["share"] = rate / torch_found["bf16_operations_per_second"]
                words.append(f"{100 * got['share']:.1f} % of PyTorch's bf16")
        states = []
        for held in bars.get(name, []):
            kind, bar, unit = held["of"], held.get("overlapping", held["bar"]) if overlaps else held["bar"], held.get("unit", "")
            shown, aim = (f"{100 * it:.0f} %" if kind == "share" else f"{it:g} {unit}".strip() for it in (bar, held.get("goal", bar)))
            shown += f" (goal {aim})" if aim != shown else ""
            if kind not in got:
                state, said = OPEN, ": that is not known"
            elif got[kind] <= bar if held.get("most") else got[kind] >= bar:
                state, said = OK, ""
            else:
                state, said = SHORT, ": missed"
            states.append(state)
            words.append(f"{'at most' if held.get('most') else 'at least'} {shown} wanted{said}")
        state = next((state for state in (SHORT, OPEN) if state in states), OK)
        found.append((f"{plan['name']}, {name}", state, "; ".join(words)))
    wanted = dict.fromkeys([*plan["figures"], *bars])
    absent = [name for name in wanted if not any(f"{there}.".startswith(f"{name}.") for there in measures)]
    found += [(f"{plan['name']}, {name}", OPEN, "it was not measured") for name in absent]
    return found + [(plan["name"], NOTE, note) for note in report["notes"]]


def dram(binary, model, golden, prompt, libcuda, scratch, limit):
    """Bytes that a decoding step moves through device memory, by ncu's counters."""
    tool = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    if not tool:
        raise Unknown("ncu is not there")
    log = scratch / "ncu.csv"
    names = ["dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum"]
    command = [tool, "--clock-control", "none", "--csv", "--print-units", "base", "--log-file", str(log)]
    command += ["--metrics", ",".join(names), str(binary), "eval", "--backend", "cuda", *libcuda]
    command += ["--model", str(model), "--prompt", prompt, "--steps", "2", str(golden)]
    status, _, complaint = run(command, limit)
    if status != 0 or not log.is_file():
        said = log.read_text(errors="replace").splitlines() if log.is_file() else []
        said = [line for line in said if line.startswith("==ERROR==")] or complaint.splitlines() or [f"ncu ended with {status}"]
        raise Unknown(said[0].removeprefix("==ERROR== "))
    launches = {}
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith('"')]
    for row in csv.DictReader(lines):
        launch = launches.setdefault(int(row["ID"]), {"kernel": row["Kernel Name"].split("(")[0]})
        launch[row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
    launches = [launches[number] for number in sorted(launches)]
    begins = [number for number, launch in enumerate(launches) if launch["kernel"].startswith("embed_")]
    if len(begins) < 2:
        raise Unknown("ncu saw no decoding step")
    step = launches[begins[-1] :]
    read, written, took = (sum(launch.get(name, 0) for launch in step) for name in names)
    kernels = {}
    for launch in step:
        kernel = kernels.setdefault(launch["kernel"], {"launches": 0, "read": 0.0, "nanoseconds": 0.0})
        kernel["launches"] += 1
        kernel["read"] += launch.get(names[0], 0)
        kernel["nanoseconds"] += launch.get(names[2], 0)
    words = (
        f"a decoding step: {len(step)} launches, {read / 1e6:.1f} MB of DRAM read and {written / 1e6:.1f} MB written, "
        f"{took / 1e3:.0f} µs of kernels; the file has {model.stat().st_size / 1e6:.1f} MB"
    )
    return kernels, words


def llama(model, limit):
    """llama.cpp on the same file, where a build of it is at hand."""
    tool = shutil.which("llama-bench")
    if not tool:
        raise Unknown("llama-bench is not on the PATH")
    output = output_of([tool, "-m", str(model), "-p", "512", "-n", "128", "-ngl", "99", "-o", "json"], limit)
    runs = json.loads(output[output.index("[") :])
    words = [f"{'prompt of ' + str(r['n_prompt']) if r['n_prompt'] else 'decode'} {r['avg_ts']:,.5g} tokens/s" for r in runs]
    return ", ".join(words)
