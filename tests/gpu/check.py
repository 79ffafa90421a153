"""What `make gpu-check` packs, run on a machine with a GPU: whether the GPU does what it should, and how fast; one table,
one JSON (result.json).

Owns: the stages, their order and their times. Never: a kernel's check, a clock, a bar; the binary and plan.json have those.
Only Python's standard library is used.

The real model is packed in two parts, for machines that little can be brought to at a time: the first call (--call 1) needs
`one` alone, the second (--call 2), on the same machine, `two` as well. Without --call all stages run.

    1  hello · the self-test · its launches beside the emulator's · PyTorch's rates · models of random weights, each measured
    2  hello · the real model joined · golden prompts · a chat over the WebSocket · measured · ncu · llama.cpp · compute-sanitizer
"""

import argparse
import fcntl
import hashlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

import figures
import launches
from stages import FAILED, OK, OPEN, SHORT, Interrupted, Signals, Stages, Unknown, Wrong, end, output_of, run, start

HERE = pathlib.Path(__file__).resolve().parent
BINARY = HERE / "tartlet"
# The tools of compute-sanitizer. Each finds what the others do not look for.
TOOLS = ["memcheck", "racecheck", "initcheck", "synccheck"]
# Seconds of a call: machines are lent for ten minutes at a time, and the way there and back takes some.
CALL = 480
NOTHING = "nothing else is left"
MEMORY = pathlib.Path("/dev/shm")


def read(name):
    path = HERE / name
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as cause:
        raise Wrong(f"{path} cannot be read ({cause}): unpack the bundle anew")


