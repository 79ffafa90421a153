//! The tokenizers against what PyPI `tokenizers` and `sentencepiece` make of the same texts, and their own edges.

use super::super::toy::{Items, TOY_SPECIALS, Toy, Writer, real_model};
use super::*;

fn ids(tokens: &[TokenId]) -> Vec<u32> {
    tokens.iter().map(|token| token.0).collect()
}

fn real() -> Tokenizer {
    Tokenizer::read(&Gguf::open(&real_model()).unwrap()).unwrap()
}

#[derive(serde::Deserialize)]
struct Prompt {
    text: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    greedy_text: String,
}

#[test]
fn golden_prompts() {
    let golden = include_str!("../../../tests/golden/smollm2-135m-q4_1.json");
    let golden: Vec<Prompt> = serde_json::from_str(golden).unwrap();
    let tokenizer = real();
    for prompt in golden {
        assert_eq!(ids(&tokenizer.encode(&prompt.text)), prompt.ids, "{:?}", prompt.text);
        let greedy: Vec<TokenId> = prompt.greedy.into_iter().map(TokenId).collect();
        assert_eq!(tokenizer.decode(&greedy).unwrap(), prompt.greedy_text);
    }
}

#[test]
fn decoding_is_for_every_token_and_no_other() {
    let tokenizer = real();
    assert_eq!(tokenizer.decode(&[TokenId(1), TokenId(2)]).unwrap(), "<|im_start|><|im_end|>");
    let bad = tokenizer.decode(&[TokenId(5), TokenId(49152)]).unwrap_err();
    assert_eq!(bad.to_string(), "token id 49152 is outside the vocabulary of 49152 tokens");
    assert!(tokenizer.bytes_of(TokenId(u32::MAX)).is_err());
    // One token of a character's three bytes.
    let half: Vec<TokenId> = tokenizer.encode("ᚠ")[..1].to_vec();
    assert_eq!(tokenizer.decode(&half).unwrap(), "\u{fffd}");
    assert_eq!(tokenizer.decode_bytes(&half).unwrap().first(), Some(&0xe1));
    assert_eq!(
        tokenizer.decoded_len(&[TokenId(1), half[0]]),
        Ok("<|im_start|>".len() + tokenizer.bytes_of(half[0]).unwrap().len())
    );
    assert_eq!(tokenizer.decoded_len(&[TokenId(1), TokenId(49152)]), Err(bad));

    let listed: Vec<(TokenId, &[u8])> = tokenizer.vocabulary().collect();
    assert_eq!(listed.len(), 49152 - 17);
    assert!(listed.windows(2).all(|two| two[0].0 < two[1].0));
    let (the, bytes) = listed.iter().find(|(_, bytes)| bytes == b" the").unwrap();
    assert_eq!(tokenizer.decode_bytes(&[*the]).unwrap(), *bytes);
    assert_eq!(tokenizer.specials().count(), 17);
}

/// Any sequence of tokens decodes; text comes back whole.
#[test]
fn text_survives_the_round_trip() {
    let toy = Toy::default().model();
    for text in ["", "a", "naïve\u{0}日本\u{10ffff}", "<|im_start|>user\n<|im_end|><|im_"] {
        let tokens = toy.tokenizer.encode(text);
        assert_eq!(toy.tokenizer.decode(&tokens).unwrap(), text);
    }
    let every: Vec<TokenId> = (0..toy.tokenizer.vocab()).map(TokenId).collect();
    assert!(toy.tokenizer.decode(&every).unwrap().contains(TOY_SPECIALS[1]));
    assert_eq!(toy.tokenizer.encode("[unused 300]").len(), "[unused 300]".len());
}

