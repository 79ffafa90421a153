//! What changed since another run: pure, from two reports to sentences.
//!
//! Owns: what counts as noise. Never: a verdict; whether a change is good is in the words, what to do about it is not.

use super::measure::{Better, Measure, Report};
use super::table::number;
use std::fmt::Write;

/// A smaller change of the median says nothing, however still the machine was in both runs.
const FLOOR: f64 = 0.05;
/// How far beyond the quartiles samples of the same thing may lie, in distances between the quartiles. Tukey,
/// "Exploratory Data Analysis" (1977). A machine drifts between two runs more than within one.
const FENCE: f64 = 1.5;

/// How one figure moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Within what the samples spread.
    Noise,
    /// By this part of the older median, for the better ...
    Better(f64),
    /// ... or for the worse.
    Worse(f64),
}

/// Compares two medians by the spread of their samples: a change is one if the ranges in which samples are expected do
/// not overlap, and the median moved by more than [`FLOOR`].
pub fn change(before: &Measure, now: &Measure) -> Change {
    let expected = |measure: &Measure| {
        let beyond = FENCE * (measure.high - measure.low);
        (measure.low - beyond, measure.high + beyond)
    };
    let ((old_low, old_high), (low, high)) = (expected(before), expected(now));
    let overlap = low <= old_high && old_low <= high;
    let part = (now.median - before.median) / before.median.abs().max(f64::MIN_POSITIVE);
    if overlap || part.abs() < FLOOR {
        return Change::Noise;
    }
    match (part > 0.0) == (now.better == Better::More) {
        true => Change::Better(part),
        false => Change::Worse(part),
    }
}

/// What changed beyond noise, line by line, and what cannot be compared.
pub fn compare(before: &Report, now: &Report) -> String {
    let mut text = format!("against {} of {}\n", before.version, before.date);
    for (what, then, today) in [
        ("machine", before.machine.processor.clone(), now.machine.processor.clone()),
        ("cores", before.machine.cores.to_string(), now.machine.cores.to_string()),
        ("model", before.model.name.clone(), now.model.name.clone()),
        ("threads", before.model.threads.to_string(), now.model.threads.to_string()),
    ] {
        if then != today {
            let _ = writeln!(text, "  another {what}: {then} then, {today} now");
        }
    }
    if let (Some(then), Some(today)) = (&before.model.device, &now.model.device)
        && then != today
    {
        let _ = writeln!(text, "  another backend: {then} then, {today} now");
    }
    let (mut compared, mut changed) = (0, 0);
    for measure in &now.measures {
        let Some(old) = before.measures.iter().find(|old| old.name == measure.name) else { continue };
        compared += 1;
        let (word, part) = match change(old, measure) {
            Change::Noise => continue,
            Change::Better(part) => ("better", part),
            Change::Worse(part) => ("WORSE", part),
        };
        changed += 1;
        let _ = writeln!(
            text,
            "  {word:<6}  {:<28}  {} -> {} {}  ({:+.1} %)",
            measure.name,
            number(old.median),
            number(measure.median),
            measure.unit,
            100.0 * part,
        );
    }
    let _ = writeln!(text, "  {changed} of {compared} figures changed beyond noise");
    for (count, where_) in [
        (missing(&now.measures, &before.measures), "now only"),
        (missing(&before.measures, &now.measures), "then only"),
    ] {
        if count > 0 {
            let _ = writeln!(text, "  {count} figures were measured {where_}");
        }
    }
    text
}

/// How many of `these` are not among `those`.
fn missing(these: &[Measure], those: &[Measure]) -> usize {
    these.iter().filter(|this| !those.iter().any(|that| that.name == this.name)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measure::{Machine, Measured, Unit};

    fn report(measures: Vec<Measure>) -> Report {
        let machine = Machine { processor: "p".into(), cores: 2, memory_mb: 1, instructions: "plain".into() };
        let model = Measured {
            name: "m".into(),
            description: "d".into(),
            weight_bytes: 1,
            packed_bytes: None,
            device: Some("cpu".into()),
            threads: 2,
        };
        let (version, date) = ("0.1.0".into(), "2026-01-01T00:00:00Z".into());
        Report { version, date, machine, model, measures, notes: Vec::new() }
    }

    #[test]
    fn a_change_is_one_when_the_spreads_part() {
        let rate = |samples: &[f64]| Measure::of("decode.64", "", Unit::TOKENS_PER_S, samples);
        let time = |samples: &[f64]| Measure::of("tax.total", "", Unit::US, samples);
        let still = [100.0, 101.0, 102.0, 103.0, 104.0];
        let wild = [60.0, 80.0, 100.0, 130.0, 150.0];
        let more = [119.0, 120.0, 121.0, 122.0, 123.0];
        assert_eq!(change(&rate(&still), &rate(&still)), Change::Noise);
        assert_eq!(change(&rate(&wild), &rate(&more)), Change::Noise);
        assert_eq!(change(&rate(&still), &rate(&still.map(|x| x + 6.0))), Change::Noise, "within the fences");
        let near = [104.0; 5];
        assert_eq!(change(&rate(&[100.0; 5]), &rate(&near)), Change::Noise, "below the floor");
        assert!(matches!(change(&rate(&still), &rate(&more)), Change::Better(part) if part > 0.18));
        assert!(matches!(change(&rate(&more), &rate(&still)), Change::Worse(part) if part < -0.15));
        assert!(matches!(change(&time(&still), &time(&more)), Change::Worse(part) if part > 0.18));
        assert!(matches!(change(&time(&[0.0; 5]), &time(&still)), Change::Worse(_)), "from nothing");
    }

    #[test]
    fn two_reports_are_compared_by_name() {
        let measure = |name: &str, value: f64| Measure::of(name, "", Unit::TOKENS_PER_S, &[value; 5]);
        let before =
            report(vec![measure("decode.64", 100.0), measure("prefill.512", 900.0), measure("gone", 1.0)]);
        let mut now = report(vec![measure("decode.64", 150.0), measure("prefill.512", 901.0)]);
        let text = compare(&before, &now);
        assert!(text.contains("better  decode.64") && text.contains("(+50.0 %)"), "{text}");
        assert!(text.contains("1 of 2 figures changed beyond noise"), "{text}");
        assert!(text.contains("1 figures were measured then only") && !text.contains("another"), "{text}");
        now.model.threads = 4;
        assert!(compare(&before, &now).contains("another threads: 2 then, 4 now"));
        // What is compared is what `--json` wrote.
        let json = serde_json::to_string(&before).expect("it is plain data");
        assert_eq!(serde_json::from_str::<Report>(&json).expect("it reads back"), before);
    }
}