class Check:
    def __init__(self, words, others, scratch):
        self.words, self.others, self.scratch = words, others, scratch
        self.libcuda = ["--libcuda", words.libcuda] if words.libcuda else []
        calls = 1 if words.call else 2
        self.stages = Stages(words.seconds or CALL * calls)
        self.result = {"call": words.call, "device": None, "overlaps": None, "bench": {}}
        self.torch, self.greeted = None, False

    def selftest(self, *more):
        return [str(BINARY), "selftest", "--backend", "cuda", *more, *self.libcuda, *self.others]

    # ---- the first call ----

    def machine(self, limit):
        tool = shutil.which("nvidia-smi")
        if not tool:
            raise Unknown("nvidia-smi is not there")
        fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,temperature.gpu"
        return output_of([tool, f"--query-gpu={fields}", "--format=csv,noheader"], limit).strip()

    def hello(self, limit):
        report = json.loads(output_of(self.selftest("--hello", "--json"), limit))
        self.result["device"], self.result["overlaps"], self.greeted = report["device"], report["overlaps"], True
        return f"one kernel ran on {report['device']}, launches {'overlap' if report['overlaps'] else 'do not overlap'}"

    def all_checks(self, limit):
        status, output, complaint = run(self.selftest("--json"), limit)
        try:
            report = json.loads(output)
        except json.JSONDecodeError:
            raise Wrong(complaint.removeprefix("tartlet: ") or f"it ended with status {status} and said nothing")
        self.result["selftest"] = report
        recorded = read("recorded.json")
        rows = launches.compare(report, recorded)
        keys = ("name", "passed", "result", "launches")
        self.result["compared"] = [dict(zip(keys, row)) for row in rows]
        wrong = [(name, FAILED, words) for name, well, words, _ in rows if not well]
        well = len(rows) - len(wrong)
        if status != 0 and report["passed"]:
            wrong.insert(0, ("its end", FAILED, f"all passed, but its status is {status}: {complaint or 'it said nothing'}"))
        if report.get("broken_off"):
            wrong.insert(0, ("broken off", FAILED, report["broken_off"]))
        count = sum(len(found) for *_, found in rows)
        spilled = sum(kernel["spilled_bytes"] > 0 for kernel in report["kernels"])
        words = f"{well} checks passed, {count} launches compared, {spilled} of {len(report['kernels'])} kernels spill"
        return [("selftest", FAILED if wrong else OK, words), *wrong]

    def rates_of_torch(self, limit):
        self.torch, words = figures.torch(limit)
        self.result["torch"] = self.torch
        return words

    def model(self, plan):
        """One model of random weights, or one that the bundle has: made, measured, removed."""
        # Of its own: a maker that is killed leaves other names too.
        folder = self.scratch / "random"
        path = HERE / plan["file"] if "file" in plan else folder / "random.gguf"
        if "file" not in plan:
            folder.mkdir()
            command = [str(BINARY), "synth", "--shape", plan["shape"], "--quant", plan["quant"], str(path)]
            self.stages.stage(f"{plan['name']}, made", 90, lambda limit: output_of(command, limit).partition(": ")[2].strip())
        if plan["figures"]:
            self.stages.stage(f"{plan['name']}, measured", 150, lambda limit: self.measured(plan, path, limit))
        if "file" not in plan:
            shutil.rmtree(folder)

    def measured(self, plan, path, limit):
        if not path.is_file():
            raise Unknown("the model is not there")
        report = figures.bench(BINARY, path, plan["figures"], HERE / "programs", self.libcuda, limit)
        self.result["bench"][plan["name"]] = report
        return figures.rows(plan, report, self.torch, self.result["overlaps"])

    # ---- the second ----

    def joined(self, limit):
        """The real model of its parts, each checked by its hash."""
        made, path = read("model.json"), self.scratch / "model.gguf"
        with path.open("wb") as out:
            for part in made["parts"]:
                places = [HERE / part["name"], HERE.parent / "two" / part["name"]]
                place = next((place for place in places if place.is_file()), None)
                if not place:
                    raise Unknown(f"{part['name']} is not here: bring `two` beside `one`, on the machine that has `one`")
                whole = hashlib.sha256()
                with place.open("rb") as file:
                    while chunk := file.read(1 << 22):
                        whole.update(chunk)
                        out.write(chunk)
                if whole.hexdigest() != part["sha256"]:
                    raise Wrong(f"{place} is not what was packed (its sha256 differs): bring it anew")
        return f"{made['name']}, {path.stat().st_size / 1e6:.1f} MB of {len(made['parts'])} parts"

    def golden(self, model, limit):
        command = [str(BINARY), "eval", "--backend", "cuda", "--strict", *self.libcuda, "--model", str(model)]
        status, output, complaint = run([*command, str(HERE / "golden.json")], limit)
        if not output:
            raise Wrong(complaint.removeprefix("tartlet: "))
        report = json.loads(output)
        self.result["golden"] = report
        words = ", ".join(f"{key} {report[key]:.4g}" for key in ("top1_clear", "top1", "mean_kl", "max_logit_diff"))
        words = f"{report['steps']} steps, {report['clear_steps']} of them clear: {words}; {report['device']}"
        if status == 0:
            return words
        raise Wrong(f"{words}; {complaint.removeprefix('tartlet: ') or f'it ended with status {status}'}")

    def chat(self, plan, model, limit):
        until = time.monotonic() + limit
        command = [str(BINARY), "serve", "--backend", "cuda", *self.libcuda, "--no-auth", "--listen", "127.0.0.1:0"]
        command += ["--state", str(self.scratch / "state"), "--model", str(model)]
        log = self.scratch / "serve.log"
        with log.open("w") as errors:
            server = start(command, stdout=subprocess.PIPE, stderr=errors)
        try:
            line = ""
            while not line.startswith("listening on "):
                ready, _, _ = select.select([server.stdout], [], [], max(0, until - time.monotonic()))
                line = server.stdout.readline() if ready else ""
                if not line:
                    said = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                    raise Wrong(f"the server did not come to serve: {said}")
            url = line.removeprefix("listening on ").strip()
            started = time.monotonic()
            command = [str(BINARY), "run", str(HERE / "programs" / plan["program"]), "--server", url, "--", *plan["arguments"]]
            answer = output_of(command, max(1, until - time.monotonic())).strip()
            took = time.monotonic() - started
        finally:
            end(server)
        if plan["answer"] not in answer:
            raise Wrong(f"the answer lacks {plan['answer']!r}: {answer!r}")
        return f"{answer!r} in {took:.2f} s"

    def dram(self, plan, model, limit):
        self.result["dram"], words = figures.dram(
            BINARY, model, HERE / "golden.json", plan["prompt"], self.libcuda, self.scratch, limit
        )
        return words

    def sanitizer(self, name, limit):
        tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        if not tool:
            raise Unknown("compute-sanitizer is not there")
        command = [tool, "--tool", name, "--error-exitcode", "9", *self.selftest("--untimed")]
        status, output, complaint = run(command, limit)
        lines = [line for line in (output + "\n" + complaint).splitlines() if line.startswith("=========")]
        words = lines[-1].strip("= ") if lines else complaint
        if status is None:
            raise Unknown(complaint)
        if status != 0:
            raise Wrong(words or f"it ended with status {status}")
        return words or "it ended well and said nothing"

    # ---- all of it ----

    def first(self, plan):
        stage = self.stages.stage
        stage("selftest", 200, self.all_checks)
        stage("PyTorch", 60, self.rates_of_torch)
        for model in plan["models"]:
            self.model(model)

    def second(self, plan):
        stage, real = self.stages.stage, plan["real"]
        stage("real model", 60, self.joined)
        joined = self.stages.rows[-1]["state"] == OK
        model = self.scratch / "model.gguf"
        if joined:
            stage("golden prompts", 60, lambda limit: self.golden(model, limit))
            stage("chat", 60, lambda limit: self.chat(real["chat"], model, limit))
            if real["bench"]["figures"]:
                stage("real model, measured", 120, lambda limit: self.measured(real["bench"], model, limit))
            stage("llama.cpp", 60, lambda limit: figures.llama(model, limit))
            stage("ncu", 100, lambda limit: self.dram(real, model, limit))
        else:
            self.stages.row("golden prompts, chat, speed", OPEN, "the real model is not there")
        for name in [] if self.words.quick else TOOLS:
            stage(f"compute-sanitizer, {name}", self.words.patience, lambda limit, name=name: self.sanitizer(name, limit))

    def run(self):
        plan, stage = read("plan.json"), self.stages.stage
        stage("machine", 10, self.machine)
        stage("hello", 60, self.hello)
        if not self.greeted:
            # Whether anybody else can use the device.
            stage("PyTorch", 60, self.rates_of_torch)
            return self.stages.row("all else", OPEN, "the device does not greet")
        if self.words.call != 2:
            self.first(plan)
        if self.words.call != 1:
            self.second(plan)


