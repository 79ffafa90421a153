//! Each rule of a pass, broken once; and what a correct one becomes.

use super::*;
use crate::backend::Info;
use crate::model::toy::Random;

const VOCAB: u32 = 100;
const PAGE: u32 = 16;
const POOL: u32 = 64;

/// A context of `context` tokens, then `rows` new ones, with pages to match.
fn draft(context: u32, rows: u32) -> Draft {
    let mut draft = Draft::default();
    let len = context + rows;
    let pages = len.div_ceil(PAGE);
    draft.kv_cache((0..pages).collect(), len - PAGE * (pages - 1), POOL).unwrap();
    draft.input_tokens((0..rows).collect(), (context..len).collect(), VOCAB).unwrap();
    draft
}

fn refused(mut draft: Draft) -> Mistake {
    draft.take(PAGE).expect_err("a mistake")
}

#[test]
fn a_pass_as_the_stock_sdk_builds_it() {
    let mut draft = draft(30, 4);
    draft.mask((31..=34).map(|n| vec![n]).collect()).unwrap();
    draft.output_tokens(vec![3], Sampler::TopP { temperature: 0.6, p: 0.95 }).unwrap();
    let pass = draft.take(PAGE).unwrap();
    assert_eq!((pass.len, pass.pages.len(), pass.inputs.len()), (34, 3, 4));
    assert_eq!(pass.mask, Mask::Causal, "a mask that hides nothing is the causal one");
    assert!(yields(&pass));
    assert_eq!(draft.take(PAGE).unwrap_err(), Mistake::NoInputs, "execute takes what was set");
}

#[test]
fn masks_are_brought_to_their_shortest_form() {
    let mut d = draft(2, 3);
    d.mask(vec![vec![0, 1, 2], vec![1, 0, 1, 2, 0], vec![0, 2, 0, 1, 2, 0]]).unwrap();
    assert_eq!(d.take(PAGE).unwrap().mask, Mask::Runs(vec![vec![0, 1, 2], vec![2, 2], vec![0, 3, 2]]));
}

#[test]
fn shortening_keeps_every_bit() {
    let seed: u64 = 7;
    let mut state = seed;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let spell = |runs: &[u32]| -> Vec<bool> {
        runs.iter().enumerate().flat_map(|(i, run)| std::iter::repeat_n(i % 2 == 1, *run as usize)).collect()
    };
    for round in 0..2000 {
        let runs: Vec<u32> = (0..next(9)).map(|_| next(3) as u32).collect();
        let short = shortest(runs.clone());
        assert_eq!(spell(&short), spell(&runs), "seed {seed} round {round}: {runs:?} became {short:?}");
        assert!(short.iter().skip(1).all(|run| *run > 0), "seed {seed} round {round}: {short:?}");
    }
}

#[test]
fn a_wrong_mask_is_named_by_its_row() {
    let with = |mask: Vec<Vec<u32>>| {
        let mut draft = draft(4, 2);
        draft.mask(mask).unwrap();
        refused(draft)
    };
    assert_eq!(with(vec![vec![5]]), Mistake::MaskRows { rows: 1, inputs: 2 });
    assert_eq!(with(vec![vec![5], vec![7]]), Mistake::MaskSum { row: 1, sum: 7, slots: 6 });
    assert_eq!(with(vec![vec![], vec![6]]), Mistake::MaskSum { row: 0, sum: 0, slots: 5 });
    let wraps = vec![vec![u32::MAX, 6], vec![6]];
    assert_eq!(with(wraps), Mistake::MaskSum { row: 0, sum: u64::from(u32::MAX) + 6, slots: 5 });
    assert_eq!(with(vec![vec![5], vec![0, 4, 0, 2]]), Mistake::MaskEmpty { row: 1 });
}

#[test]
fn geometry_counts_the_new_tokens() {
    let mut none = draft(0, 4);
    none.kv_cache(vec![], 4, POOL).unwrap();
    assert_eq!(refused(none), Mistake::NoPages);
    for len in [0, PAGE + 1, u32::MAX] {
        let mut last = draft(0, 4);
        last.kv_cache(vec![0], len, POOL).unwrap();
        assert_eq!(refused(last), Mistake::LastPageLen { len, page_size: PAGE });
    }
    let mut short = draft(0, 4);
    short.kv_cache(vec![0], 3, POOL).unwrap();
    assert_eq!(refused(short), Mistake::TooShort { rows: 4, len: 3 });
    let mut only_pages = Draft::default();
    only_pages.kv_cache(vec![0], 1, POOL).unwrap();
    assert_eq!(refused(only_pages), Mistake::NoInputs);
}

