//! The command line.

use std::{path::PathBuf, time::Duration};

use bothways::{store::Place, transport::Address};
use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    failure::EXIT_CODES,
    peer::PeerArgs,
    plan::{self, Method, Operator, Pair, Source},
    term,
    web::HttpAddress,
};

/// Calls, watches, measures and serves rpcx services, in both directions.
#[derive(Debug, Parser)]
#[command(name = "bothways", version, propagate_version = true, after_help = START, max_term_width = 80)]
pub(crate) struct Args {
    /// Log what the library does, on standard error; -vv logs more. RUST_LOG says it in detail
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const START: &str = "\
Start here:
  bothways demo                       everything in one process, in a few seconds
  bothways serve                      a server to try with, on 127.0.0.1:8972
  bothways listen 127.0.0.1:8972 --call Arith.Mul '{\"A\":10,\"B\":20}'
                                      call it, and see what it pushes

Exit codes: 0 fine, 1 the peer answered with an error, 2 something typed is wrong, 3 not connected
or connection lost, 4 no answer in time, 5 push not so far in time. NO_COLOR turns colours off.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show it all in one process: calls both ways, pushes, a lost connection, a client that stalls
    Demo(DemoArgs),
    /// Serve the demo services: Arith, Echo, Bench and Demo
    Serve(ServeArgs),
    /// Call a method with arguments in JSON, and print the reply as JSON
    Call(CallArgs),
    /// Print what a server pushes
    Listen(ListenArgs),
    /// Push to a server's clients, through its admin service
    Push(PushArgs),
    /// List a server's connections, through its admin service
    Connections(ConnectionsArgs),
    /// List the nodes of a server's cluster: state, sessions, what waits
    Nodes(NodesArgs),
    /// List the sessions of a server and its cluster: users, connections, what waits, what was dropped
    Sessions(SessionsArgs),
    /// Show the recent events of a session: why a message did or did not arrive
    Explain(ExplainArgs),
    /// End sessions; their clients are told why
    Kick(KickArgs),
    /// Look into the mailboxes of durable pushes, send dead letters again, delete letters
    Mail(MailArgs),
    /// Show frames in readable form: from a file, from standard input, or as a proxy in the middle
    Dump(DumpArgs),
    /// Put load on a server and measure: calls, or pushes to many connections
    Load(LoadArgs),
    /// Print a script that completes commands and options in a shell
    #[command(after_help = "Example:\n  source <(bothways completions bash)")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn help(examples: &str) -> String {
    format!("Examples:\n{}\n\n{EXIT_CODES}", in_80_columns(&format!("  {}", examples.trim())))
}

/// Commands, which are indented, continue on the next line after a `\`; paragraphs are broken between words.
fn in_80_columns(text: &str) -> String {
    let (mut lines, mut paragraph) = (Vec::new(), String::new());
    for line in text.lines().chain([""]) {
        let is_prose = !line.is_empty() && !line.starts_with(' ');
        if is_prose {
            paragraph += if paragraph.is_empty() { "" } else { " " };
            paragraph += line;
            continue;
        }
        if !paragraph.is_empty() {
            lines.extend(term::wrap_at(&std::mem::take(&mut paragraph), 0, COLUMNS));
        }
        lines.extend(command_lines(line));
    }
    lines.join("\n").trim_end().to_owned()
}

/// A command in as many lines as it takes. What is quoted stays in one.
fn command_lines(command: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut quoted = false;
    let words = command.split_inclusive(|c: char| {
        quoted ^= c == '\'';
        c == ' ' && !quoted
    });

    for word in words {
        let last = lines.last().map_or(0, |line| line.chars().count());
        if COLUMNS < last + word.trim_end().chars().count() + 2 && !word.trim().is_empty() {
            lines.push("      ".to_owned());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(word);
        }
    }

    let count = lines.len();
    let end = |(at, line): (usize, String)| if at + 1 < count { format!("{}\\", line) } else { line };
    lines.into_iter().enumerate().map(end).collect()
}

