#!/usr/bin/env python3
"""Makes vocabularies.json: small vocabularies of every kind that Tartlet reads, a corpus of hard texts, and what PyPI
`tokenizers` and `sentencepiece` make of each text, as one 32-bit hash of the token ids per text.

usage: vocabularies.py train > vocabularies.json          new vocabularies, without results
       vocabularies.py make SMOLLM2.gguf                 fills in the results, in place
       vocabularies.py show SMOLLM2.gguf KIND < TEXT     the reference's tokens of one text
Needs: pip install tokenizers==0.23.3 sentencepiece==0.2.3 gguf==0.19.0 babel==2.18.0 protobuf==7.36.2

The byte-level vocabulary is trained on whole lines, so that its tokens reach over every border between words: each
wrong cut shows in the ids. Some of its merges are left out, so that some tokens are reached as whole words only.
"""
import io
import json
import pathlib
import re
import sys

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

PATH = pathlib.Path(__file__).with_name("vocabularies.json")
SEED, RANDOM_TEXTS = 2026, 2000

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = GPT4O.replace(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
# Name in tokenizer.ggml.pre -> expression, whether whole words come first, normalizer.
BYTE_LEVEL = {
    "gpt-2": (GPT2, False, None),
    "smollm": (None, False, None),
    "llama-bpe": (LLAMA3, True, None),
    "dbrx": (LLAMA3, False, None),
    "qwen2": (LLAMA3.replace("{1,3}", ""), False, normalizers.NFC()),
    "deepseek-r1-qwen": (LLAMA3.replace("{1,3}", ""), False, None),
    "tekken": (TEKKEN, True, None),
    "gpt-4o": (GPT4O, False, None),
}
NORMAL, UNKNOWN, CONTROL, USER, UNUSED = 1, 2, 3, 4, 5
SPECIALS = [["<|im_start|>", CONTROL], ["<|im_end|>", CONTROL], ["<|im_", CONTROL], ["<|eot_id|>", CONTROL],
            ["<tool_call>", USER], ["<tool_call>\n", USER], ["</s>", CONTROL], ["[INST]", USER], ["\u00e9|", USER]]

WRITTEN = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\r\n\r\n", " \r", "\u00a0", "\u2003 \u3000", "\u0085", "\u2581", " \u2581 ",
    "a", " a", "  a", "a ", "a  b", "a \n b", "a\n\n\nb", "a\u2581b", "\u2581\u2581a", "\ufeffbom", "a\u2028b", "x\u200by", "!\n/", "a/\r\n/b", " /\n/ ",
    "Hello, world!", "don't I'll we've they're he's I'd I'm", "DON'T I'LL WE'VE", "HELLO'S", "Hello'LL've", "it's's", "'\u017f", "a'\u017f", "'", "''", "\u2019s",
    "1", "12", "123", "1234", "1234567890", " 1 23 456 7890", "a1b22c333d4444", "3.14159", "1,000,000.00", "0x1F", "2024-11-23T20:15:00Z",
    "\u0663\u0664\u0665\u0666", "\u0967\u0968\u0969", "\u2167", "\u00bd cup", "x\u00b2", "\u2460\u2461\u2462\u2463", "\U0001d7d8\U0001d7d9", "\u4e00\u4e8c\u4e09",
    "camelCase PascalCase SCREAMING_SNAKE snake_case XMLHttpRequest iPhone McDonald", "aB", "Ab", "AB", "ABc", "aBC", "ABcD", "\u01c5abc \u01c5", "\u02b0A\u02b0b",
    "\u0301", "\u0301a", "A\u0301", "A\u0301B", "e\u0301", "E\u0301e\u0301", " \u0301x", "1\u0301", "!\u0301a", "\u05d0A\u05d0a", "\u65e5A\u672ca", "\u20dd", "a\u20ddB",
    "def f(x):\n    return x + 1\n\n\nclass A(B):\n\tpass\n", "for (int i=0;i<10;i++) {\n\tprintf(\"%d\\n\", i);\n}", "<html><body class='a'>&amp;</body></html>",
    "https://example.org/a/b?c=d&e=f#g", "user@example.org", "C:\\Windows\\System32", "$$$ ### !!!", "...", "\u2026", "~!@#$%^&*()_+", "a...b", "SELECT * FROM t WHERE a<>'b';",
    "na\u00efve caf\u00e9", "nai\u0308ve cafe\u0301", "\u00c5ngstr\u00f6m", "A\u030angstro\u0308m", "\u212b", "\ufb01", "\u1e9b\u0323", "\u1e9b\u0323\u0307", "q\u0307\u0323", "\u0344", "\u0958", "\u0915\u093c",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8", "\ud55c\uad6d\uc5b4", "\u1100\uac00\u11a8", "\u0f73\u0f75", "\u0b92\u0bd7", "\u2126", "\uf900", "\U0002f800", "\U0001d15e", "\u0340\u0341\u0343",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac", "\u05e9\u05c1\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd", "\u0645\u0631\u062d\u0628\u064b\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\u304b\u3099\u30d5\u309a", "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd",
    "\u1781\u17d2\u1798\u17c2\u179a", "\u1019\u103c\u1014\u103a\u1019\u102c", "\u0f63\u0fb7\u0f0b\u0f66", "\U00010330\U00010331", "\U0001d518\U0001d52b", "\U00013000\U00013001", "\uff41\uff22\uff43\uff11\uff12",
    "\U0001f600", "\U0001f44d\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f1eb\U0001f1f7\U0001f1e9\U0001f1ea", "\u2615\ufe0f time", "a\U0001f600b", "\u0000", "a\u0000b", "\u007f", "\u0080", "\ufffd", "\uffff", "\U0010ffff", "\ue000", "\u202eabc",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_", "<|im_st", "<|im_start|", "<<|im_end|>>", "<tool_call>\n{}", "<tool_call>{}", "<tool_call> \n", "</s></s>", "a</s>b", " </s> ", "[INST] x [/INST]",
    "caf\u00e9|e\u0301|", "don</s>'t", "1</s>2", "\n</s>\n", "<s>a", "<unk>", "<0x0A>", "<start_of_turn>user\nHi<end_of_turn>\n", "<table>\n\n\n<table>", "  <table>  </table>", "<unused1>",
    "\t\t", "   a", "a  ", "a\t\tb", "\n\na", " \n \n a", "a\u00a0b", "a\u00a0\u00a0b", "\u3000\u65e5\u672c", "tab\tseparated\tvalues\n",
    "The capital of France is Paris.", "''s'''t", "' s", "'s", " 's", "rock 'n' roll", "l'eau", "don\u2019t", "'Re", "'vE", " 1", "  1", "a1", "1a",
    "a1b2c3", "1,000,000", "-42", "v1.2.3", "\u0663\u0664\u0665", "\u2460\u2461\u2462", "\u32bf", "10\u00b2\u00b3", "a \u00bd", "  \u2167  ",
    "def f(x):\n    return x + 1\n", "https://example.org/a?b=c&d=e#f", "a_b__c", "snake_case camelCase PascalCase", "\u2014\u2013-", "(a)[b]{c}",
    "\"quoted\"", "`code`", "!!!a", " !a", "  !a", "!\n", "! \n\n", "\u00e9", "\u00c6r\u00f8sk\u00f8bing", "Stra\u00dfe", "\u00c5NGSTR\u00d6M",
    "\u0130stanbul", "\u0149", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\uc548\ub155\ud558\uc138\uc694",
    "\u10e5\u10d0\u10e0\u10d7\u10e3\u10da\u10d8", "\U0001d518\U0001d52b\U0001d526\U0001d520\U0001d52c\U0001d521\U0001d522", "\U00013460\U00016100",
    "\U00010d4a\U0001e5d0", "\ua7da\ua7dc", "\u088f\ua7ce", "\uff41\uff42\uff43\uff11\uff12\uff13", " \U0001f600", "\u2713\u2714\u2717",
    "\u2192\u2190", "\u2660\u2665", "\u20ac100", "\u00a35", "\u2122\u00ae\u00a9", "\u0001\u001f", "\u0080\u009f", "\u0300", "\u200d",
    "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n", "=========================================",
    "hahahahahahahahahahahahahahahahahahahahahahahahahahahahahahahahaha", "00000000000000000000",
    "\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9",
    "\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5\u65e5",
    "the the the the the the the the the the the the ", "aAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaAaA!!!!!!!!!!!!!!!!!!!!", "<|endoftext|>",
    "a<|endoftext|>b", " <|im_end|> ", "<|im_end|><|im_end|>", "<|im_end", "<|im_end|", "<|IM_END|>", "<repo_name>", "<reponame>",
    "<file_sep>x<filename>y<gh_stars>1<issue_start>", "<jupyter_code>import os\n", "<empty_output>", "< repo_name>", "<|im_start|><|im_start",
    "don<|im_end|>'t", "1<|im_end|>2", "\n<|im_end|>\n", "\u00e9<|im_end|>\u00e9", "<|endoftext|><|im_start|>",
]
LONG = [["a", 3000], ["ab", 1500], ["the ", 700], [" ", 3000], ["\n", 999], ["-", 2000], ["\u65e5", 1000], ["\u0e01\u0e34", 900], ["\U0001f468\u200d", 400],
        ["aA", 800], ["0", 1000], ["e\u0301", 700], ["<|im_", 300], ["\u2581", 500], ["\u0301", 800], ["\u1100\u1161", 500], ["</s> x", 300]]
