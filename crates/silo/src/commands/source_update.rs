//! `silo source update|show`.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use silo_proto::v1;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::source::{describe, permitted};
use crate::client::{Connection, Target, refused};
use crate::output;

/// Changes what a source may be used for.
#[derive(Debug, Args)]
pub struct Update {
    #[command(flatten)]
    target: Target,
    /// Its name.
    name: String,
    /// Take a permission back: train, knn, context, verbatim, display; may stand several times.
    #[arg(long, value_name = "PURPOSE")]
    deny: Vec<String>,
    /// Give one back that was taken; never more than the declaration permits. May stand several times.
    #[arg(long, value_name = "PURPOSE")]
    permit: Vec<String>,
    /// When its term begins: a time as 2026-01-31T00:00:00Z, or `none`.
    #[arg(long, value_name = "TIME")]
    starts: Option<String>,
    /// When its term ends.
    #[arg(long, value_name = "TIME")]
    ends: Option<String>,
    /// A file that says something about it, as KIND=PATH; kinds are robots, tdmrep, headers, rsl. May stand several times.
    #[arg(long = "signal", value_name = "KIND=PATH")]
    signals: Vec<String>,
    /// The part of the site that the source is, for the signals.
    #[arg(long, default_value = "/", value_name = "PATH")]
    site_path: String,
    /// Where the files of the signals were found: kept as evidence.
    #[arg(long, default_value = "", value_name = "ADDRESS")]
    found_at: String,
    /// The signals take the place of those that were recorded.
    #[arg(long)]
    replace_signals: bool,
    /// Say what would be, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Shows a source.
#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    target: Target,
    /// Its name.
    name: String,
}

fn set(permissions: &mut v1::Permissions, purpose: &str, to: bool) -> Result<()> {
    match purpose {
        "train" => permissions.train = to,
        "knn" => permissions.knn = to,
        "context" => permissions.context = to,
        "verbatim" => permissions.verbatim = to,
        "display" => permissions.display = to,
        other => bail!("'{other}' is no purpose; there are train, knn, context, verbatim, display"),
    }
    Ok(())
}

/// Milliseconds since 1970; `None` for `none`.
fn moment(text: &str) -> Result<Option<i64>> {
    if text == "none" {
        return Ok(None);
    }
    let at = OffsetDateTime::parse(text, &Rfc3339)
        .with_context(|| format!("'{text}' is no time; write it as 2026-01-31T00:00:00Z"))?;
    Ok(Some((at.unix_timestamp_nanos() / 1_000_000) as i64))
}

async fn get(connection: &Connection, name: &str) -> Result<v1::Source> {
    let request = v1::GetSourceRequest { name: name.to_owned() };
    Ok(connection.datastore().get_source(request).await.map_err(refused)?.into_inner())
}

impl Update {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let now = get(&connection, &self.name).await?;
        let mut permissions = None;
        if !self.deny.is_empty() || !self.permit.is_empty() {
            let mut all = now.stated_permissions.or(now.declared_permissions).unwrap_or_default();
            self.permit.iter().try_for_each(|purpose| set(&mut all, purpose, true))?;
            self.deny.iter().try_for_each(|purpose| set(&mut all, purpose, false))?;
            permissions = Some(all);
        }
        let mut term = None;
        if self.starts.is_some() || self.ends.is_some() {
            let mut new = now.term.unwrap_or_default();
            if let Some(starts) = &self.starts {
                new.starts_unix_ms = moment(starts)?;
            }
            if let Some(ends) = &self.ends {
                new.ends_unix_ms = moment(ends)?;
            }
            term = Some(new);
        }
        let signal = |text: &String| {
            let (kind, path) = text.split_once('=').with_context(|| format!("'{text}' is not KIND=PATH"))?;
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
            Ok(v1::SignalFile {
                kind: kind.into(),
                text,
                path: self.site_path.clone(),
                found_at: self.found_at.clone(),
            })
        };
        let request = v1::UpdateSourceRequest {
            name: self.name.clone(),
            permissions,
            term,
            signals: self.signals.iter().map(signal).collect::<Result<_>>()?,
            replace_signals: self.replace_signals,
            validate_only: self.dry_run,
        };
        let source = connection.datastore().update_source(request).await.map_err(refused)?.into_inner();
        print(&source, as_json)?;
        if self.dry_run && !as_json {
            println!("nothing was changed");
        }
        connection.close().await
    }
}

impl Show {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        print(&get(&connection, &self.name).await?, as_json)?;
        connection.close().await
    }
}

fn print(s: &v1::Source, as_json: bool) -> Result<()> {
    let term = s.term.unwrap_or_default();
    if as_json {
        let signal = |g: &v1::Signal| -> Value {
            json!({
                "kind": g.kind, "statements": g.statements, "permits": permitted(g.permits), "path": g.path, "found_at": g.found_at,
                "sha256": g.sha256, "recorded_unix_ms": g.recorded_unix_ms,
            })
        };
        let mut out = describe(s);
        out["declared"] = permitted(s.declared_permissions).into();
        out["term"] = json!({"starts_unix_ms": term.starts_unix_ms, "ends_unix_ms": term.ends_unix_ms});
        out["signals"] = s.signals.iter().map(signal).collect();
        return output::json(&out);
    }
    println!("{} of {}, {}", s.name, s.owner, s.licence);
    println!("  permitted now: {}", permitted(s.permissions));
    println!("  by its declaration: {}", permitted(s.declared_permissions));
    if let Some(stated) = s.stated_permissions {
        println!("  of that, by later word: {}", permitted(Some(stated)));
    }
    if let Some(starts) = term.starts_unix_ms {
        println!("  its term begins at {}", output::time(starts));
    }
    if let Some(ends) = term.ends_unix_ms {
        println!("  its term ends at {}", output::time(ends));
    }
    for signal in &s.signals {
        println!("  {} for {} leaves: {}", signal.kind, signal.path, permitted(signal.permits));
        signal.statements.iter().for_each(|line| println!("    {line}"));
        println!(
            "    found at '{}', recorded at {}, SHA-256 {}",
            signal.found_at,
            output::time(signal.recorded_unix_ms),
            signal.sha256
        );
    }
    Ok(())
}