/// Half a megabyte without a single word border. Quadratic work would take hours here, not a moment.
#[test]
fn one_endless_word() {
    let piece = |of: &str| (of.repeat(2).replace(' ', "▁"), 1, -1.0);
    let doubles = ["a", "aa", "b", "日", " ", "<", "a "].map(piece);
    let doubles: Vec<(&str, i32, f32)> =
        doubles.iter().map(|(text, kind, score)| (&**text, *kind, *score)).collect();
    let pieces = read(pieces(&doubles).bool("tokenizer.ggml.add_space_prefix", false)).unwrap();
    for tokenizer in [real(), pieces] {
        for part in ["a", "ab", "qu", "日", "-", " ", "<"] {
            let text = part.repeat((1 << 19) / part.len());
            let tokens = tokenizer.encode(&text);
            assert!(!tokens.is_empty() && tokens.len() <= text.len());
            assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        }
    }
}

/// A small vocabulary of single letters with the given further tokens and merges.
fn with(more: &[(&str, i32)], merges: &[&str]) -> Writer {
    let letters = "abcdefghijklmnopqrstuvwxyz<>|".chars().map(|c| (c.to_string(), 1));
    let more = more.iter().map(|(token, kind)| (token.to_string(), *kind));
    let (tokens, types): (Vec<String>, Vec<i32>) = letters.chain(more).unzip();
    let merges: Vec<String> = merges.iter().map(|merge| merge.to_string()).collect();
    Writer::new()
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-2")
        .array("tokenizer.ggml.tokens", Items::Strings(&tokens))
        .array("tokenizer.ggml.token_type", Items::I32(&types))
        .array("tokenizer.ggml.merges", Items::Strings(&merges))
}

fn read(writer: Writer) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::read(&Gguf::from_bytes(writer.bytes()).unwrap())
}

#[test]
fn the_longest_special_token_wins() {
    let tokenizer = read(with(&[("<a", 3), ("<a>", 4), ("<a>b", 3), ("<c>", 5), ("", 3)], &[])).unwrap();
    let spelt = |text: &str| -> Vec<String> {
        tokenizer.encode(text).iter().map(|&t| tokenizer.decode(&[t]).unwrap()).collect()
    };
    assert_eq!(spelt("x<a>bc<a>c<a<a"), ["x", "<a>b", "c", "<a>", "c", "<a", "<a"]);
    assert_eq!(spelt("<c>"), ["<", "c", ">"], "an unused token is no special one");
    assert_eq!(tokenizer.special("<a>").map(|id| tokenizer.decode(&[id]).unwrap()).as_deref(), Some("<a>"));
    assert_eq!(tokenizer.special("<c>"), None);
    assert_eq!(spelt("aXb"), ["a", "b"], "a byte that the vocabulary lacks vanishes");
}

/// The story: two special tokens of a megabyte of one letter, of which one was looked for in the other, took hours.
#[test]
fn a_special_token_of_a_megabyte_is_looked_for_nowhere() {
    let most = crate::limits::SPECIAL_TOKEN_BYTES;
    let [most, more, huge] = [most, most + 1, 1 << 20].map(|length| "a".repeat(length));
    let tokenizer = read(with(&[(&most, 3), (&more, 3), (&huge, 4)], &[])).unwrap();
    assert!(tokenizer.special(&most).is_some() && tokenizer.special(&more).is_none());
    assert_eq!(tokenizer.encode(&more).len(), 2, "the shorter one, and a letter");
    assert_eq!(tokenizer.encode(&huge).len(), huge.len() / most.len());
}

/// The story: tables of a newer Unicode moved marks that the reference tokenizer leaves where they stand.
#[test]
fn text_is_composed_as_unicode_9_has_it() {
    let tokenizer = read(Writer::new().vocabulary().str("tokenizer.ggml.pre", "qwen2")).unwrap();
    let composed = |text: &str| tokenizer.decode(&tokenizer.encode(text)).unwrap();
    assert_eq!(composed("be\u{301} b\u{301}\u{316} \u{1100}\u{1161}"), "b\u{e9} b\u{316}\u{301} \u{ac00}");
    // A mark of Unicode 14 below, the parts of letters of Unicode 13 and 16, and what PyPI `tokenizers` makes of them.
    for text in ["b\u{301}\u{898}", "e\u{898}\u{301}", "\u{11935}\u{11930}", "\u{105d2}\u{307}"] {
        assert_eq!(composed(text), text, "{text:?}");
    }
}

