//! `silo token`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::json;
use silo_core::SourceId;
use silo_govern::{NewToken, Role, TokenFile, TokenRecord, now_unix_ms};

use crate::output;

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Tokens by which a server knows its callers. A server sees every change of the file at its next call.
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token and print it. It is shown this once: the file holds its hash.
    Create(Create),
    /// Take a token away.
    Revoke(Revoke),
    /// List the tokens.
    Ls(List),
}

/// The file of tokens.
#[derive(Debug, Args)]
struct File {
    /// The file of tokens, `server.tokens` of the server's configuration.
    #[arg(long, value_name = "PATH", default_value = "datastore/tokens.json")]
    tokens: PathBuf,
}

/// Makes a token.
#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    file: File,
    /// Its name, which stands in the log: 1 to 63 of a-z, 0-9, '-', '_', '.'.
    name: String,
    /// What it is for.
    #[arg(value_parser = roles())]
    role: Role,
    /// A source that it is limited to; may be given several times. An owner's token needs one.
    #[arg(long = "source", value_name = "NAME")]
    sources: Vec<SourceId>,
    /// After so many days it is refused.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    days: Option<u32>,
}

/// Takes a token away.
#[derive(Debug, Args)]
pub struct Revoke {
    #[command(flatten)]
    file: File,
    /// Its name.
    name: String,
}

/// Lists tokens.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    file: File,
}

fn roles() -> impl TypedValueParser<Value = Role> {
    let of_name = |name: String| Role::ALL.into_iter().find(|r| r.name() == name).ok_or_else(|| anyhow!("no role"));
    PossibleValuesParser::new(Role::ALL.map(Role::name)).try_map(of_name)
}

impl Token {
    /// Does it.
    pub fn run(self, as_json: bool) -> Result<()> {
        match self {
            Self::Create(c) => c.run(as_json),
            Self::Revoke(c) => Ok(TokenFile::new(&c.file.tokens).revoke(&c.name)?),
            Self::Ls(c) => list(&TokenFile::new(&c.file.tokens).list()?, as_json),
        }
    }
}

impl Create {
    fn run(self, as_json: bool) -> Result<()> {
        let Self { file, name, role, sources, days } = self;
        let sources = (!sources.is_empty()).then(|| sources.into_iter().collect());
        let expires_unix_ms = days.map(|days| now_unix_ms() + i64::from(days) * DAY_MS);
        let new = NewToken { name: name.clone(), role, sources, expires_unix_ms };
        let token = TokenFile::new(&file.tokens).create(new)?;
        if as_json {
            return output::json(&json!({"name": name, "role": role.name(), "token": token}));
        }
        println!("{token}");
        eprintln!("Keep it: it is shown this once. Give it as --token, or in SILO_TOKEN.");
        Ok(())
    }
}

fn list(tokens: &[TokenRecord], as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&tokens);
    }
    let row = |t: &TokenRecord| {
        let sources = t.sources.iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let left = t.expires_unix_ms.map(|at| at - now_unix_ms());
        let expires = match left {
            None => "never".to_owned(),
            Some(ms) if ms <= 0 => "expired".to_owned(),
            Some(ms) => format!("in {} days", (ms + DAY_MS - 1) / DAY_MS),
        };
        vec![t.name.clone(), t.role.to_string(), if sources.is_empty() { "all".into() } else { sources }, expires]
    };
    output::table(&["name", "role", "sources", "expires"], &tokens.iter().map(row).collect::<Vec<_>>());
    Ok(())
}