/// The width that help has room in.
const COLUMNS: usize = 80;

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways demo
  bothways demo --clients 50 --seconds 4
  bothways demo --nodes 3
  bothways demo --web

With --nodes a node of a cluster dies and its clients go on, over a nats-server where one is on the path. Every step is checked: the exit code is 1 if one of them did not happen."))]
pub(crate) struct DemoArgs {
    /// Clients that connect
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=200))]
    pub(crate) clients: u16,

    /// How long the server pushes while one client stalls
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,

    /// Show so many nodes of one cluster instead: pushes and calls from any to any client, and one that dies
    #[arg(long, value_name = "N", conflicts_with = "web", value_parser = clap::value_parser!(u16).range(3..=9))]
    pub(crate) nodes: Option<u16>,

    /// Serve a page that is a client, and push to it until Ctrl-C; of this machine, if it is a port alone
    #[arg(long, value_name = "ADDR", num_args = 0..=1, require_equals = true, default_missing_value = "8080")]
    pub(crate) web: Option<HttpAddress>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways serve
  bothways serve tcp@127.0.0.1:0 --push-every 250ms
  ADMIN_TOKEN=... bothways serve --admin-token-env ADMIN_TOKEN
  bothways serve --http 8080
  curl -N 'http://127.0.0.1:8080/events?topics=demo.clock'
  curl http://127.0.0.1:8080/debug/vars
  bothways serve --cluster nats://127.0.0.1:4222

Operators ask at an address of their own, by `bothways sessions 127.0.0.1:8973` and the like, or look at the page there.
HTTP clients send the token of --auth-token-env as the header Authorization. On this machine HTTP has /debug/vars and
/metrics, too.

Demo.Login '{\"User\":\"ann\",\"Topics\":[\"news.*\"]}' makes the caller's session one of that user, without any check, and
subscribes it, to 100 topics at most. Every caller of Arith is remembered, and gets the push `abcde` each second as
test_service_path.test_service_method. The topics demo.* are open, and demo.clock counts these seconds; in a cluster each node counts for itself, so that there are as many messages a second as nodes. Ctrl-C or SIGTERM stops gracefully; a second one stops at once."))]
pub(crate) struct ServeArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(value_name = "ADDR", default_value = "tcp@127.0.0.1:8972")]
    pub(crate) address: Address,

    /// Serve on the sockets that systemd passes on (LISTEN_FDS), and not on ADDR
    #[arg(long, conflicts_with = "address")]
    pub(crate) activated: bool,

    /// How often those who called Arith get a push
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = plan::duration)]
    pub(crate) push_every: Duration,

    /// Time for running calls, and for what waits to be written, when stopping
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = plan::duration)]
    pub(crate) grace: Duration,

    /// When stopping, send clients away one by one, so that they come back at this rate; --grace is the time for it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) reconnects_per_second: Option<u32>,

    /// Let in so many new clients a second, and as many at once; others are told when to try again
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) new_clients_per_second: Option<u32>,

    /// Ask clients for this token (__AUTH): the environment variable that holds it
    #[arg(long, value_name = "VAR")]
    pub(crate) auth_token_env: Option<String>,

    /// Keep durable pushes in this file, which is made if there is none
    #[arg(long, value_name = "FILE")]
    pub(crate) store: Option<PathBuf>,

    /// Serve HTTP there too; a port alone is of this machine: /rpc, JSON-RPC, rpcx's gateway, /events, /healthz, /readyz
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<HttpAddress>,

    /// Serve /debug/vars and /metrics to other machines too, without any token
    #[arg(long, requires = "http")]
    pub(crate) http_debug: bool,

    /// Take pages of this origin too, over WebSocket and HTTP, such as http://localhost:3000 or https://*.example.org; may
    /// be repeated
    #[arg(long = "origin", value_name = "ORIGIN")]
    pub(crate) origins: Vec<String>,

    /// Speak TLS with this certificate chain (PEM)
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The key of that certificate (PEM)
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Open the admin service to anyone who has this token: the environment variable that holds it
    #[arg(long, value_name = "VAR", group = "token_of_operators")]
    pub(crate) admin_token_env: Option<String>,

    /// Open the admin service to anyone who has this token: the file that holds it
    #[arg(long, value_name = "FILE", group = "token_of_operators")]
    pub(crate) admin_token_file: Option<PathBuf>,

    /// Where the admin service answers, of this machine or with TLS (default, with a token: tcp@127.0.0.1:8973)
    #[arg(long, value_name = "ADDR", requires = "token_of_operators")]
    pub(crate) admin: Option<Address>,

    /// One more operator: ROLE is look, push or kick, and the environment variable VAR holds the token; may be repeated
    #[arg(long = "operator", value_name = "NAME=ROLE:VAR", requires = "token_of_operators")]
    pub(crate) operators: Vec<Operator>,

    /// A name by which browsers may reach the admin page, besides IP addresses and localhost; may be repeated
    #[arg(long = "admin-host", value_name = "NAME", requires = "token_of_operators")]
    pub(crate) admin_hosts: Vec<String>,

    #[cfg(feature = "nats")]
    #[command(flatten)]
    pub(crate) cluster: crate::cluster::ClusterArgs,
}