POOLS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCXYZ", "aAbB", "0123456789", " ", " ", " \n\t\r\u000b\u000c", "'", "stmdrevlSTMDREVL", ".,;:!?-_()[]{}<>|/\\\"#$%&*+=@^`~", "/\n\r",
    "\u00e9\u00e8\u00fc\u00f1\u00e7\u00f8\u00e5\u00df\u00e6\u0153", "\u0430\u0431\u0432\u0433\u0434\u0416\u0417\u0418", "\u65e5\u672c\u8a9e\u4e2d\u6587\u5b57\u6f22", "\u304b\u306a\u30ab\u30ca\u3099\u309a", "\ud55c\uad6d\uc5b4\uae00\u1100\u1161\u11a8",
    "\u0646\u0635\u0639\u0631\u0628\u064a\u064b\u0650", "\u05d0\u05d1\u05d2\u05b0\u05b8\u05c1", "\u0939\u093f\u0928\u094d\u0926\u0940\u0915\u093c", "\u0e44\u0e17\u0e22\u0e01\u0e34\u0e48", "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd", "\u1019\u103c\u1014\u103a",
    "\U0001f600\U0001f389\U0001f44d\U0001f3fd\u2764\ufe0f\U0001f525\u200d", "\u00a0\u2003\u3000\u0085\u2028\u1680\u202f", "\u00bd\u00b2\u00b3\u00b9\u2167\u2460\u0663\u0967\uff11", "\u0301\u0300\u0308\u0323\u0327\u20dd",
    "\u0000\u007f\ufffd\u0001", "\U0001f1eb\U0001f1f7", "\u017f\u212a\u212b\u2126", "\u2581", "\u01c5\u02b0\u1d2c\u02bc", "eaouEAOUn\u0301\u0308\u0303",
]
PARTS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|", "|>", "</s>", "<s>", "<unk>", "[INST]", "<tool_call>", "'s", "'LL", " the", "  ", "    ", "\n\n", "\r\n", "ing", "tion", "\n\n\n", "<table>",
         "<start_of_turn>", "The", " of", " and", "self.", "return ", "    def ", "http://", " 2024", "'re", "\u00e9|", "e\u0301", "\u2581the"]
