"""Cuts a file in two for `check.py`: the first part, and what it needs to join them, into one folder, the rest into another.

Owns: the parts and model.json. Never: what is in the file.

usage: split.py FILE ONE TWO [BYTES OF THE SECOND PART]
"""

import hashlib
import json
import pathlib
import sys

# `two` is this part alone, and `one` has the binary and all else beside its part: each stays below 56 MB.
SECOND = 54_000_000


def main(file, one, two, second=SECOND):
    data = pathlib.Path(file).read_bytes()
    cut = max(0, len(data) - int(second))
    parts = []
    for name, folder, part in [("model.1", one, data[:cut]), ("model.2", two, data[cut:])]:
        (pathlib.Path(folder) / name).write_bytes(part)
        parts.append({"name": name, "sha256": hashlib.sha256(part).hexdigest()})
    made = {"name": pathlib.Path(file).name, "parts": parts}
    (pathlib.Path(one) / "model.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