/// How arguments travel.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Codec {
    Msgpack,
    Json,
    /// The bytes as they are
    Raw,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways call 127.0.0.1:8972 Arith.Mul '{\"A\":10,\"B\":20}'
  bothways call 127.0.0.1:8972 Arith.Mul @args.json --timeout 500ms --meta trace=abc
  echo '{\"A\":10,\"B\":20}' | bothways call 127.0.0.1:8972 Arith.Mul - --codec json
  bothways call 127.0.0.1:8972 Bench.Echo hello --codec raw --repeat 1000
  TOKEN=... bothways call 127.0.0.1:8972 Arith.Mul '{\"A\":1,\"B\":2}' --auth-env TOKEN

Bytes (Go's []byte) are written {\"$bytes\":\"<base64>\"}, in arguments and in replies. A map whose keys are no
text is written {\"$map\":[[1,\"one\"],[2,\"two\"]]} in arguments."))]
pub(crate) struct CallArgs {
    #[command(flatten)]
    pub(crate) peer: PeerArgs,

    /// What to call; the last dot separates service and method
    #[arg(value_name = "SERVICE.METHOD")]
    pub(crate) method: Method,

    /// The arguments: JSON, or @FILE, or - for standard input [default: null, or nothing with --codec raw]
    #[arg(
        value_name = "JSON",
        allow_negative_numbers = true,
        value_parser = |text: &str| Ok::<_, String>(Source::from(text))
    )]
    pub(crate) args: Option<Source>,

    /// How the arguments travel
    #[arg(long, value_enum, default_value_t = Codec::Msgpack)]
    pub(crate) codec: Codec,

    /// A pair of metadata that goes with the call; may be repeated
    #[arg(long = "meta", value_name = "K=V")]
    pub(crate) metadata: Vec<Pair>,

    /// Give up waiting for the reply after this long; the server is told
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = plan::duration)]
    pub(crate) timeout: Duration,

    /// Make the call so often, one after the other, and say how long the calls took
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) repeat: u32,

    /// Want no reply: done when the request has been written
    #[arg(long)]
    pub(crate) oneway: bool,

    /// Print one JSON object with the reply, its metadata and the time it took
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways listen 127.0.0.1:8972 --call Arith.Mul '{\"A\":10,\"B\":20}'
  bothways listen 127.0.0.1:8972 --call Chat.Join '\"blue room\"' --json --count 10 | jq .payload