BROKEN = ["ff", "c3", "e282", "f09f98", "eda080", "c0af", "f5808080", "80", "f48fbf", "e0a0"]


class Random:
    """xorshift64*, as src/model/toy.rs has it."""

    def __init__(self, seed):
        self.state = (seed * 0x9E3779B97F4A7C15 & 2**64 - 1) | 1

    def below(self, below):
        x = self.state
        x ^= x >> 12
        x ^= x << 25 & 2**64 - 1
        x ^= x >> 27
        self.state = x
        return ((x * 0x2545F4914F6CDD1D & 2**64 - 1) >> 33) % below


def random_text(rng, corpus):
    """The same in src/model/tokenizer/golden.rs. What is not UTF-8 becomes U+FFFD."""
    out = b""
    for _ in range(1 + rng.below(24)):
        kind = rng.below(100)
        if kind < 20:
            out += corpus["parts"][rng.below(len(corpus["parts"]))].encode()
        elif kind < 90:
            pool = corpus["pools"][rng.below(len(corpus["pools"]))]
            for _ in range(1 + rng.below(6)):
                out += pool[rng.below(len(pool))].encode()
        elif kind < 97:
            code = rng.below(0x110000)
            out += b"" if 0xD800 <= code < 0xE000 else chr(code).encode()
        else:
            out += bytes.fromhex(corpus["broken"][rng.below(len(corpus["broken"]))])
    return out.decode("utf-8", "replace")


def texts(corpus):
    rng = Random(corpus["seed"])
    long = [text * count for text, count in corpus["long"]]
    return corpus["written"] + long + [random_text(rng, corpus) for _ in range(corpus["random"])]