def keep(folders, result):
    for folder in folders:
        path = folder / "result.json"
        try:
            path.write_text(json.dumps(result, indent=1) + "\n")
        except OSError as cause:
            mend = "unpack the bundle" if folder == HERE else "have --out name a folder"
            raise Wrong(f"{path} cannot be written ({cause.strerror}): {mend} where you may write")


def details(result):
    """What the self-test found, kernel by kernel and check by check."""
    if "selftest" not in result:
        return
    print(f"{'kernel':<28} {'registers':>9} {'spilled bytes':>14}")
    for kernel in result["selftest"]["kernels"]:
        print(f"{kernel['name']:<28} {kernel['registers']:>9} {kernel['spilled_bytes']:>14}")
    print(f"\n{'check of the self-test':<28} result")
    for check in result["compared"]:
        print(f"{check['name']:<28} {check['result'] if check['passed'] else 'FAILED: see below'}")
    print()


def place(room_mb):
    """A folder for large files, in memory if it has room for them twice."""
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2 * room_mb * 1_000_000:
        return MEMORY
    return None


def alone():
    """A lock on this file: two of us would measure each other."""
    own = open(__file__, "rb")
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Wrong("another gpu-check runs from this folder: wait for its end")
    except OSError:
        pass  # a file system without locks
    return own


