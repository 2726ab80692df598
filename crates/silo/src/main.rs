//! `silo`: the command line, and the only place that names every back end.

mod client;
mod commands;
mod config;
mod output;
mod provenance;
#[cfg(test)]
mod shipped;
mod sources;
mod wiring;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A language-model service that keeps legal risk out of its weights.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage.
#[derive(Parser)]
#[command(name = "silo", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print results as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model and a store over gRPC.
    Serve(commands::serve::Serve),
    /// Continue a prompt.
    Generate(commands::generate::Generate),
    /// Log-probability of a text, and its bits per byte.
    Score(commands::score::Score),
    /// Whose text made what: answers, any text, and texts without some sources.
    #[command(subcommand)]
    Attribute(commands::attribute::Attribute),
    /// What a source gave to answers over time.
    Report(commands::report::Report),
    /// What the store would retrieve for a text.
    Search(commands::search::Search),
    /// Documents with licences and tiers, from declared sources.
    #[command(subcommand)]
    Corpus(commands::corpus::Corpus),
    /// Index recipes.
    #[command(subcommand)]
    Index(commands::index::Index),
    /// Measure on held-out text.
    #[command(subcommand)]
    Eval(commands::eval::Eval),
    /// Measure speed, memory and recall.
    Bench(commands::eval::Bench),
    /// Train a model on openly licensed text.
    Train(commands::train::Train),
    /// Sources: declare and list.
    #[command(subcommand)]
    Source(commands::source::Source),
    /// Shards: add, list, show, rebuild, suspend, resume, remove.
    #[command(subcommand)]
    Shard(commands::shard::Shard),
    /// The store as a whole: state, backup, restore, checks.
    #[command(subcommand)]
    Store(commands::store::StoreCommand),
    /// Tokens of a server's callers: create, revoke, list.
    #[command(subcommand)]
    Token(commands::token::Token),
    /// The key that receipts are signed with: create, rotate, show.
    #[command(subcommand)]
    Key(commands::key::Key),
    /// Opt-outs: submit, decide, appeal, restore; and receipts of withdrawals.
    #[command(subcommand)]
    Optout(commands::optout::OptOut),
}

/// `silo … | head` ends quietly when the reader has gone, as other programs do.
fn end_with_the_reader() {
    // SAFETY: no other thread runs yet, and the default action is a valid one. Sockets do not send this signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !matches!(arguments.command, Command::Serve(_)) {
        end_with_the_reader();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("silo: cannot start its threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let json = arguments.json;
    let result = runtime.block_on(async {
        match arguments.command {
            Command::Serve(c) => c.run().await,
            Command::Generate(c) => c.run(json).await,
            Command::Score(c) => c.run(json).await,
            Command::Attribute(c) => c.run(json).await,
            Command::Report(c) => c.run(json).await,
            Command::Search(c) => c.run(json).await,
            Command::Corpus(c) => tokio::task::spawn_blocking(move || c.run(json)).await?,
            Command::Index(c) => tokio::task::spawn_blocking(move || c.run(json)).await?,
            Command::Bench(c) => tokio::task::spawn_blocking(move || c.run(json)).await?,
            Command::Eval(c) => tokio::task::spawn_blocking(move || c.run(json)).await?,
            Command::Train(c) => c.run(json).await,
            Command::Source(c) => c.run(json).await,
            Command::Shard(c) => c.run(json).await,
            Command::Store(c) => c.run(json).await,
            Command::Token(c) => c.run(json),
            Command::Key(c) => c.run(json),
            Command::Optout(c) => c.run(json).await,
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("silo: {}", output::chain(&error));
            ExitCode::FAILURE
        }
    }
}
