//! The report for people: one line per figure, sections apart, shares of the roof beside them.
//!
//! Owns: the look. Never: a figure.

use super::measure::Report;
use std::fmt::Write;

/// The whole report as text.
pub fn table(report: &Report) -> String {
    let (machine, model) = (&report.machine, &report.model);
    let mut text = format!(
        "tartlet {}, {}\n{}, {} cores, {} MB; {}\n{}; {}\n\n",
        report.version,
        report.date,
        machine.processor,
        machine.cores,
        machine.memory_mb,
        model.device.as_deref().map_or_else(|| format!("{} threads", model.threads), str::to_owned),
        model.name,
        model.description,
    );
    let head = "median";
    let _ = writeln!(text, "{:<44}{head:>12}            quartiles           roof", "");
    let mut section = "";
    for measure in &report.measures {
        if section != measure.section() {
            section = measure.section();
            let _ = writeln!(text, "{section}");
        }
        let quartiles = format!("{} … {}", number(measure.low), number(measure.high));
        let share = measure.share.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share));
        let line = format!(
            "  {:<42}{:>12} {:<9}{quartiles:>19}{share:>11}",
            measure.label,
            number(measure.median),
            measure.unit
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if !report.notes.is_empty() {
        text.push('\n');
    }
    for note in &report.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

/// Three digits that count, thousands set apart.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        small if small < 1.0 => 3,
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), ""), |(whole, rest)| (whole, rest));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut apart = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            apart.push(',');
        }
        apart.push(digit);
    }
    let point = if rest.is_empty() { "" } else { "." };
    format!("{sign}{apart}{point}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_thousands_set_apart() {
        for (value, text) in [
            (0.0, "0"),
            (0.01234, "0.012"),
            (1.234, "1.23"),
            (-12.34, "-12.3"),
            (123.4, "123"),
            (4078.0, "4,078"),
            (1234567.0, "1,234,567"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
