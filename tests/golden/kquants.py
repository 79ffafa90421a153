#!/usr/bin/env python3
"""Makes a small llama with K-quants, written by PyPI `gguf` in three files, and what numpy computes with it.

usage: kquants.py FOLDER
Writes FOLDER/kquants-0000{1,2,3}-of-00003.gguf and FOLDER/kquants.json, a golden file for `tartlet eval` (oracle.py).
Needs: pip install gguf==0.19.0 tokenizers==0.22.1

The weights are seeded. PyPI `gguf` quantises the older formats; of the K-quants it can only read, so their blocks are
drawn here: any bits, under halves that give values of sane size.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFWriter, quantize
from gguf import GGMLQuantizationType as T

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD, FFN = 2, 256, 4, 1, 16, 32
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ a"]
PROMPTS = [
    ("words", "the thing in a theatre"),
    ("marks", "<|im_start|>a<|im_end|>\n12 é"),
]


def letters():
    """The byte-level alphabet of GPT-2."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def blocks(rng, kind, rows, row, deviation):
    """Rows of random K-quant blocks; the divisors make the values' deviation about the one that is asked."""
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows * row // block_len, block_bytes), dtype=np.uint8)

    def put(at, x):
        halves = (rng.uniform(0.7, 1.3, len(raw)) * x).astype(np.float16)
        raw[:, at:at + 2] = halves.view(np.uint8).reshape(-1, 2)

    if kind == T.Q6_K:
        put(208, deviation / 1400)
    else:
        scale, middle = (deviation / 260, 7.5) if kind == T.Q4_K else (deviation / 530, 15.5)
        put(0, scale)
        put(2, scale * middle)
    return raw.reshape(rows, row // block_len * block_bytes)


def tensors(rng, vocab):
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    yield "token_embd.weight", T.Q4_K, vocab, HIDDEN
    for layer in range(LAYERS):
        # Each K-quant in turn where a row has whole blocks of 256, each older format where it has not.
        k = lambda i: (T.Q4_K, T.Q5_K, T.Q6_K)[(layer + i) % 3]
        yield f"blk.{layer}.attn_norm.weight", T.F32, 1, HIDDEN
        yield f"blk.{layer}.attn_q.weight", k(0), q, HIDDEN
        yield f"blk.{layer}.attn_k.weight", k(1), kv, HIDDEN
        yield f"blk.{layer}.attn_v.weight", k(2), kv, HIDDEN
        yield f"blk.{layer}.attn_output.weight", (T.Q5_0, T.Q8_0)[layer], HIDDEN, q
        yield f"blk.{layer}.ffn_norm.weight", T.F32, 1, HIDDEN
        yield f"blk.{layer}.ffn_gate.weight", k(1), FFN, HIDDEN
        yield f"blk.{layer}.ffn_up.weight", k(0), FFN, HIDDEN
        yield f"blk.{layer}.ffn_down.weight", (T.Q5_1, T.Q4_0)[layer], HIDDEN, FFN
    yield "output_norm.weight", T.F32, 1, HIDDEN


def write(path, **split):
    rng = np.random.default_rng(3)
    w = GGUFWriter(path, "llama", **split)
    tokens = letters() + [m.replace(" ", "") for m in MERGES] + SPECIALS
    w.add_name("K-quants")
    w.add_block_count(LAYERS)
    w.add_context_length(256)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_key_length(HEAD)
    w.add_value_length(HEAD)
    w.add_rope_dimension_count(HEAD)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(tokens)
    w.add_token_types([1] * (len(tokens) - 3) + [3] * 3)
    w.add_token_merges(MERGES)
    w.add_bos_token_id(len(tokens) - 2)
    w.add_eos_token_id(len(tokens) - 1)
    w.add_add_bos_token(False)
    for name, kind, rows, row in tensors(rng, len(tokens)):
        if kind == T.F32:
            w.add_tensor(name, rng.uniform(0.5, 1.5, row).astype(np.float32))
        elif GGML_QUANT_SIZES[kind][0] == 256:
            w.add_tensor(name, blocks(rng, kind, rows, row, 2 / row**0.5), raw_dtype=kind)
        else:
            values = rng.normal(0, 2 / row**0.5, (rows, row)).astype(np.float32)
            w.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    folder = Path(sys.argv[1])
    write(folder / "kquants.gguf", split_max_tensors=8)
    with tempfile.TemporaryDirectory() as temporary:
        one, prompts = Path(temporary, "one.gguf"), Path(temporary, "prompts.json")
        write(one)
        prompts.write_text(json.dumps([{"name": name, "text": text} for name, text in PROMPTS]))
        oracle = Path(__file__).with_name("oracle.py")
        command = [sys.executable, oracle, one, prompts, folder / "kquants.json", "--steps", "16"]
        subprocess.run(command, check=True)


main()
