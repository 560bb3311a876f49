//! What a person sees: each step when it begins and when it has ended, and the table at the end.
//!
//! The host application tells its steps to the supervisor over its standard output, one line each ([`Line`]); the
//! supervisor shows them, takes the times and keeps the table.

#![expect(
    clippy::print_stdout,
    reason = "the output of a program for people, and the line to its supervisor"
)]

use std::fmt::Write as _;
use std::future::Future;
use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// What the host application says to the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A step begins.
    Begin(String),
    /// It passed; this was checked.
    Pass(String),
    /// It failed.
    Fail(String),
    /// More about a failure.
    Note(String),
    /// The first life has done its part, and its guest runs: kill me.
    Kill,
}

impl Line {
    /// Says it.
    pub(crate) fn say(&self) {
        let (word, text) = match self {
            Self::Begin(text) => ("begin", text.as_str()),
            Self::Pass(text) => ("pass", text.as_str()),
            Self::Fail(text) => ("fail", text.as_str()),
            Self::Note(text) => ("note", text.as_str()),
            Self::Kill => ("kill", ""),
        };
        println!("{word} {}", text.replace(['\n', '\r'], " "));
    }

    /// Understands it.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (word, text) = line.split_once(' ')?;
        let text = text.to_owned();
        Some(match word {
            "begin" => Self::Begin(text),
            "pass" => Self::Pass(text),
            "fail" => Self::Fail(text),
            "note" => Self::Note(text),
            "kill" => Self::Kill,
            _ => return None,
        })
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}

/// Runs a step of the host application: `work` answers with what it checked, or the deadline ends it.
pub(crate) async fn step(
    name: &str,
    limit: Duration,
    work: impl Future<Output = Result<String>>,
) -> Result<()> {
    Line::Begin(name.to_owned()).say();
    Line::Pass(within(limit, work).await?).say();
    Ok(())
}

/// The outcome of `work`, or an error when it takes longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, Box::pin(work)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("not done within {} s", limit.as_secs()).into()),
    }
}

/// The supervisor's table, shown line by line while it grows.
#[derive(Debug)]
pub(crate) struct Table {
    began: Instant,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    began: Instant,
    took: Option<Duration>,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Running,
    Passed(String),
    Failed(String),
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            rows: Vec::new(),
        }
    }

    /// Runs a step of the supervisor itself.
    pub(crate) async fn step(
        &mut self,
        name: &str,
        limit: Duration,
        work: impl Future<Output = Result<String>>,
    ) -> Result<()> {
        self.take(Line::Begin(name.to_owned()));
        match within(limit, work).await {
            Ok(checked) => {
                self.take(Line::Pass(checked));
                Ok(())
            }
            Err(error) => {
                self.take(Line::Fail(chain(&error)));
                Err(error)
            }
        }
    }

    /// Takes what was said, and shows it.
    pub(crate) fn take(&mut self, line: Line) {
        match line {
            Line::Begin(name) => {
                print!("{:>3}. {name} … ", self.rows.len() + 1);
                let _ = std::io::stdout().flush();
                let began = Instant::now();
                self.rows.push(Row {
                    name,
                    began,
                    took: None,
                    outcome: Outcome::Running,
                });
            }
            Line::Pass(checked) => {
                self.end(Outcome::Passed(checked));
            }
            Line::Fail(error) => {
                let shown = error.clone();
                self.end(Outcome::Failed(error));
                println!("     {shown}");
            }
            Line::Note(text) => println!("     | {text}"),
            Line::Kill => {}
        }
    }

    fn end(&mut self, outcome: Outcome) {
        let Some(row) = self.rows.last_mut().filter(|row| row.took.is_none()) else {
            return;
        };
        let took = row.began.elapsed();
        let word = if matches!(outcome, Outcome::Passed(_)) {
            "ok"
        } else {
            "FAILED"
        };
        println!("{word}, {}", seconds(took));
        row.took = Some(took);
        row.outcome = outcome;
    }

    /// Whether a step was begun and its end not seen.
    pub(crate) fn is_amid_step(&self) -> bool {
        self.rows.last().is_some_and(|row| row.took.is_none())
    }

    /// Shows the whole table. Whether every step passed.
    pub(crate) fn show(&self) -> bool {
        let width = self
            .rows
            .iter()
            .map(|row| row.name.chars().count())
            .max()
            .unwrap_or(0);
        println!("\n  #  {:width$}  {:>7}  what was checked", "step", "time");
        for (i, row) in self.rows.iter().enumerate() {
            let took = row.took.map_or_else(|| "-".to_owned(), seconds);
            let text = match &row.outcome {
                Outcome::Running => "NOT ENDED".to_owned(),
                Outcome::Passed(checked) => checked.clone(),
                Outcome::Failed(error) => format!("FAILED: {error}"),
            };
            println!("{:>3}  {:width$}  {took:>7}  {text}", i + 1, row.name);
        }
        let passed = self
            .rows
            .iter()
            .filter(|row| matches!(row.outcome, Outcome::Passed(_)))
            .count();
        println!(
            "\n{passed} of {} steps passed, {} in all.",
            self.rows.len(),
            seconds(self.began.elapsed())
        );
        passed == self.rows.len()
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
