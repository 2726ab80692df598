//! Steps of a request.

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use silo_proto::v1;

use super::{Why, print};
use crate::client::{Connection, Target, refused};
use crate::commands::remove;
use crate::output;

/// Decides a request.
#[derive(Debug, Args)]
#[group(id = "verdict", required = true, multiple = false)]
pub struct Decide {
    #[command(flatten)]
    target: Target,
    /// Its number.
    id: u64,
    /// Look into it.
    #[arg(long, group = "verdict")]
    review: bool,
    /// Grant it: what it names is withdrawn for good, and kept out.
    #[arg(long, group = "verdict")]
    uphold: bool,
    /// Do not grant it. What it names stays in quarantine until `silo optout restore`.
    #[arg(long, group = "verdict")]
    reject: bool,
    /// With --uphold: a document that stays, as SOURCE:HASH; may stand several times.
    #[arg(long = "spare", value_name = "SOURCE:HASH", requires = "uphold")]
    spare: Vec<String>,
    #[command(flatten)]
    why: Why,
    /// Do not wait until the bytes are gone from all files.
    #[arg(long)]
    no_wait: bool,
}

/// Keeps the bytes of a request.
#[derive(Debug, Args)]
pub struct Hold {
    #[command(flatten)]
    target: Target,
    /// Its number.
    id: u64,
    /// End the hold.
    #[arg(long)]
    end: bool,
    #[command(flatten)]
    why: Why,
}

/// Says something about a request.
#[derive(Debug, Args)]
pub struct Objection {
    #[command(flatten)]
    target: Target,
    /// Its number.
    id: u64,
    #[command(flatten)]
    why: Why,
}

fn document(text: &String) -> Result<v1::DocumentName> {
    let (source, document) = text.split_once(':').with_context(|| format!("'{text}' is not SOURCE:HASH"))?;
    Ok(v1::DocumentName { source: source.into(), document: document.into() })
}

impl Decide {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        use v1::decide_opt_out_request::Verdict;
        let verdict = match (self.review, self.uphold) {
            (true, _) => Verdict::Review,
            (false, true) => Verdict::Uphold,
            (false, false) => Verdict::Reject,
        };
        let spare = self.spare.iter().map(document).collect::<Result<_>>()?;
        let request = v1::DecideOptOutRequest { id: self.id, verdict: verdict.into(), why: self.why.message(), spare };
        let connection = self.target.connect().await?;
        let step = connection.opt_out().decide_opt_out(request).await.map_err(refused)?.into_inner();
        done(&connection, step, !self.no_wait, as_json).await?;
        connection.close().await
    }
}

impl Hold {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let request = v1::HoldOptOutRequest { id: self.id, end: self.end, why: self.why.message() };
        let step = connection.opt_out().hold_opt_out(request).await.map_err(refused)?.into_inner();
        done(&connection, step, true, as_json).await?;
        connection.close().await
    }
}

impl Objection {
    /// Objects to a request.
    pub async fn counter(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let request = v1::CounterNoticeRequest { id: self.id, why: self.why.message() };
        let optout = connection.opt_out().counter_notice(request).await.map_err(refused)?.into_inner();
        said(&optout, as_json)?;
        connection.close().await
    }

    /// Objects to a decision.
    pub async fn appeal(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let request = v1::AppealOptOutRequest { id: self.id, why: self.why.message() };
        let optout = connection.opt_out().appeal_opt_out(request).await.map_err(refused)?.into_inner();
        said(&optout, as_json)?;
        connection.close().await
    }

    /// Puts back what is in quarantine.
    pub async fn restore(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let request = v1::RestoreOptOutRequest { id: self.id, why: self.why.message() };
        let step = connection.opt_out().restore_opt_out(request).await.map_err(refused)?.into_inner();
        done(&connection, step, true, as_json).await?;
        connection.close().await
    }
}

fn said(optout: &v1::OptOut, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&print::as_json(optout));
    }
    print::optout(optout);
    Ok(())
}

/// Prints what a step did, and waits until the bytes are gone that it withdrew.
async fn done(connection: &Connection, step: v1::OptOutStep, wait: bool, as_json: bool) -> Result<()> {
    let mut optout = step.opt_out.unwrap_or_default();
    if let Some(change) = step.change.as_ref().filter(|c| wait && !c.purge_operation.is_empty()) {
        remove::purged(connection, change).await?;
        let request = v1::GetOptOutRequest { id: optout.id, with_statement: false };
        let answer = connection.opt_out().get_opt_out(request).await.map_err(refused)?.into_inner();
        optout = answer.opt_out.unwrap_or_default();
    }
    if as_json {
        let change = step.change.as_ref().map(remove::removal_json);
        return output::json(&json!({"opt_out": print::as_json(&optout), "change": change}));
    }
    if let Some(change) = &step.change {
        let what = if optout.removal == Some(change.id) { "is withdrawn" } else { "is put back" };
        remove::print(change, what, false)?;
    }
    println!("opt-out {} is {}", optout.id, print::state(optout.state));
    Ok(())
}