A server pushes to whom it knows: most services remember who called them, hence --call, which is
repeated whenever the connection had to be made again. Messages go to standard output; what happens to
the connection goes to standard error. Ends by itself with --count or --timeout, else with Ctrl-C."))]
pub(crate) struct ListenArgs {
    #[command(flatten)]
    pub(crate) peer: PeerArgs,

    /// Call this first, with these arguments, so that the service knows this connection
    #[arg(long, value_names = ["SERVICE.METHOD", "JSON"], num_args = 1..=2)]
    pub(crate) call: Option<Vec<String>>,

    /// How the arguments of --call travel
    #[arg(long, value_enum, default_value_t = Codec::Msgpack)]
    pub(crate) codec: Codec,

    /// A pair of metadata that goes with --call; may be repeated
    #[arg(long = "meta", value_name = "K=V", requires = "call")]
    pub(crate) metadata: Vec<Pair>,

    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,

    /// End after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,

    /// End after this long; with --count the exit code is then 4
    #[arg(long, value_name = "TIME", value_parser = plan::duration)]
    pub(crate) timeout: Option<Duration>,
}

/// How to reach an admin service.
#[derive(Debug, clap::Args)]
#[command(mut_arg("address", |address| address.help(
    "Where the admin service answers (`serve --admin`): tcp@HOST:PORT, unix@/run/chat.sock, or only HOST:PORT"
)))]
// The token of a client is for the address of clients.
#[command(mut_arg("auth_env", |token| token.hide(true)), mut_arg("auth", |token| token.hide(true)))]
#[group(id = "admin_token", required = true, multiple = false, args = ["admin_token_env", "admin_token_file"])]
pub(crate) struct AdminArgs {
    #[command(flatten)]
    pub(crate) peer: PeerArgs,

    /// The environment variable that holds the admin token
    #[arg(long, value_name = "VAR")]
    pub(crate) admin_token_env: Option<String>,

    /// The file that holds the admin token
    #[arg(long, value_name = "FILE")]
    pub(crate) admin_token_file: Option<PathBuf>,

    /// Give up waiting for the server's answer after this long
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = plan::duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways push 127.0.0.1:8973 --everyone News.Flash 'hello, all of you' --admin-token-env ADMIN_TOKEN
  bothways push 127.0.0.1:8973 --to c12 Chat.Say @message.json --meta from=ops --admin-token-file token
  bothways push 127.0.0.1:8973 --user ann Chat.Say 'are you there?' --until handled --admin-token-env T
  bothways push 127.0.0.1:8973 --topic prices.EUR Prices.Set 1.08 --latest EUR --admin-token-env T
  bothways push 127.0.0.1:8973 --user ann Chat.Say '{\"Text\":\"hi\"}' --codec msgpack --admin-token-env T

ADDR is where the server's admin service answers (`bothways serve --admin`). `bothways sessions` tells who is
there. A client whose handlers take values wants the --codec that they read. A push to a topic is published: its
history keeps it. The push is tracked unless --fire or --latest says otherwise: a client that is away for a moment gets it when it is back.
Written is not arrived, and more is never known of plain rpcx clients. The exit code is 1 if nobody gets it."))]
#[command(group = clap::ArgGroup::new("target").required(true))]
#[command(override_usage = "bothways push [OPTIONS] <ADDR> <PATH.METHOD> <PAYLOAD>")]
pub(crate) struct PushArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,

    /// Push to every session
    #[arg(long, group = "target")]
    pub(crate) everyone: bool,

    /// Push to one connection, such as c12
    #[arg(long, group = "target", value_name = "CONNECTION", value_parser = plan::connection)]
    pub(crate) to: Option<String>,

    /// Push to all sessions of a user
    #[arg(long, group = "target", value_name = "NAME")]
    pub(crate) user: Option<String>,

    /// Push to one session
    #[arg(long, group = "target", value_name = "ID", value_parser = plan::session)]
    pub(crate) session: Option<String>,