#[test]
fn a_page_that_is_written_stands_once() {
    let mut d = draft(30, 4);
    d.kv_cache(vec![7, 7, 2], 2, POOL).unwrap();
    assert_eq!(refused(d), Mistake::PageTwice(VirtualId(7)), "slots 30 and 31 lie in the second page");
    let mut d = draft(32, 2);
    d.kv_cache(vec![7, 7, 2], 2, POOL).unwrap();
    assert!(d.take(PAGE).is_ok(), "both are only read");
    let mut d = draft(14, 4);
    d.kv_cache(vec![3, 3], 2, POOL).unwrap();
    assert_eq!(refused(d), Mistake::PageTwice(VirtualId(3)));
}

#[test]
fn a_pass_names_no_more_pages_than_there_are() {
    let mut d = Draft::default();
    let again_and_again = vec![7; POOL as usize + 1];
    let refused = d.kv_cache(again_and_again, 1, POOL);
    assert_eq!(refused, Err(Mistake::MorePages { pages: POOL as usize + 1, pool: POOL }));
    assert!(d.kv_cache(vec![7; POOL as usize], 1, POOL).is_ok());
}

#[test]
fn lists_that_go_together_have_one_length() {
    let mut d = Draft::default();
    assert!(matches!(d.input_tokens(vec![1, 2], vec![0], VOCAB), Err(Mistake::Lengths { .. })));
    assert!(matches!(d.input_embeddings(vec![1], vec![]), Err(Mistake::Lengths { .. })));
    assert!(matches!(d.output_embeddings(vec![], vec![0]), Err(Mistake::Lengths { .. })));
    assert_eq!(
        d.input_tokens(vec![99, 100], vec![0, 1], VOCAB),
        Err(Mistake::Token { index: 1, token: 100, vocab: VOCAB })
    );
}

#[test]
fn numbers_out_of_range_are_named() {
    let mut d = draft(0, 1);
    for bad in [-1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let refused = d.output_tokens(vec![0], Sampler::Multinomial { temperature: bad });
        assert!(matches!(refused, Err(Mistake::Number { what: "temperature", .. })), "{bad}");
        assert!(d.output_distributions(vec![0], bad, None, VOCAB).is_err(), "{bad}");
    }
    for bad in [f32::NAN, -0.1, f32::NEG_INFINITY] {
        let refused = d.output_tokens(vec![0], Sampler::MinP { temperature: 1.0, p: bad });
        assert!(matches!(refused, Err(Mistake::Number { what: "min-p", .. })), "{bad}");
        let refused = d.output_tokens(vec![0], Sampler::TopKTopP { temperature: 0.0, k: 1, p: bad });
        assert!(matches!(refused, Err(Mistake::Number { what: "top-p", .. })), "{bad}");
    }
    assert_eq!(d.output_tokens(vec![0], Sampler::TopK { temperature: 1.0, k: 0 }), Err(Mistake::TopKZero));
    assert_eq!(d.output_distributions(vec![0], 1.0, Some(0), VOCAB), Err(Mistake::TopKZero));
    assert!(d.take(PAGE).unwrap().outputs.is_empty(), "what was refused left nothing behind");
}

#[test]
fn outputs_keep_their_order_and_name_rows_that_exist() {
    let mut d = draft(0, 2);
    d.output_embeddings(vec![5], vec![1]).unwrap();
    assert!(!yields(&d_pass(&mut d)));
    let mut d = draft(0, 2);
    d.output_tokens(vec![1], Sampler::Multinomial { temperature: 0.0 }).unwrap();
    d.output_distributions(vec![0, 1], 1.0, None, VOCAB).unwrap();
    d.output_distributions(vec![0], 1.0, Some(u32::MAX), VOCAB).unwrap();
    let pass = d_pass(&mut d);
    assert!(matches!(pass.outputs[0], PassOutput::Token { row: 1, .. }));
    assert!(matches!(pass.outputs[1], PassOutput::Distribution { row: 0, top_k: DISTRIBUTION_DEFAULT, .. }));
    assert!(matches!(pass.outputs[3], PassOutput::Distribution { row: 0, top_k: VOCAB, .. }));
    let mut d = draft(0, 2);
    d.output_embeddings(vec![0], vec![2]).unwrap();
    assert_eq!(refused(d), Mistake::Index { index: 2, inputs: 2 });
}

