//! The matrix as a table in Markdown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::Result;

use crate::cell::{Beside, Outcome};
use crate::fault::Fault;
use crate::matrix::{self, Cell};

/// Both tables: the cells, and what others felt.
pub(crate) fn render(outcomes: &BTreeMap<Cell, Result<Outcome>>) -> String {
    let mut text = String::from("| destination, store |");
    for fault in Fault::ALL {
        let _ = write!(text, " {fault} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(Fault::ALL.len()));
    let mut rows = BTreeSet::new();
    for cell in matrix::all() {
        if !rows.insert(cell.row()) {
            continue;
        }
        let _ = write!(text, "\n| {} |", cell.row());
        for fault in Fault::ALL {
            let _ = write!(text, " {} |", shown(&Cell { fault, ..cell }, outcomes));
        }
    }
    text.push_str("\n\n");
    text.push_str(&beside(outcomes));
    text
}

fn shown(cell: &Cell, outcomes: &BTreeMap<Cell, Result<Outcome>>) -> String {
    match outcomes.get(cell) {
        Some(Ok(outcome)) => {
            format!("ok, {} repeated, {:.1} s", outcome.repeats, outcome.recovery.as_secs_f64())
        }
        Some(Err(_)) => "**failed**".to_owned(),
        None if matrix::all().contains(cell) => "not run".to_owned(),
        None => "–".to_owned(),
    }
}

/// Per fault the median over its cells of what a reader and a healthy sink waited.
fn beside(outcomes: &BTreeMap<Cell, Result<Outcome>>) -> String {
    let mut text = String::from(
        "| fault | cells | reader before, median / most ms | reader during | healthy sink before | healthy sink during |\n\
         |---|---|---|---|---|---|\n",
    );
    for fault in Fault::ALL {
        let found: Vec<&Beside> = outcomes
            .iter()
            .filter(|(cell, _)| cell.fault == fault)
            .filter_map(|(_, outcome)| outcome.as_ref().ok()?.beside.as_ref())
            .collect();
        if found.is_empty() {
            continue;
        }
        let _ = write!(text, "| {fault} | {} |", found.len());
        let columns: [fn(&Beside) -> crate::load::Latency; 4] = [
            |beside| beside.reader[0],
            |beside| beside.reader[1],
            |beside| beside.healthy[0],
            |beside| beside.healthy[1],
        ];
        for column in columns {
            let median = middle(found.iter().map(|beside| column(beside).median).collect());
            let most = middle(found.iter().map(|beside| column(beside).most).collect());
            let _ = write!(text, " {median:.1} / {most:.0} |");
        }
        text.push('\n');
    }
    text
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