    /// Push to all sessions that subscribe to a topic
    #[arg(long, group = "target", value_name = "A.B")]
    pub(crate) topic: Option<String>,

    /// At most once, to who is connected; the oldest that waits is dropped when too many do
    #[arg(long, conflicts_with = "latest")]
    pub(crate) fire: bool,

    /// The newest value of this key: it takes the place of those that still wait
    #[arg(long, value_name = "KEY")]
    pub(crate) latest: Option<String>,

    /// Keep it in the user's mailbox for this long, until all devices have handled it
    #[arg(long, value_name = "TIME", requires = "user", conflicts_with_all = ["fire", "latest"], value_parser = plan::duration)]
    pub(crate) durable: Option<Duration>,

    /// Of several pushes with the same key, each session is sent one: try again without doing it twice
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,

    /// Wait until every session is so far, and fail if one is not in time [without it: until it is written]; with
    /// --durable, every session at the node that is asked
    #[arg(long, value_enum)]
    pub(crate) until: Option<Until>,

    /// But no longer than this, 10 s at most
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = plan::up_to_10_s)]
    pub(crate) within: Duration,

    /// The service path and the method that the client sees; the last dot separates them
    #[arg(value_name = "PATH.METHOD")]
    pub(crate) method: Method,

    /// What is pushed: the text itself, or @FILE, or - for standard input; JSON unless --codec is raw
    #[arg(value_name = "PAYLOAD", value_parser = |text: &str| Ok::<_, String>(Source::from(text)))]
    pub(crate) payload: Source,

    /// How the payload travels: as it is, or a value that is typed as JSON
    #[arg(long, value_enum, default_value_t = Codec::Raw)]
    pub(crate) codec: Codec,

    /// A pair of metadata that goes with the push; may be repeated
    #[arg(long = "meta", value_name = "K=V")]
    pub(crate) metadata: Vec<Pair>,

    /// Print the outcome as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How far a push should come before its outcome is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Until {
    Queued,
    Written,
    Received,
    Handled,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways nodes 127.0.0.1:8973 --admin-token-env ADMIN_TOKEN
  bothways nodes 127.0.0.1:8973 --admin-token-file token --json | jq '.[].address'

Any node may be asked; its own line has a star. A node describes itself each second: SESS and AWAY are its sessions and
those whose clients are away, CALLS what it runs, BYTES what waits for its clients. MAIL are bytes that wait at the
node that was asked. All are asked whether they are there: a node is `silent` if it has not answered within 3 s, and
`gone` for 30 s after its lease has ended. A server alone has one line. The exit code is 1 if a node is silent or
gone."))]
#[command(override_usage = "bothways nodes [OPTIONS] <ADDR>")]
pub(crate) struct NodesArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,

    /// Print the list as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways sessions 127.0.0.1:8973 --admin-token-env ADMIN_TOKEN
  bothways sessions 127.0.0.1:8973 --user ann --admin-token-file token --json | jq '.sessions[].id'

CONN is `away` while the client may still come back; GEN counts its connections. WAIT are pushes that wait or are
not handled yet, and BYTES theirs; DROP those that never arrive. What has no room in the line is in the next. Sessions
are in the order of their users. In a cluster they are those of all nodes: c12@4f1d8a2e is connection c12 of the node
whose number begins so. The exit code is 1 if a node has not answered."))]
#[command(override_usage = "bothways sessions [OPTIONS] <ADDR>")]
pub(crate) struct SessionsArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,

    /// Only those of this user
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,

    /// Only those that subscribe to this topic
    #[arg(long, value_name = "A.B", conflicts_with = "user")]
    pub(crate) topic: Option<String>,

    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) max: u32,

    /// Only at the server that is asked, and not in all of its cluster
    #[arg(long)]
    pub(crate) here: bool,

    /// Print the list as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways explain 127.0.0.1:8973 --user ann --admin-token-env ADMIN_TOKEN
  bothways explain 127.0.0.1:8973 --session 0b5c... --admin-token-file token --json