fn d_pass(draft: &mut Draft) -> Pass {
    draft.take(PAGE).unwrap()
}

#[test]
fn a_share_beyond_all_is_all() {
    let mut d = draft(0, 1);
    d.output_tokens(vec![0], Sampler::TopP { temperature: 1.0, p: f32::INFINITY }).unwrap();
    let all = Sampler::TopP { temperature: 1.0, p: 1.0 };
    assert!(matches!(d_pass(&mut d).outputs[0], PassOutput::Token { sampler, .. } if sampler == all));
}

#[test]
fn an_embedding_is_stored_to_once() {
    let mut d = draft(0, 2);
    d.output_embeddings(vec![5, 5], vec![0, 1]).unwrap();
    assert_eq!(refused(d), Mistake::StoredTwice(VirtualId(5)));
}

/// Whatever is said, in whatever order: no panic, and what gets through is well formed by the engine's own check.
#[test]
fn what_the_draft_lets_through_the_engine_accepts() {
    let info = Info {
        device: String::new(),
        page_size: PAGE,
        pages: POOL,
        embeds: 8,
        batch_tokens: 64,
        vocab: VOCAB,
        hidden: 1,
    };
    let mut random = Random::new(11);
    let (mut accepted, rounds) = (0, 20_000);
    for round in 0..rounds {
        let mut d = Draft::default();
        let rows = random.below(5) + 1;
        let context = random.below(40);
        for call in 0..5 + random.below(3) {
            // Mostly right, so that many get through; each argument is sometimes wrong in its own way.
            let mut off = |right: usize| if random.below(12) == 0 { random.below(70) } else { right };
            let len = context + rows;
            let _ = match off(call % 6) {
                0 => d.input_tokens(vec![off(3) as u32; off(rows)], vec![7; rows], VOCAB),
                1 => {
                    let pages = len.div_ceil(PAGE as usize);
                    let last = (len + PAGE as usize - 1) % PAGE as usize + 1;
                    d.kv_cache((0..off(pages) as u32).collect(), off(last) as u32, POOL)
                }
                2 => {
                    d.mask((0..off(rows)).map(|row| vec![1, off(0) as u32, (context + row) as u32]).collect())
                }
                3 => {
                    d.output_tokens(vec![off(0) as u32], Sampler::TopK { temperature: 1.0, k: off(1) as u32 })
                }
                4 => d.output_distributions(vec![off(0) as u32], off(1) as f32, Some(off(9) as u32), VOCAB),
                _ => d.output_embeddings(vec![off(2) as u32], vec![off(0) as u32]),
            };
        }
        if let Ok(pass) = d.take(PAGE) {
            accepted += 1;
            assert_eq!(pass.check(&info), Ok(()), "seed 11 round {round}: {pass:?}");
        }
    }
    assert!(accepted > rounds / 100, "{accepted} of {rounds} got through: the test says little");
}

#[test]
fn every_list_has_a_bound() {
    let mut d = Draft::default();
    let many = vec![0; limits::PASS_ROWS + 1];
    assert!(matches!(d.input_tokens(many.clone(), many.clone(), VOCAB), Err(Mistake::TooMany { .. })));
    assert!(d.mask(vec![vec![]; limits::PASS_ROWS + 1]).is_err());
    assert!(d.kv_cache(vec![0; limits::NAMES_PER_INSTANCE + 1], 1, u32::MAX).is_err());
    let outputs = vec![0; limits::PASS_OUTPUTS];
    d.output_tokens(outputs.clone(), Sampler::Multinomial { temperature: 0.0 }).unwrap();
    assert!(d.output_tokens(vec![0], Sampler::Multinomial { temperature: 0.0 }).is_err());
    let mut d = Draft::default();
    let refused = d.output_distributions(outputs, 1.0, Some(1000), 50_000);
    assert!(matches!(refused, Err(Mistake::TooMany { what: "distribution entries", .. })));
}
