//! All questions in one command.
//!
//! Every kind of server takes part in every round, in turn (A B C A B C …), each time as a new
//! process, so that what the machine does meanwhile meets all of them. What counts is the ratio
//! within a round; the table shows the median of each.
//!
//! | file | what it is |
//! |---|---|
//! | `questions.rs` | what is asked |
//! | `kinds.rs` | who is asked: how each kind of server and client is built and started |
//! | `report.rs` | medians, ratios, table, JSON |
//! | `instructions.rs` | how many instructions a call and a push take |

mod instructions;
mod kinds;
mod questions;
mod report;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

pub use self::{
    instructions::{StepsArgs, run_steps},
    report::{Answered, OfKind, OfMetric, Report},
};
use self::{kinds::Tools, questions::questions, report::Answer};

/// What to compare, and how often.
#[derive(Args, Debug)]
pub struct CompareArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// How often each question is put to each kind.
    #[arg(long)]
    rounds: Option<usize>,
    /// Short and small, to see that everything works: the figures mean little.
    #[arg(long)]
    quick: bool,
    /// Only the questions whose name contains this. May be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// Writes all figures to this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Builds the peers (tonic, tarpc, jsonrpsee) first: some minutes the first time.
    #[arg(long)]
    peers: bool,
    /// Threads of each server. Default: its own default, one for each core.
    #[arg(long)]
    server_threads: Option<usize>,
    /// Threads of the load.
    #[arg(long, default_value_t = 1)]
    load_threads: usize,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Counts the instructions of a call and of a push, which do not depend on what else the machine does.
    Instructions(instructions::InstructionsArgs),
}

/// Asks, and prints what came out.
///
/// # Errors
/// A file cannot be written, no question has the name asked for, or Bothways failed at one.
pub fn run(args: &CompareArgs) -> anyhow::Result<()> {
    if let Some(What::Instructions(args)) = &args.what {
        return instructions::run(args);
    }
    let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { 5 }).max(1);
    let asked = |name: &str| args.only.is_empty() || args.only.iter().any(|only| name.contains(only));
    let mut questions = questions(args.quick);
    let names: Vec<_> = questions.iter().map(|question| question.name).collect();
    questions.retain(|question| asked(question.name));
    if questions.is_empty() {
        bail!("no question has such a name; there are {}", names.join(", "));
    }
    let tools = Tools::find(args.peers, args.server_threads, args.load_threads)?;
    let mut report = Report::new(rounds, args.quick);
    let mut failed = Vec::new();
    for question in &questions {
        let mut answer = Answer::new(question);
        for round in 0..rounds {
            for &kind in &question.kinds {
                eprintln!("{}: {}, round {} of {rounds}", question.name, kind.name(), round + 1);
                match question.put_to(kind, &tools) {
                    Ok(figures) => answer.add(kind, round, figures),
                    Err(error) => {
                        if kind == kinds::Kind::Ours {
                            failed.push(question.name);
                        }
                        answer.add_failure(kind, format!("{error:#}"));
                    }
                }
            }
        }
        println!("{}", answer.table());
        report.answers.push(answer.finish());
    }
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    match &*failed {
        [] => Ok(()),
        failed => bail!("Bothways failed at {}", failed.join(", ")),
    }
}