A server remembers the last events of each session, and for a while those of sessions that ended: connections,
pushes and how far each came, calls, and why it ended. Never what was in a message. Times are UTC, by the
server's clock. In a cluster all nodes are asked. The exit code is 1 if none knows such a session, or one has not
answered."))]
#[command(group = clap::ArgGroup::new("whose").required(true))]
#[command(override_usage = "bothways explain [OPTIONS] <ADDR>")]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,

    /// All sessions of a user
    #[arg(long, group = "whose", value_name = "NAME")]
    pub(crate) user: Option<String>,

    /// One session
    #[arg(long, group = "whose", value_name = "ID", value_parser = plan::session)]
    pub(crate) session: Option<String>,

    /// Only at the server that is asked, and not in all of its cluster
    #[arg(long)]
    pub(crate) here: bool,

    /// Print the events as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways kick 127.0.0.1:8973 --user ann --why 'too many messages' --admin-token-env ADMIN_TOKEN
  bothways kick 127.0.0.1:8973 --session 0b5c... --why maintenance --admin-token-file token

A client that is sent away is told why, and cannot come back to its session; it may begin a new one. In a cluster all
nodes are told. The exit code is 1 if there was nobody to send away, or a node has not answered."))]
#[command(group = clap::ArgGroup::new("whose").required(true))]
#[command(override_usage = "bothways kick [OPTIONS] --why <TEXT> <ADDR>")]
pub(crate) struct KickArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,

    /// All sessions of a user
    #[arg(long, group = "whose", value_name = "NAME")]
    pub(crate) user: Option<String>,

    /// One session
    #[arg(long, group = "whose", value_name = "ID", value_parser = plan::session)]
    pub(crate) session: Option<String>,

    /// What their clients are told
    #[arg(long, value_name = "TEXT")]
    pub(crate) why: String,

    /// Only at the server that is asked, and not in all of its cluster
    #[arg(long)]
    pub(crate) here: bool,

    /// Print the outcome as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways mail 127.0.0.1:8973 --admin-token-env ADMIN_TOKEN
  bothways mail 127.0.0.1:8973 --user ann --admin-token-env ADMIN_TOKEN
  bothways mail 127.0.0.1:8973 --user ann --dead --admin-token-file token --json
  bothways mail 127.0.0.1:8973 --user ann --send-again 0123456789abcdef-1f --admin-token-env T
  bothways mail 127.0.0.1:8973 --user ann --dead --delete 0123456789abcdef-1f --admin-token-env T

A durable push is in the mailbox of its user until each of the user's devices has handled it, or its time is over; one
that a device could not handle is with the dead letters (`bothways serve --store`). The exit code is 1 if there is no
such letter."))]
#[command(override_usage = "bothways mail [OPTIONS] <ADDR>")]
pub(crate) struct MailArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,

    /// The letters of this user; without it, the users who have any
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,

    /// Those that a device could not handle
    #[arg(long)]
    pub(crate) dead: bool,

    /// Put this dead letter into the mailbox again, for all devices
    #[arg(long, value_name = "PLACE", requires = "user")]
    pub(crate) send_again: Option<Place>,

    /// Delete this letter; with --dead, this dead one
    #[arg(long, value_name = "PLACE", requires = "user", conflicts_with = "send_again")]
    pub(crate) delete: Option<Place>,

    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) max: u32,

    /// Print it as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways connections 127.0.0.1:8973 --admin-token-env ADMIN_TOKEN
  bothways connections 127.0.0.1:8973 --admin-token-file token --json | jq '.[].id'