#[test]
fn merges_go_by_rank_then_from_the_left() {
    let tokens = [("ab", 1), ("bc", 1), ("abc", 1), ("aa", 1), ("aaaa", 1)];
    let spelt = |merges: &[&str], text: &str| -> Vec<String> {
        let tokenizer = read(with(&tokens, merges)).unwrap();
        tokenizer.encode(text).iter().map(|&t| tokenizer.decode(&[t]).unwrap()).collect()
    };
    assert_eq!(spelt(&["a b", "b c", "ab c"], "abcbc"), ["abc", "bc"]);
    assert_eq!(spelt(&["b c", "a b", "a bc"], "abcab"), ["abc", "ab"]);
    assert_eq!(spelt(&["a a"], "aaaaa"), ["aa", "aa", "a"]);
    assert_eq!(spelt(&["a a", "aa aa"], "aaaaaaa"), ["aaaa", "aa", "a"]);
}

#[test]
fn what_is_wrong_is_named() {
    let said = |writer: Writer| read(writer).err().expect("refused").to_string();
    assert!(said(with(&[], &["a b"])).contains("merge 0, `a b`, needs the missing token `ab`"));
    assert!(said(with(&[("ab", 1)], &["a", "a b"])).contains("merge 0, `a`, is not two tokens"));
    assert!(said(with(&[("x", 9)], &[])).contains("token 29 has the unknown type 9"));
    assert!(
        said(with(&[], &[]).u32("tokenizer.ggml.eos_token_id", 29))
            .contains("`tokenizer.ggml.eos_token_id` is 29")
    );
    let other = Writer::new().str("tokenizer.ggml.model", "rwkv");
    assert!(said(other).contains("type `rwkv`; Tartlet has byte-level BPE"));
    assert!(said(Writer::new()).contains("no metadata key `tokenizer.ggml.model`"));
    let other = with(&[], &[]).str("tokenizer.ggml.pre", "viking");
    assert!(said(other).contains("`viking`; Tartlet has smollm, gpt-2, llama-bpe"));
}

/// The story: a file of one long text was held in memory up to ten times, for a sentence on why it is refused.
#[test]
fn what_is_wrong_is_no_longer_than_a_screen() {
    let long = "y".repeat(1 << 20);
    let merge = |merge: String| with(&[], &[&merge]);
    for writer in [
        merge(long.clone()),
        merge(format!("a {long}")),
        merge(format!("{long} a")),
        with(&[], &[]).str("tokenizer.ggml.pre", &long),
        Writer::new().str("tokenizer.ggml.model", &long),
        pieces(&[(&long, 6, 0.0)]),
    ] {
        let said = read(writer).err().expect("refused").to_string();
        assert!(said.contains("yyy (and so on)`") && said.len() < 2000, "{} bytes", said.len());
    }
}

/// A SentencePiece vocabulary: `<unk>`, `<s>`, `</s>`, the 256 bytes, then (piece, type, score).
fn pieces(more: &[(&str, i32, f32)]) -> Writer {
    let mut all = vec![("<unk>".to_owned(), 2, 0.0), ("<s>".to_owned(), 3, 0.0), ("</s>".to_owned(), 3, 0.0)];
    all.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 6, 0.0)));
    all.extend(more.iter().map(|&(piece, kind, score)| (piece.to_owned(), kind, score)));
    let tokens: Vec<String> = all.iter().map(|(piece, ..)| piece.clone()).collect();
    let types: Vec<i32> = all.iter().map(|&(_, kind, _)| kind).collect();
    let scores: Vec<f32> = all.iter().map(|&(.., score)| score).collect();
    Writer::new()
        .str("tokenizer.ggml.model", "llama")
        .array("tokenizer.ggml.tokens", Items::Strings(&tokens))
        .array("tokenizer.ggml.token_type", Items::I32(&types))
        .array("tokenizer.ggml.scores", Items::F32(&scores))
}

/// The tokens of a text as they print, a bar between two.
fn barred(tokenizer: &Tokenizer, text: &str) -> String {
    let tokens = tokenizer.encode(text);
    let text: Vec<String> = tokens.iter().map(|&token| tokenizer.decode(&[token]).unwrap()).collect();
    text.join("|")
}

