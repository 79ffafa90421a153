#!/usr/bin/env python3
"""Makes quant_cases.json: seeded random blocks of each tensor format and the f32 values PyPI `gguf` makes of them, both
little endian in base64. Extreme scales are among them, and blocks whose other bits are all set or all clear.

usage: quant_cases.py > quant_cases.json
Needs: pip install gguf==0.19.0
"""
import base64
import json

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGML_QUANT_SIZES, dequantize


# The bytes of each format's f16 fields in a block.
HALVES = {
    T.F16: [0], T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
# Both zeros, the smallest and the largest subnormal, the smallest normal, the largest, one; each also negative.
EXTREME = [0x0000, 0x0001, 0x03FF, 0x0400, 0x7BFF, 0x3C00]
EXTREME += [0x8000 | h for h in EXTREME]


def halves(rng, count):
    """Every extreme one, then any finite ones."""
    h = rng.integers(0, 0x7C00, count, dtype=np.uint16) | (rng.integers(0, 2, count, dtype=np.uint16) << 15)
    h[:len(EXTREME)] = EXTREME
    return h


def blocks(rng, kind):
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    count = {1: 64, 32: 24, 256: 20}[block_len]
    raw = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    if kind in (T.F32, T.BF16):
        raw[:, -1] &= 0xBE  # finite
    for field, at in enumerate(HALVES.get(kind, [])):
        # A second field meets other extremes than the first.
        raw[:, at:at + 2] = np.roll(halves(rng, count), 5 * field).view(np.uint8).reshape(count, 2)
    if block_len > 1:
        # All bits of everything but the halves set, and none, under a scale of 1 and under a random one.
        rest = [i for i in range(block_bytes) if not any(at <= i < at + 2 for at in HALVES[kind])]
        for block, fill in ((5, 255), (11, 0), (count - 2, 255), (count - 1, 0)):
            raw[block, rest] = fill
    return raw


def main():
    rng = np.random.default_rng(1)
    out = {}
    kinds = (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K)
    for kind in kinds:
        raw = blocks(rng, kind)
        values = dequantize(raw, kind).astype("<f4")
        out[kind.name] = [base64.b64encode(part.tobytes()).decode() for part in (raw, values)]
    print(json.dumps(out, indent=0))


main()