def training_lines():
    """English, code, and the names of languages and places in 60 languages."""
    import inspect
    from pydoc_data import topics
    from babel import Locale
    lines = "\n".join(topics.topics.values()).splitlines()
    for module in (json, re, inspect, pathlib):
        lines += inspect.getsource(module).splitlines()
    lines += [" ".join(lines[at : at + 3]) for at in range(0, len(lines), 3)]
    for tag in ("ar he fa ur hi bn ta te th my km lo ka hy am zh ja ko ru uk el de fr es pt tr pl vi sv fi hu cs ro id sw").split():
        locale = Locale.parse(tag)
        lines += ["  ".join(pair) for pair in zip(locale.languages.values(), locale.territories.values())]
    return lines


def train_byte_level(lines):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=256 + 2500, initial_alphabet=alphabet, max_token_length=24, show_progress=False))
    merges = json.loads(made.to_str())["model"]["merges"]
    return {"merges": [" ".join(merge) for merge in merges], "left_out": 9, "specials": SPECIALS}


def train_pieces(lines, edit=None, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, max_sentencepiece_length=24, character_coverage=0.999, minloglevel=2, num_threads=1, **options)
    proto = model_pb2.ModelProto.FromString(model.getvalue())
    if edit:
        edit(proto)
    pieces = proto.pieces
    return {
        "pieces": [piece.piece for piece in pieces],
        "types": [[at, piece.type] for at, piece in enumerate(pieces) if piece.type != NORMAL],
        "scores": [piece.score for piece in pieces],
        "space_first": proto.normalizer_spec.add_dummy_prefix,
        "byte_fallback": proto.trainer_spec.byte_fallback,
    }


def ties(proto):
    for piece in proto.pieces:
        piece.score = piece.score // 3


def unused(proto):
    ties(proto)
    for at, piece in enumerate(proto.pieces):
        if piece.type == NORMAL and at % 11 == 0:
            piece.type = UNUSED


def train():
    lines = training_lines()
    runs = ["\u2581" * n for n in range(2, 12)] + ["\n" * n for n in range(1, 5)]
    marks = ["<table>", "</table>", "<start_of_turn>", "<end_of_turn>", "b\u2581c"]
    pieces = {
        "llama": train_pieces(lines, vocab_size=2200, byte_fallback=True, control_symbols=["[INST]"]),
        "gemma": train_pieces(lines, ties, vocab_size=2200, byte_fallback=True, add_dummy_prefix=False, split_by_whitespace=False, user_defined_symbols=runs + marks),
        "unused": train_pieces(lines, unused, vocab_size=2000, byte_fallback=True),
        "unknown": train_pieces(lines, vocab_size=1500, byte_fallback=False, split_by_whitespace=False),
    }
    return {
        "corpus": {"seed": SEED, "random": RANDOM_TEXTS, "written": WRITTEN, "long": LONG, "pools": POOLS, "parts": PARTS, "broken": BROKEN},
        "byte_level": train_byte_level(lines),
        "pieces": pieces,
        "ids": {},
    }


def byte_level(data, name):
    """A function from text to ids. Tokens: the 256 letters in the order of their bytes, a token for each merge, the specials."""
    expression, whole_words, normalizer = BYTE_LEVEL[name]
    tokens = letters() + [merge.replace(" ", "") for merge in data["merges"]]
    vocab = {token: at for at, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for at, merge in enumerate(data["merges"]) if at % data["left_out"] != 0]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=whole_words))
    if normalizer:
        made.normalizer = normalizer
    cut_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut_words = pre_tokenizers.Split(Regex(expression), "isolated") if expression else smollm_words()
    made.pre_tokenizer = pre_tokenizers.Sequence([cut_words, cut_bytes])
    add_specials(made, [token for token, _ in data["specials"]])
    return lambda text: made.encode(text, add_special_tokens=False).ids


def smollm_words():
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split(Regex(GPT2), "isolated")])