#[test]
fn pieces_merge_by_score_then_from_the_left() {
    let letters = ["a", "b", "c", "▁"].map(|letter| (letter, 1, -9.0));
    let writer = |more: &[(&str, i32, f32)]| pieces(&[&letters, more].concat());
    let made = |more: &[(&str, i32, f32)]| read(writer(more)).unwrap();
    assert_eq!(barred(&made(&[("ab", 1, -2.0), ("bc", 1, -1.0)]), "abc"), " |a|bc");
    assert_eq!(barred(&made(&[("ab", 1, -1.0), ("bc", 1, -1.0)]), "abcbc"), " |ab|c|bc");
    assert_eq!(barred(&made(&[("ab", 1, -0.0), ("bc", 1, 0.0)]), "abc"), " |ab|c");
    // Words are merged alone only where no piece reaches into the next one.
    assert_eq!(barred(&made(&[("▁a", 1, -1.0)]), "a a  a"), " a| a| | a");
    assert_eq!(barred(&made(&[("▁a", 1, -1.0), ("a▁", 1, -0.5)]), "a a"), " |a |a");
    // A special token begins a new text; a user-defined symbol is one.
    let marked = made(&[("▁a", 1, -1.0), ("b▁c", 4, 0.0)]);
    assert_eq!(barred(&marked, "a<s>a</s>ab c"), " a|<s>| a|</s>| a|b c");
    assert_eq!(barred(&marked, "<s>"), "<s>");
    let bare = read(writer(&[]).bool("tokenizer.ggml.add_space_prefix", false)).unwrap();
    assert_eq!(barred(&bare, "a▁b"), "a| |b");
    // Bytes stand for what has no piece; their tokens print as they are.
    let tokens = bare.encode("é");
    assert_eq!(ids(&tokens), [3 + 0xc3, 3 + 0xa9]);
    assert_eq!(bare.decode(&tokens).unwrap(), "é");
    assert_eq!(bare.vocabulary().count(), 256 + 4);
    assert_eq!(bare.description(), "SentencePiece BPE, 263 tokens (3 special), no space before a text");
}

/// Phi-3's template writes line breaks after its marks, which the model's own tokenizer swallows.
#[test]
fn marks_of_phi3_take_the_space_after_them() {
    let marks = [("<|user|>", 3, 0.0), ("<|end|>", 4, 0.0), ("▁a", 1, -1.0), ("a", 1, -2.0)];
    let phi3 = read(pieces(&marks).str("general.architecture", "phi3")).unwrap();
    assert_eq!(barred(&phi3, "<|user|>\n a<|end|>\n<s> a"), "<|user|>| a|<|end|>|<s>| | a");
    let other = read(pieces(&marks).str("general.architecture", "llama")).unwrap();
    assert_eq!(barred(&other, "<|user|>\na"), "<|user|>| |\n|a");
    assert_eq!(other.special("<|end|>").map(|id| other.decode(&[id]).unwrap()).as_deref(), Some("<|end|>"));
}

#[test]
fn what_is_wrong_with_pieces_is_named() {
    let said = |writer: Writer| read(writer).err().expect("refused").to_string();
    assert!(said(pieces(&[("<0xG0>", 6, 0.0)])).contains("token 259, `<0xG0>`, should stand for one byte"));
    assert!(said(pieces(&[("a", 1, f32::NAN)])).contains("the score of token 259 is not a number"));
    let short = pieces(&[]).array("tokenizer.ggml.scores", Items::F32(&[0.0]));
    assert!(said(short).contains("259 tokens have 1 scores"));
    assert!(said(pieces(&[]).without("tokenizer.ggml.scores")).contains("`tokenizer.ggml.scores`"));
    let collapsing = pieces(&[]).bool("tokenizer.ggml.remove_extra_whitespaces", true);
    assert!(said(collapsing).contains("`tokenizer.ggml.remove_extra_whitespaces`"));
    let unknown = pieces(&[]).u32("tokenizer.ggml.unknown_token_id", 259);
    assert!(said(unknown).contains("`tokenizer.ggml.unknown_token_id` is 259"));
}