def remove(scratch):
    """Ends what still runs, and removes what was made; what is left, in words."""
    for child in Signals.children:
        end(child)
    try:
        shutil.rmtree(scratch)
    except OSError as cause:
        return f"{scratch} is left, since it cannot be removed ({cause.strerror}): remove it"
    return NOTHING


def main():
    words = argparse.ArgumentParser(prog="check.sh", epilog="Other words go to `tartlet selftest`.", allow_abbrev=False)
    words.add_argument("--call", type=int, choices=[1, 2], help="the stages of this call alone")
    words.add_argument("--seconds", type=float, help=f"for all stages together ({CALL} a call)")
    words.add_argument("--out", type=pathlib.Path, help="another folder that result.json is written to")
    words.add_argument("--libcuda", help="the CUDA driver's library")
    words.add_argument("--quick", action="store_true", help="leave out compute-sanitizer")
    words.add_argument("--patience", type=float, default=CALL, help="seconds that each tool of it may take")
    words, others = words.parse_known_args()
    folders = [HERE] + ([words.out] if words.out else [])
    own = alone()  # as long as we live
    Signals.hear()
    # What an earlier run found is not what this one finds. It also shows that this one can be kept.
    keep(folders, {"passed": False, "why": "it did not come to its end"})
    try:
        room = read("plan.json").get("room_mb", 0)
    except Wrong as why:
        keep(folders, {"passed": False, "why": str(why)})
        raise
    try:
        scratch = tempfile.mkdtemp(prefix="gpu-check-", dir=place(room))
    except OSError as cause:
        raise Wrong(f"no folder for temporary files can be made ({cause.strerror}): name a place in TMPDIR")
    # What programs make for a time, and leave where they are killed.
    os.environ["TMPDIR"] = scratch
    check = Check(words, others, pathlib.Path(scratch))
    try:
        try:
            Signals.release()
            check.run()
        finally:
            Signals.held = True
    except Interrupted:
        pass
    finally:
        left = remove(scratch)
    stages, result, interrupted = check.stages, check.result, Signals.heard
    if interrupted:
        why = f"it was interrupted ({interrupted.name}) after {len(stages.rows)} rows"
        keep(folders, result | {"passed": False, "why": why, "rows": stages.rows})
        line = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{line}gpu-check: {why}; they are in result.json, and {left}", file=sys.stderr)
        return 128 + interrupted
    wrong = stages.failed() or [row for row in stages.rows if row["name"] == "hello" and not check.greeted]
    unknown = [row["name"] for row in stages.rows if row["state"] == OPEN]
    result |= {"passed": not wrong, "open": unknown, "rows": stages.rows}
    if wrong:
        result["why"] = f"{wrong[0]['name']}: {wrong[0]['result']}"
    try:
        keep(folders, result)
    finally:
        tell(result, stages, wrong, unknown)
    if left != NOTHING:
        print(f"gpu-check: {left}", file=sys.stderr)
    return 1 if wrong else 0


def tell(result, stages, wrong, unknown):
    details(result)
    # Last, for whoever sees the end alone.
    print(f"{result['device'] or 'no device'}\n\n{stages.table()}")
    counts = {state: sum(row["state"] == state for row in stages.rows) for state in (SHORT, OPEN)}
    words = [f"{len(wrong)} FAILED" if wrong else "passed", *(f"{count} {state}" for state, count in counts.items() if count)]
    of_them = f" ({'; '.join(unknown)})" if unknown else ""
    print(f"\ngpu-check {', '.join(words)}{of_them}; the numbers are in result.json")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Wrong as why:
        sys.exit(str(why))
