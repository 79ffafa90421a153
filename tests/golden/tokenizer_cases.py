#!/usr/bin/env python3
"""Makes tokenizer_cases.json: what PyPI `tokenizers` makes of tricky texts with the vocabulary of a GGUF file, and how it
cuts them into words by the expressions of other models.

usage: tokenizer_cases.py SmolLM2-135M-Instruct.Q4_1.gguf > tokenizer_cases.json
Needs: pip install gguf==0.19.0 tokenizers==0.23.3
More random cases, to look for differences: tokenizer_cases.py MODEL COUNT SEED
"""
import json
import random
import sys

from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
EXPRESSIONS = {"gpt-2": GPT2, "llama-bpe": LLAMA3, "qwen2": LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")}

WRITTEN = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\t\t", "\r\n", "\r\n\r\n", " \r", "\u00a0", "\u2003 \u3000", "\u0085",
    "a", " a", "  a", "   a", "a ", "a  ", "a  b", "a \n b", "a\n\n\nb", "a\t\tb", "\n\na", " \n \n a", "a\u00a0b", "a\u00a0\u00a0b",
    "\u3000日本", "x\u200by", "\ufeffbom", "a\u2028b", "tab\tseparated\tvalues\n",
    "Hello, world!", "The capital of France is Paris.", "don't I'll we've they're he's I'd I'm", "DON'T I'LL WE'VE", "''s'''t", "it's's",
    "'", "''", "' s", "'s", " 's", "rock 'n' roll", "l'eau", "’s", "don’t", "'ſ", "'Re", "'vE",
    "1", "12", "123", "1234567890", " 1", "  1", "a1", "1a", "a1b2c3", "3.14159", "1,000,000", "0x1F", "-42", "v1.2.3", "2024-11-23T20:15:00Z",
    "٣٤٥", "१२३", "Ⅷ", "½ cup", "x²", "①②③", "㊿", "10²³", "𝟘𝟙", "a ½", "  Ⅷ  ",
    "def f(x):\n    return x + 1\n", "for (int i=0;i<10;i++) {\n\tprintf(\"%d\\n\", i);\n}", "<html><body class='a'>&amp;</body></html>",
    "https://example.org/a?b=c&d=e#f", "user@example.org", "C:\\Windows\\System32", "a_b__c", "snake_case camelCase PascalCase", "$$$ ### !!!",
    "...", "…", "—–-", "(a)[b]{c}", "\"quoted\"", "`code`", "~!@#$%^&*()_+", "a...b", "!!!a", " !a", "  !a", "!\n", "! \n\n",
    "é", "e\u0301", "naïve café", "Ærøskøbing", "Straße", "ÅNGSTRÖM", "ﬁ", "İstanbul", "ŉ",
    "Привет, мир!", "Ελληνικά", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "안녕하세요", "你好，世界！", "こんにちは世界", "தமிழ்", "ქართული",
    "ខ្មែរ", "မြန်မာ", "ལྷ་ས", "𐌰𐌱", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𓀀𓀁", "\U00013460\U00016100", "\U00010d4a\U0001e5d0", "\ua7da\ua7dc", "\u088f\ua7ce", "ａｂｃ１２３",
    "😀", "👍🏽", "👨‍👩‍👧‍👦", "🇫🇷🇩🇪", "☕️ time", "a😀b", " 😀", "✓✔✗", "→←", "♠♥", "€100", "£5", "™®©",
    "\u0000", "a\u0000b", "\u0001\u001f", "\u007f", "\u0080\u009f", "\ufffd", "\uffff", "\U0010ffff", "\ue000", "\u0300", "\u200d", "\u202eabc",
    "a" * 100, "ab" * 50, " " * 70, "\n" * 33, "-" * 80, "=" * 41, "ha" * 33, "0" * 20, "é" * 20, "日" * 20, "the " * 12, "aA" * 20 + "!" * 20,
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "a<|endoftext|>b", " <|im_end|> ", "<|im_end|><|im_end|>", "<|im_end",
    "<|im_end|", "<<|im_end|>>", "<|IM_END|>", "<repo_name>", "<reponame>", "<file_sep>x<filename>y<gh_stars>1<issue_start>", "<jupyter_code>import os\n",
    "<empty_output>", "< repo_name>", "<|im_start|><|im_start", "don<|im_end|>'t", "1<|im_end|>2", "\n<|im_end|>\n", "é<|im_end|>é", "<|endoftext|><|im_start|>",
]
POOLS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCXYZ", "0123456789", " ", " \n\t\r", "'", "stmdrevl", ".,;:!?-_()[]{}<>|/\\\"#$%&*+=@^`~",
    "éèüñçøåßæœ", "абвгдЖЗИ", "日本語中文字漢", "かなカナ", "한국어글", "نصعربي", "हिन्दी", "ไทย", "😀🎉👍🏽❤️🔥\u200d", "\u00a0\u2003\u3000\u0085\u2028", "½²³¹Ⅷ①٣१",
    "\u0301\u0300\u0308", "\u0000\u007f\ufffd", "\U0001f1eb\U0001f1f7", "ſKÅ",
]
PARTS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|", "|>", "'s", "'ll", " the", "  ", "\n\n", "\r\n", "ing", "tion"]


def random_text(rng):
    out = []
    for _ in range(rng.randrange(1, 30)):
        kind = rng.random()
        if kind < 0.15:
            out.append(rng.choice(PARTS))
        elif kind < 0.9:
            pool = rng.choice(POOLS)
            out.append("".join(rng.choice(pool) for _ in range(rng.randrange(1, 6))))
        else:
            code = rng.randrange(0x110000)
            out.append("" if 0xD800 <= code < 0xE000 else chr(code))
    return "".join(out)


def tokenizer(path):
    fields = GGUFReader(path).fields
    tokens, merges, types = (fields[f"tokenizer.ggml.{k}"].contents() for k in ("tokens", "merges", "token_type"))
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]))
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    made.add_special_tokens([AddedToken(t, special=True) for t, y in zip(tokens, types) if y in (3, 4)])
    return made


def main():
    tk = tokenizer(sys.argv[1])
    count, seed = int(sys.argv[2]) if len(sys.argv) > 2 else 40, int(sys.argv[3]) if len(sys.argv) > 3 else 1
    rng = random.Random(seed)
    texts = WRITTEN + [random_text(rng) for _ in range(count)]
    out = {"tokens": [[t, tk.encode(t, add_special_tokens=False).ids] for t in texts], "splits": {}}
    for name, expression in EXPRESSIONS.items():
        cut = pre_tokenizers.Split(Regex(expression), "isolated")
        # Words as their lengths in characters.
        out["splits"][name] = [[t, [len(w) for w, _ in cut.pre_tokenize_str(t)]] for t in texts]
    write(out)


def write(out):
    dump = lambda row: json.dumps(row, ensure_ascii=True, separators=(",", ":"))
    print("{\n\"tokens\": [")
    print(",\n".join(map(dump, out["tokens"])))
    print("],\n\"splits\": {")
    blocks = [f"{dump(name)}: [\n" + ",\n".join(map(dump, rows)) + "\n]" for name, rows in out["splits"].items()]
    print(",\n".join(blocks))
    print("}\n}")


main()