def letters():
    """The letters of the bytes, in the order of the bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def add_specials(made, tokens):
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])


def smollm(path):
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    tokens, merges, types = (fields[f"tokenizer.ggml.{k}"].contents() for k in ("tokens", "merges", "token_type"))
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]))
    made.pre_tokenizer = pre_tokenizers.Sequence([smollm_words(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    add_specials(made, [t for t, kind in zip(tokens, types) if kind in (CONTROL, USER)])
    return lambda text: made.encode(text, add_special_tokens=False).ids


def pieces(data):
    """A function from text to ids. sentencepiece itself does not look for control tokens in text: what stands between
    them is a text of its own, as PyPI `tokenizers` has it."""
    proto = model_pb2.ModelProto()
    types = dict(data["types"])
    for at, (piece, score) in enumerate(zip(data["pieces"], data["scores"])):
        proto.pieces.add(piece=piece, score=score, type=types.get(at, NORMAL))
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = data["byte_fallback"]
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = data["space_first"]
    proto.normalizer_spec.remove_extra_whitespaces = False
    made = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    marks = {data["pieces"][at]: at for at, kind in types.items() if kind in (CONTROL, UNKNOWN)}
    cut = re.compile("(" + "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)) + ")")

    def ids(text):
        parts = [part for part in cut.split(text) if part]
        return [id for part in parts for id in ([marks[part]] if part in marks else made.encode(part))]
    return ids


def same_by_tokenizers(data):
    """The first kind once more, by PyPI `tokenizers` as converted models have it."""
    tokens, scores, types = data["pieces"], data["scores"], dict(data["types"])
    vocab = {token: at for at, token in enumerate(tokens)}
    merges = []
    for token, at in vocab.items():
        if at not in types:
            cuts = ((token[:n], token[n:]) for n in range(1, len(token)))
            merges += [(scores[at], vocab[l], vocab[r], l, r) for l, r in cuts if l in vocab and r in vocab]
    merges.sort(key=lambda merge: (-merge[0], merge[1], merge[2]))
    made = Tokenizer(models.BPE(vocab=vocab, merges=[merge[3:] for merge in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    add_specials(made, [tokens[at] for at, kind in types.items() if kind in (CONTROL, UNKNOWN)])
    return lambda text: made.encode(text, add_special_tokens=False).ids


def kinds(data, model):
    known = {name: byte_level(data["byte_level"], name) for name in BYTE_LEVEL}
    known |= {name: pieces(vocabulary) for name, vocabulary in data["pieces"].items()}
    return known | {"smollm2": smollm(model)}


def hash_of(ids):
    """FNV-1a over the ids."""
    hash = 0x811C9DC5
    for byte in b"".join(id.to_bytes(4, "little") for id in ids):
        hash = (hash ^ byte) * 0x01000193 & 2**32 - 1
    return f"{hash:08x}"


def make(model):
    data = json.loads(PATH.read_text())
    data["corpus"] = train_corpus = {**data["corpus"], "seed": SEED, "random": RANDOM_TEXTS, "written": WRITTEN, "long": LONG, "pools": POOLS, "parts": PARTS, "broken": BROKEN}
    all_texts = texts(train_corpus)
    data["ids"] = {}
    for name, encode in kinds(data, model).items():
        hashes = [hash_of(encode(text)) for text in all_texts]
        data["ids"][name] = ["".join(hashes[at : at + 12]) for at in range(0, len(hashes), 12)]
    first, second = pieces(data["pieces"]["llama"]), same_by_tokenizers(data["pieces"]["llama"])
    different = [text for text in all_texts if first(text) != second(text)]
    print(f"{len(all_texts)} texts; sentencepiece and tokenizers differ on {len(different)} of them: {different[:3]}", file=sys.stderr)
    PATH.write_text(written(data))


def written(data):
    """One line per row, so that a change shows."""
    dump = lambda value: json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    rows = lambda items: "[\n" + ",\n".join(map(dump, items)) + "\n]"
    wide = lambda items: "[\n" + ",\n".join(dump(items[at : at + 16])[1:-1] for at in range(0, len(items), 16)) + "\n]"
    corpus = ",\n".join(f"{dump(k)}: {rows(v) if k == 'written' else dump(v)}" for k, v in data["corpus"].items())
    level = ",\n".join(f"{dump(k)}: {wide(v) if k == 'merges' else dump(v)}" for k, v in data["byte_level"].items())
    models = ",\n".join(f"{dump(name)}: {{\n" + ",\n".join(f"{dump(k)}: {wide(v) if k in ('pieces', 'scores') else dump(v)}" for k, v in model.items()) + "\n}"
                        for name, model in data["pieces"].items())
    ids = ",\n".join(f"{dump(name)}: {rows(v)}" for name, v in data["ids"].items())
    return f'{{\n"corpus": {{\n{corpus}\n}},\n"byte_level": {{\n{level}\n}},\n"pieces": {{\n{models}\n}},\n"ids": {{\n{ids}\n}}\n}}\n'


if __name__ == "__main__":
    if sys.argv[1:] == ["train"]:
        sys.stdout.write(written(train()))
    elif len(sys.argv) == 3 and sys.argv[1] == "make":
        make(sys.argv[2])
    elif len(sys.argv) == 4 and sys.argv[1] == "show":
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
        print(kinds(json.loads(PATH.read_text()), sys.argv[2])[sys.argv[3]](text))
    else:
        sys.exit(__doc__)
