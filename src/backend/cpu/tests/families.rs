//! Every family on the CPU backend: against `transformers`, against the formulas, and against itself.

use super::*;
use crate::model::specimens::specimens;

#[test]
fn logits_are_those_of_transformers() {
    for specimen in specimens() {
        let mut cpu = load(&specimen.model(), 16, 2);
        let text = Text::of(specimen.tokens.iter().map(|&token| token as usize));
        for chunk in [text.inputs.len(), 7, 1] {
            let got = logits(&mut cpu, &text, chunk, &pages(0, 3));
            let kept = got.iter().map(|row| row.iter().step_by(specimen.every).copied().collect());
            let what = format!("{}, chunks of {chunk}", specimen.name);
            assert_close(&kept.collect::<Vec<_>>(), &specimen.logits, &what);
        }
    }
}

/// Far longer than any window, over the end of a stretch of slots, and with masks that cut into the windows.
#[test]
fn long_texts_give_what_the_formulas_give() {
    for specimen in specimens() {
        let model = specimen.model();
        let mut cpu = load(&model, 16, 2);
        for (seed, text) in [(90, Text::random(90, 290)), (91, Text::random(91, 70).masked(92, 40))] {
            let want = naive(&model, &text, &[]).logits;
            let got = logits(&mut cpu, &text, 41, &pages(0, 19));
            assert_close(&got, &want, &format!("{}, seed {seed}", specimen.name));
        }
    }
}

/// The path that serves rounds activations to 8 bits: near. With rows in an order that is not the rope's, or a part
/// of a fused matrix in the place of another, it would be farther than the logits are large.
#[test]
fn the_serving_path_is_near_in_every_format() {
    let text = Text::random(93, 40);
    for specimen in specimens() {
        for format in Quant::ALL.into_iter().filter(|format| format.block_len() <= 32) {
            let model = specimen.model_in(format);
            let mut cpu = load_as((false, KvFormat::F16), &model, 16, 2);
            let got = logits(&mut cpu, &text, 40, &pages(0, 3));
            let want = naive(&model, &text, &[]).logits;
            let pairs = got.iter().flatten().zip(want.iter().flatten());
            let (far, size) = pairs.fold((0.0, 0.0), |(far, size), (&got, want)| {
                (far + (f64::from(got) - want).powi(2), size + want.powi(2))
            });
            let far = (far / size).sqrt();
            let near = if format.block_len() == 1 { 0.002 } else { 0.05 };
            assert!(far < near, "{} in {format}: {far:.4} of the logits' size away", specimen.name);
        }
    }
}

/// Caps, activations and norms have vectors of their own.
#[test]
fn vector_paths_agree_in_every_family() {
    for (number, specimen) in specimens().iter().enumerate() {
        let format = [Quant::Q4_1, Quant::F32][number % 2];
        let what = format!("{} in {format}", specimen.name);
        paths_agree(KvFormat::ALL[number % 3], &specimen.model_in(format), &what);
    }
}

#[test]
fn bits_of_a_family_depend_on_nothing_beside_it() {
    let formats = [Quant::Q4_0, Quant::Q8_0, Quant::BF16, Quant::Q5_1];
    for (number, specimen) in specimens().into_iter().enumerate() {
        let (way, format) = (WAYS[number % WAYS.len()], formats[number % formats.len()]);
        let model = specimen.model_in(format);
        let what = format!("{} in {format}, {way:?}", specimen.name);
        for text in [Text::random(94, 45), Text::random(95, 45).masked(96, 30)] {
            stays_the_same(way, &model, &text, &what);
        }

        // The last rows alone: several ranks attend the stretches of one row, and most of a window's are empty.
        let text = Text::random(97, 530);
        let want = bits(&logits(&mut load_as(way, &model, 16, 1), &text, 64, &pages(0, 34)));
        let mut cpu = load_as(way, &model, 16, 3);
        logits(&mut cpu, &text, 53, &pages(0, 34));
        for row in [250, 256, 263, 511, 512, 519, 529] {
            let got = bits(&run(&mut cpu, vec![text.pass(row..row + 1, &pages(0, 34))]));
            assert!(got[0] == want[row], "{what}: row {row} alone");
        }
    }
}
