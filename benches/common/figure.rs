//! Figures: how they are printed, and what many samples come to.
#![expect(clippy::print_stdout, reason = "the output of a program for people")]

use std::time::Duration;

/// Prints what is promised, beside its goal.
pub fn promised(name: &str, value: f64, unit: &str, goal: &str) {
    println!("figure {name} {value:.3} {unit} goal {goal}");
}

/// Prints what is only reported.
pub fn reported(name: &str, value: f64, unit: &str) {
    println!("figure {name} {value:.3} {unit}");
}

/// Prints a remark.
pub fn remark(text: &str) {
    println!("# {text}");
}

/// The samples, smallest first.
#[derive(Debug)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Sorts them.
    #[must_use]
    pub fn new(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self(samples)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The sample below which `percent` of them lie.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let at = (self.0.len() * percent / 100).min(last);
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The one in the middle.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// `min … median … max`, to see the spread.
    #[must_use]
    pub fn spread(&self) -> String {
        let [least, middle, most] = [0, 50, 100].map(|p| self.percentile(p));
        format!("{least:.3} … {middle:.3} … {most:.3} of {}", self.count())
    }
}

/// In milliseconds.
#[must_use]
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// In microseconds.
#[must_use]
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
