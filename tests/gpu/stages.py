"""Stages, one after the other: each has its time and its rows, and none stops the next.

Owns: processes and their ends, the clock, the rows. Never: what a stage does.
"""

import os
import signal
import subprocess
import sys
import time

# What a row says: all is well; something is wrong; a figure is short of its bar; nothing is known; what one should know.
OK, FAILED, SHORT, OPEN, NOTE = "ok", "FAILED", "short", "open", "note"
# Seconds that a program has to remove what it made, once it is asked to end.
GRACE = 3


class Interrupted(BaseException):
    """By a signal: no stage goes on."""


class Wrong(Exception):
    """Why a stage failed, a sentence."""


class Unknown(Exception):
    """Why a stage has nothing to say, a sentence."""


class Signals:
    """What ends the whole, heard once: what is removed then is not interrupted, nor is what must be known to be removed."""

    held, heard, children = True, None, []

    @classmethod
    def hear(cls):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, cls.came)

    @classmethod
    def came(cls, number, _):
        if cls.heard is None:
            cls.heard = signal.Signals(number)
            if not cls.held:
                raise Interrupted

    @classmethod
    def release(cls):
        cls.held = False
        if cls.heard:
            raise Interrupted


def start(command, **more):
    """A process in a group of its own."""
    Signals.held = True
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, text=True, errors="replace", **more)
    except PermissionError:
        raise Wrong(f"{command[0]} may not run here: unpack the bundle where programs may")
    except OSError as cause:
        raise Wrong(f"{command[0]} cannot be run here ({cause}): pack it on a machine with this kind of processor")
    else:
        Signals.children.append(child)
    finally:
        Signals.release()
    return child


def run(command, limit, **more):
    """The exit status, standard output and standard error; a command that does not end is ended, with all that it started,
    and has no status."""
    child = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    try:
        output, complaint = child.communicate(timeout=limit)
        return child.returncode, output, complaint.strip()
    except subprocess.TimeoutExpired:
        return None, "", f"it did not end within {limit:.3g} s"
    finally:
        end(child)


def end(child):
    """Ends it with all that it has started: a sanitizer starts the program and ends without it."""
    if child.returncode is None:
        kill(child, signal.SIGTERM)
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            pass
        kill(child, signal.SIGKILL)
        child.communicate()


def kill(child, number):
    """The whole group."""
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        pass


def output_of(command, limit, **more):
    """Standard output of a command that goes well."""
    status, output, complaint = run(command, limit, **more)
    if status != 0:
        said = [line for line in complaint.splitlines() if line] or [f"it ended with status {status} and said nothing"]
        raise Wrong(said[-1].removeprefix("tartlet: "))
    return output


class Stages:
    def __init__(self, seconds):
        self.rows = []
        self.until = time.monotonic() + seconds

    def left(self):
        return self.until - time.monotonic()

    def row(self, name, state, result, seconds=None):
        self.rows.append({"name": name, "state": state, "seconds": seconds, "result": result})

    def stage(self, name, limit, work, least=1.0):
        """Has `work` do its part within `limit` seconds, and within what is left of all; it gives (name, state, result) rows or
        one result."""
        limit = min(limit, self.left())
        if limit < least:
            return self.row(name, OPEN, "no time was left")
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{name} …")
        started = time.monotonic()
        try:
            found = work(limit)
            rows = [(name, OK, found)] if isinstance(found, str) else found
        except Wrong as why:
            rows = [(name, FAILED, str(why))]
        except Unknown as why:
            rows = [(name, OPEN, str(why))]
        except Exception as cause:  # a mistake of ours, or an output that nobody expected, must not stop the next stage
            rows = [(name, FAILED, f"{type(cause).__name__}: {cause}")]
        took = time.monotonic() - started
        for number, (name, state, result) in enumerate(rows):
            self.row(name, state, result, took if number == 0 else None)
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")

    def failed(self):
        return [row for row in self.rows if row["state"] == FAILED]

    def table(self):
        lines = [f"{'check':<32} {'':<6} {'seconds':>7}  result"]
        for row in self.rows:
            seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
            lines.append(f"{row['name']:<32} {row['state']:<6} {seconds:>7}  {row['result']}")
        return "\n".join(lines)
