#!/usr/bin/env python3
"""Makes quant_cases.json: seeded random blocks of each tensor format and the f32 values PyPI `gguf` makes of them, both
as little-endian hex.

usage: quant_cases.py > quant_cases.json
Needs: pip install gguf==0.19.0
"""
import json

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGML_QUANT_SIZES, dequantize


def halves(rng, count):
    """Finite halves, subnormal ones and both zeros among them."""
    h = rng.integers(0, 0x7C00, count, dtype=np.uint16) | (rng.integers(0, 2, count, dtype=np.uint16) << 15)
    h[0], h[1] = 0x8000, 0x0001
    return h


def main():
    rng = np.random.default_rng(1)
    out = {}
    for kind, scales in ((T.F32, 0), (T.F16, 0), (T.BF16, 0), (T.Q8_0, 1), (T.Q4_0, 1), (T.Q4_1, 2)):
        block_len, block_bytes = GGML_QUANT_SIZES[kind]
        blocks = 64 if block_len == 1 else 8
        raw = rng.integers(0, 256, (blocks, block_bytes), dtype=np.uint8)
        if kind == T.F16:
            raw = halves(rng, blocks).view(np.uint8).reshape(blocks, 2)
        elif kind in (T.F32, T.BF16):
            raw[:, -1] &= 0xBE  # finite
        elif scales:
            raw[:, :2 * scales] = halves(rng, blocks * scales).view(np.uint8).reshape(blocks, 2 * scales)
        values = dequantize(raw, kind).astype("<f4")
        out[kind.name] = [raw.tobytes().hex(), values.tobytes().hex()]
    print(json.dumps(out, indent=0))


main()
