//! What changed since another run: pure, from two reports to sentences.
//!
//! Owns: what counts as noise: what the samples of a run spread, and what a machine drifts between two runs. Never: a
//! verdict; whether a change is good is in the words, what to do about it is not.

use super::measure::{Better, Measure, Report};
use super::others;
use super::table::number;
use std::fmt::Write;

/// Two runs of one program on one machine that does nothing else differ by as much: other pages of memory, another
/// temperature, another minute. The samples of a run know nothing of that, so a smaller change says nothing.
const DRIFT: f64 = 0.10;
/// Half the interval around a median in which the median of the same thing is expected again within a run, in distances
/// between the quartiles over the root of the number of samples: two that do not overlap differ at the 5 % level.
/// McGill, Tukey, Larsen, "Variations of Box Plots" (1978).
const NOTCH: f64 = 1.57;

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

/// Compares two medians: a change is one if their intervals do not overlap and the median moved by more than `drift`.
pub fn change(before: &Measure, now: &Measure, drift: f64) -> Change {
    let expected = |measure: &Measure| {
        let beyond = NOTCH * (measure.high - measure.low) / (measure.samples as f64).sqrt();
        (measure.median - beyond, measure.median + beyond)
    };
    let ((old_low, old_high), (low, high)) = (expected(before), expected(now));
    let overlap = low <= old_high && old_low <= high;
    let part = moved(before, now);
    if overlap || part.abs() <= drift {
        return Change::Noise;
    }
    match (part > 0.0) == (now.better == Better::More) {
        true => Change::Better(part),
        false => Change::Worse(part),
    }
}

/// By which part of the older median.
fn moved(before: &Measure, now: &Measure) -> f64 {
    (now.median - before.median) / before.median.abs().max(f64::MIN_POSITIVE)
}

/// How far the machine itself has moved: its roofs owe nothing to the model or the server.
fn drift(pairs: &[(&Measure, &Measure)]) -> f64 {
    let roofs = pairs.iter().filter(|(_, now)| now.section() == "roof");
    roofs.map(|(before, now)| moved(before, now).abs()).fold(DRIFT, f64::max)
}

/// What changed beyond noise, line by line, and what cannot be compared.
pub fn compare(before: &Report, now: &Report) -> String {
    let mut text = format!("against {} of {}\n", before.version, before.date);
    for (what, then, today) in [
        ("machine", before.machine.processor.clone(), now.machine.processor.clone()),
        ("cores", before.machine.cores.to_string(), now.machine.cores.to_string()),
        ("model", before.model.name.clone(), now.model.name.clone()),
        ("model's description", before.model.description.clone(), now.model.description.clone()),
        ("size of its weights", before.model.weight_bytes.to_string(), now.model.weight_bytes.to_string()),
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
    for (when, report) in [("then", before), ("now", now)] {
        if let Some(others) = others::told(report.others, report.machine.cores) {
            let percent = 100.0 * others;
            let _ = writeln!(
                text,
                "  others took {percent:.0} % of the processors' time {when}: what follows may be theirs"
            );
        }
    }
    let pairs: Vec<(&Measure, &Measure)> = now
        .measures
        .iter()
        .filter_map(|now| Some((before.measures.iter().find(|old| old.name == now.name)?, now)))
        .collect();
    let (drift, mut changed) = (drift(&pairs), 0);
    for (old, measure) in &pairs {
        let (word, part) = match change(old, measure, if measure.section() == "roof" { DRIFT } else { drift })
        {
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
    let _ = writeln!(text, "  {changed} of {} figures changed beyond noise", pairs.len());
    let why = match drift > DRIFT {
        true => "as a roof of the machine itself did between the runs",
        false => "which is taken for the drift between two runs",
    };
    let _ = writeln!(
        text,
        "  noise: medians whose 95 % intervals within their runs overlap, or that moved by {:.0} % at most, {why}",
        100.0 * drift
    );
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
        Report { version, date, machine, model, others: Some(0.01), measures, notes: Vec::new() }
    }

    #[test]
    fn a_change_is_one_when_the_intervals_part_beyond_the_drift() {
        let rate = |samples: &[f64]| Measure::of("decode.64", "", Unit::TOKENS_PER_S, samples);
        let time = |samples: &[f64]| Measure::of("tax.total", "", Unit::US, samples);
        let change = |before: &Measure, now: &Measure| change(before, now, DRIFT);
        let still = [100.0, 101.0, 102.0, 103.0, 104.0];
        let wild = [60.0, 80.0, 100.0, 130.0, 150.0];
        let more = [119.0, 120.0, 121.0, 122.0, 123.0];
        assert_eq!(change(&rate(&still), &rate(&still)), Change::Noise);
        assert_eq!(change(&rate(&wild), &rate(&more)), Change::Noise, "five such samples know too little");
        assert!(
            matches!(change(&rate(&wild.repeat(20)), &rate(&more.repeat(20))), Change::Better(_)),
            "a hundred do"
        );
        assert_eq!(change(&rate(&still), &rate(&still.map(|x| x + 10.0))), Change::Noise, "a drift");
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
        assert!(text.contains("1 figures were measured then only") && !text.contains("another "), "{text}");
        assert!(text.contains("moved by 10 % at most, which is taken for the drift"), "{text}");
        now.others = Some(0.3);
        assert!(compare(&before, &now).contains("others took 30 % of the processors' time now"));
        now.model.threads = 4;
        assert!(compare(&before, &now).contains("another threads: 2 then, 4 now"));
        let mut other = before.clone();
        other.model.weight_bytes = 2;
        assert!(compare(&before, &other).contains("another size of its weights: 1 then, 2 now"));
        // A machine that is half as fast again makes nobody's work better by half.
        let faster = |report: &mut Report, by| report.measures.push(measure("roof.read_2", by));
        let (mut slow, mut fast) = (before.clone(), now.clone());
        faster(&mut slow, 20.0);
        faster(&mut fast, 30.0);
        let text = compare(&slow, &fast);
        assert!(text.contains("better  roof.read_2") && !text.contains("better  decode.64"), "{text}");
        assert!(text.contains("moved by 50 % at most, as a roof of the machine"), "{text}");
        // What is compared is what `--json` wrote.
        let json = serde_json::to_string(&before).expect("it is plain data");
        assert_eq!(serde_json::from_str::<Report>(&json).expect("it reads back"), before);
    }
}