SENT are pushes given to the connection, WAITING those behind a full socket, DROPPED those that never
left; CALLS are its requests that run. SPEAKS is `rpcx` for clients that can be pushed to but not called."))]
#[command(override_usage = "bothways connections [OPTIONS] <ADDR>")]
pub(crate) struct ConnectionsArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,

    /// Print the list as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways dump capture.bin
  bothways dump --hex tests/interop/golden/push.hex
  bothways dump --proxy 127.0.0.1:9000 --to 127.0.0.1:8972
  bothways dump --json capture.bin | jq 'select(.kind == \"error\")'

A capture is the bytes of one direction of one connection. A line begins with the offset of its frame;
then what it is (request, oneway, reply, error, ping, pong), the method, the number that pairs a reply with
its request, the codec, the bytes of the whole frame, the metadata and the payload. Tokens are masked."))]
pub(crate) struct DumpArgs {
    /// The bytes; - or nothing is standard input
    #[arg(value_name = "FILE", conflicts_with = "proxy")]
    pub(crate) file: Option<PathBuf>,

    /// The input is hexadecimal text; blanks, colons and what follows a # do not count
    #[arg(long, conflicts_with = "proxy")]
    pub(crate) hex: bool,

    /// Listen here, forward to --to, and show what goes through in both directions
    #[arg(long, value_name = "LISTEN", requires = "to")]
    pub(crate) proxy: Option<Address>,

    /// Where the proxy forwards to
    #[arg(long, value_name = "ADDR", requires = "proxy")]
    pub(crate) to: Option<Address>,

    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,

    /// Show tokens too
    #[arg(long)]
    pub(crate) show_secrets: bool,

    /// Show so much of each payload
    #[arg(long, value_name = "SIZE", default_value = "200", value_parser = plan::size)]
    pub(crate) payload_max: usize,

    /// Larger frames are taken for an error
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = plan::size)]
    pub(crate) frame_max: usize,

    /// End after so many frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = help("\
  bothways load 127.0.0.1:8972
  bothways load 127.0.0.1:8972 --rate 5000 --duration 30s --size 64KiB --json
  bothways load 127.0.0.1:8972 --broadcast 1000 256 --connections 200

The method must answer with the bytes that it was given, in the raw codec; every reply is compared with
its request. Without --rate each connection keeps --in-flight calls under way. With --rate calls are due
at a fixed pace, and the time of each counts from when it was due, so that a server that stands still is not
flattered. --broadcast COUNT SIZE lets the server push COUNT messages of SIZE bytes to every connection
(Bench.Join, Bench.Broadcast; `bothways serve` has them: one at a time, 1 GiB to a connection at most) and
counts what is missing or out of order."))]
pub(crate) struct LoadArgs {
    #[command(flatten)]
    pub(crate) peer: PeerArgs,

    /// Connections
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub(crate) connections: u32,

    /// Calls under way on each connection, at most
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) in_flight: u32,

    /// Calls per second over all connections, whether or not replies keep up
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) rate: Option<u32>,

    /// How long; with --broadcast, how long at most
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = plan::duration)]
    pub(crate) duration: Duration,

    /// Give up waiting for one reply after this long
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = plan::duration)]
    pub(crate) timeout: Duration,

    /// Bytes of each request
    #[arg(long, value_name = "SIZE", default_value = "581", value_parser = plan::size)]
    pub(crate) size: usize,

    /// The method to call
    #[arg(long, value_name = "SERVICE.METHOD", default_value = "Bench.Echo")]
    pub(crate) service: Method,

    /// Measure pushes instead of calls
    #[arg(long, num_args = 2, value_names = ["COUNT", "SIZE"], conflicts_with_all = ["rate", "size", "service"])]
    pub(crate) broadcast: Option<Vec<String>>,

    /// Print the result as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_and_the_exit_codes_in_its_help() {
        for mut command in Args::command().get_subcommands().cloned() {
            let help = command.render_help().to_string();
            let name = command.get_name();
            assert!(help.contains(&format!("bothways {name}")), "{name} has no example:\n{help}");
            if name != "completions" {
                assert!(help.contains("Exit codes:"), "{name}:\n{help}");
            }
        }
    }
}
