#!/usr/bin/env python3
"""Makes families.json: for one small seeded model of each family, how its GGUF file looks and the logits that PyPI
`transformers` computes from it in f32 on the CPU.

usage: families.py > families.json
Needs: pip install transformers==5.23.0 torch==2.15.0

No weight is stored: a value follows from the case, the tensor's name in `transformers` and its place in it, here as in
src/model/specimens.rs, which builds the file as a converter would: other names, rows of q and k in the order that the
architecture's rope wants, Gemma's norms plus one. `keys` are the metadata that such a file carries, with their defaults
left out where real files leave them out. Of each row's 320 logits every 20th is kept.
"""
import json
import math

import torch
import transformers as hf

VOCAB = 320
EVERY = 20
TOKENS = 40
MASK = (1 << 64) - 1


class Random:
    """xorshift64*, the generator of src/model/toy.rs."""

    def __init__(self, seed):
        self.state = (seed * 0x9E3779B97F4A7C15 & MASK) | 1

    def next(self):
        s = self.state
        s ^= s >> 12
        s ^= s << 25 & MASK
        s ^= s >> 27
        self.state = s
        return s * 0x2545F4914F6CDD1D & MASK


def fnv(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    return h


def values(case, name, shape, gemma):
    """Uniform around 0 (around 1 for gains, which Gemma stores less one), of about unit gain."""
    if len(shape) == 2:
        middle, reach = 0.0, math.sqrt(3 / shape[1])
    elif name.endswith(".bias"):
        middle, reach = 0.0, 0.5
    else:
        middle, reach = 0.0 if gemma else 1.0, 0.25
    if name == "model.embed_tokens.weight":
        reach = 1.0
    random = Random(fnv(f"{case}/{name}"))
    count = math.prod(shape)
    flat = [middle + reach * ((random.next() >> 40) / (1 << 23) - 1) for _ in range(count)]
    return torch.tensor(flat, dtype=torch.float64).to(torch.float32).reshape(shape)


def llama3_factors(dim, rope):
    """What divides each pair's angle; Llama Team, "The Llama 3 herd of models" (2024), as converters write it."""
    out = []
    for i in range(0, dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        turns = rope["original_max_position_embeddings"] / wave
        smooth = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        smooth = min(max(smooth, 0.0), 1.0)
        out.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return out


SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    attn_implementation="eager",
)


def cases():
    """(name, architecture in GGUF, model, keys beside the common ones, extra tensors)"""
    config = hf.LlamaConfig(**SIZES, max_position_embeddings=256, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    keys = {"rope.dimension_count": 16, "vocab_size": VOCAB, "rope.freq_base": 1e4}
    yield "llama-2", "llama", hf.LlamaForCausalLM(config), keys, {}

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}
    config = hf.LlamaConfig(**SIZES, max_position_embeddings=512, rope_parameters=rope, tie_word_embeddings=True)
    keys = {"rope.dimension_count": 16, "vocab_size": VOCAB, "rope.freq_base": 5e5}
    yield "llama-3.2", "llama", hf.LlamaForCausalLM(config), keys, {"rope_freqs.weight": llama3_factors(16, rope)}

    config = hf.MistralConfig(**SIZES, max_position_embeddings=256, sliding_window=8,
                              rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    keys = {"rope.dimension_count": 16, "vocab_size": VOCAB, "rope.freq_base": 1e4, "attention.sliding_window": 8}
    yield "mistral", "llama", hf.MistralForCausalLM(config), keys, {}

    config = hf.Qwen2Config(**SIZES, max_position_embeddings=256, tie_word_embeddings=True,
                            rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    yield "qwen2", "qwen2", hf.Qwen2ForCausalLM(config), {"rope.freq_base": 1e6}, {}

    config = hf.Qwen3Config(**SIZES, max_position_embeddings=256, head_dim=24,
                            rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    keys = {"rope.freq_base": 1e6, "attention.key_length": 24, "attention.value_length": 24}
    yield "qwen3", "qwen3", hf.Qwen3ForCausalLM(config), keys, {}

    # As published files with YaRN: the converter writes no attention factor, readers derive it.
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
    config = hf.Qwen3Config(**SIZES, max_position_embeddings=256, head_dim=24, rope_parameters=rope)
    keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
    yield "qwen3-yarn", "qwen3", hf.Qwen3ForCausalLM(config), keys, {}

    sizes = SIZES | dict(num_hidden_layers=4, head_dim=24, query_pre_attn_scalar=24, max_position_embeddings=256)
    config = hf.Gemma2Config(**sizes, sliding_window=8, attn_logit_softcapping=2.0, final_logit_softcapping=6.0,
                             rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    keys = {"attention.key_length": 24, "attention.value_length": 24, "attention.sliding_window": 8,
            "attn_logit_softcapping": 2.0, "final_logit_softcapping": 6.0}
    yield "gemma-2", "gemma2", hf.Gemma2ForCausalLM(config), keys, {}

    sizes |= dict(num_hidden_layers=7)
    rope = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    config = hf.Gemma3TextConfig(**sizes, sliding_window=8, rope_parameters=rope)
    keys = {"attention.key_length": 24, "attention.value_length": 24, "attention.sliding_window": 8,
            "rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    yield "gemma-3", "gemma3", hf.Gemma3ForCausalLM(config), keys, {}

    phi = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = hf.Phi3Config(**SIZES, **phi, max_position_embeddings=256, original_max_position_embeddings=256,
                           sliding_window=8, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    keys = {"rope.dimension_count": 16, "rope.freq_base": 1e4, "attention.sliding_window": 8,
            "rope.scaling.original_context_length": 256}
    yield "phi-3", "phi3", hf.Phi3ForCausalLM(config), keys, {}

    # Phi-4-mini: three quarters of a head turn, by other angles than at the original context.
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.0, 1.25, 1.5, 1.75, 2.0], "long_factor": [1.0, 1.5, 2.5, 8.0, 20.0, 32.0],
            "original_max_position_embeddings": 16}
    config = hf.Phi3Config(**SIZES, **phi, max_position_embeddings=64, original_max_position_embeddings=16,
                           tie_word_embeddings=True, rope_parameters=rope)
    keys = {"rope.dimension_count": 12, "rope.freq_base": 1e4, "attention.sliding_window": 0,
            "rope.scaling.original_context_length": 16,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(4) / math.log(16))}
    extra = {"rope_factors_long.weight": rope["long_factor"], "rope_factors_short.weight": rope["short_factor"]}
    yield "phi-4-mini", "phi3", hf.Phi3ForCausalLM(config), keys, extra


def main():
    out = []
    for name, architecture, model, keys, extra in cases():
        config = model.config
        common = {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        }
        tensors = {}
        with torch.no_grad():
            for tensor, parameter in model.named_parameters():  # A tied head is not among them.
                parameter.copy_(values(name, tensor, tuple(parameter.shape), "gemma" in name))
                tensors[tensor] = list(parameter.shape)
            random = Random(fnv(f"{name}/tokens"))
            tokens = [(random.next() >> 33) % VOCAB for _ in range(TOKENS)]
            logits = model.eval()(torch.tensor([tokens]), use_cache=False).logits[0, :, ::EVERY]
        out.append({
            "name": name,
            "architecture": architecture,
            "keys": {f"{architecture}.{key}": value for key, value in (common | keys).items()},
            "extra": extra,
            "tensors": tensors,
            "tokens": tokens,
            "every": EVERY,
            "logits": [[float(f"{x:.6g}") for x in row] for row in logits.tolist()],
        })
    print("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in out) + "\n]")


main()
