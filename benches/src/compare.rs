//! All questions in one command.
//!
//! Every kind of server takes part in every round, in turn (A B C A B C …), each time as a new
//! process, so that other load on the machine affects all of them. The result is the ratio within a
//! round; the table shows the median of each.
//!
//! | file | what it is |
//! |---|---|
//! | `questions.rs` | what is asked |
//! | `ask.rs` | how a question is put to one kind, once |
//! | `publish.rs` | the same for what is published to a topic |
//! | `nodes.rs` | the same for many nodes over NATS |
//! | `targets.rs` | what is to be reached, and whether it is |
//! | `kinds.rs` | who is asked: how each kind of server and client is built and started |
//! | `scaling.rs` | what one more client and one more byte cost |
//! | `report.rs` | medians, ratios, table, JSON |
//! | `instructions.rs` | how many instructions a call and a push take |

mod ask;
mod instructions;
mod kinds;
#[cfg(feature = "nodes")]
mod nodes;
mod publish;
mod questions;
mod report;
mod scaling;
mod targets;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

pub(crate) use self::report::{Figure, number};
use self::{
    instructions::InstructionsArgs,
    kinds::{Kind, Tools},
    questions::questions,
    report::Answer,
    scaling::ScalingArgs,
};
pub use self::{
    instructions::{StepsArgs, run_steps},
    report::{Answered, Counted, Curve, Line, OfKind, OfMetric, Point, Report},
    targets::Reached,
};
use crate::page::{self, PageArgs};

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
    /// Builds the peers (tonic, tarpc, jsonrpsee, nats-server, Centrifugo) first: some minutes the first time.
    #[arg(long)]
    peers: bool,
    /// Another build of this program, to be put beside this one in the same run.
    #[arg(long)]
    beside: Option<PathBuf>,
    /// Threads of each server. Default: its own default, one for each core.
    #[arg(long)]
    server_threads: Option<usize>,
    /// Threads of the load.
    #[arg(long, default_value_t = 1)]
    load_threads: usize,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Counts the instructions of a call and of a push, which do not depend on what else the machine does.
    Instructions(InstructionsArgs),
    /// Measures what one client costs as clients grow, and what one message costs as messages grow.
    Scaling(ScalingArgs),
    /// All of it, and then writes the page with its pictures.
    Everything(PageArgs),
}

/// Asks, and prints what came out.
///
/// # Errors
/// A file cannot be written, no question has the name asked for, or Bothways failed at one: never that
/// something took too long.
pub fn run(args: &CompareArgs) -> anyhow::Result<()> {
    match &args.what {
        None => write(args.json.as_deref(), &ask(args, &Tools::find(args)?)?),
        Some(What::Instructions(of)) => write(args.json.as_deref(), &instructions::measure(of)?),
        Some(What::Scaling(of)) => write(args.json.as_deref(), &scaling::measure(of, &Tools::find(args)?)?),
        Some(What::Everything(page)) => {
            let tools = Tools::find(args)?;
            let mut report = ask(args, &tools)?;
            // What is there is kept, whatever comes of the rest.
            page::write(&report, page)?;
            report.curves = scaling::measure(&ScalingArgs::all(args.rounds, args.quick), &tools)?.curves;
            page::write(&report, page)?;
            report.steps = instructions::measure(&InstructionsArgs::default())?.steps;
            page::write(&report, page)?;
            write(args.json.as_deref(), &report)
        }
    }
}

/// How it begins why something was not asked, for what it takes is not there.
const SKIPPED: &str = "skipped: ";

fn write(path: Option<&Path>, report: &Report) -> anyhow::Result<()> {
    if let Some(path) = path {
        let json = serde_json::to_string_pretty(report)?;
        std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    let failed = |answer: &&Answered| {
        let of_nodes = answer.skipped.get(Kind::Nodes.name());
        answer.skipped.contains_key(Kind::Ours.name()) || of_nodes.is_some_and(|why| !why.starts_with(SKIPPED))
    };
    match report.answers.iter().filter(failed).collect::<Vec<_>>() {
        failed if failed.is_empty() => Ok(()),
        failed => bail!("Bothways failed at {}", failed.iter().map(|of| &*of.name).collect::<Vec<_>>().join(", ")),
    }
}

/// Puts all questions to all kinds.
fn ask(args: &CompareArgs, tools: &Tools) -> anyhow::Result<Report> {
    let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { 5 }).max(1);
    let asked = |name: &str| args.only.is_empty() || args.only.iter().any(|only| name.contains(only));

    let mut questions = questions(args.quick);
    let names: Vec<_> = questions.iter().map(|question| question.name).collect();
    questions.retain(|question| asked(question.name));
    if questions.is_empty() {
        bail!("no question has such a name; there are {}", names.join(", "));
    }

    if args.beside.is_some() {
        questions.iter_mut().for_each(|question| question.kinds.insert(1, Kind::Beside));
    }

    let mut report = Report::new(rounds, args.quick);
    for question in &questions {
        let mut answer = Answer::new(question);
        for round in 0..rounds {
            for &kind in &question.kinds {
                eprintln!("{}: {}, round {} of {rounds}", question.name, kind.name(), round + 1);
                match question.ask.put_to(kind, question.times, tools) {
                    Ok(figures) => answer.add(kind, round, figures),
                    Err(error) => answer.add_failure(kind, format!("{error:#}")),
                }
            }
        }
        println!("{}", answer.table());
        report.answers.push(answer.finish());
    }
    Ok(report)
}
