//! `silo optout`.

mod left_out;
mod print;
mod receipt;
mod steps;
mod submit;

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use silo_core::{OptOutState, ReasonCode};
use silo_proto::v1;

use crate::client::{Target, refused};
use crate::output;

/// Opt-outs: requests to take something out, decisions, receipts.
#[derive(Debug, Subcommand)]
pub enum OptOut {
    /// Ask for something to be taken out. What is named is used for nothing any more, from now until it is decided.
    Submit(submit::Submit),
    /// List requests.
    Ls(Ls),
    /// Show a request, or its statement of reasons.
    Show(Show),
    /// Decide a request: look into it, grant it, or not.
    Decide(steps::Decide),
    /// Keep the bytes of a request as evidence, or end that.
    Hold(steps::Hold),
    /// Object to a request, for the side that it is made against.
    Counter(steps::Objection),
    /// Object to a decision.
    Appeal(steps::Objection),
    /// Put back what a request withholds.
    Restore(steps::Objection),
    /// List what must not come in again.
    Suppressions(Suppressions),
    /// Write down which documents of a corpus must not be trained on, for `left_out` in the configuration of a training run.
    LeftOut(left_out::LeftOut),
    /// Get the receipt of a withdrawal.
    Receipt(receipt::GetReceipt),
    /// Verify a receipt. Needs the receipt and the public key of the one who issued it, and nothing else.
    Verify(receipt::Verify),
}

/// Lists requests.
#[derive(Debug, Args)]
pub struct Ls {
    #[command(flatten)]
    target: Target,
    /// Only those in this state; may stand several times.
    #[arg(long = "state", value_name = "STATE")]
    states: Vec<OptOutState>,
    /// Only those that should have been decided by now.
    #[arg(long)]
    overdue: bool,
}

/// Shows a request.
#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    target: Target,
    /// Its number.
    id: u64,
    /// The statement of reasons, as a text.
    #[arg(long)]
    statement: bool,
}

/// Lists what is kept out.
#[derive(Debug, Args)]
pub struct Suppressions {
    #[command(flatten)]
    target: Target,
}

/// Why a step is taken.
#[derive(Debug, Clone, Args)]
pub struct Why {
    /// In one word: copyright, privacy, contract, licence, reservation, court-order, insufficient, unfounded, authorised, duplicate, taken-back,
    /// other.
    #[arg(long)]
    reason: ReasonCode,
    /// In words. Whoever may see the request sees them.
    #[arg(long, default_value = "")]
    note: String,
}

impl Why {
    fn message(&self) -> Option<v1::Why> {
        let name = self.reason.name().to_uppercase().replace('-', "_");
        let reason = v1::ReasonCode::from_str_name(&name).unwrap_or_default();
        Some(v1::Why { reason: reason.into(), note: self.note.clone() })
    }
}

impl OptOut {
    /// Does it.
    pub async fn run(self, as_json: bool) -> Result<()> {
        match self {
            Self::Submit(c) => c.run(as_json).await,
            Self::Ls(c) => c.run(as_json).await,
            Self::Show(c) => c.run(as_json).await,
            Self::Decide(c) => c.run(as_json).await,
            Self::Hold(c) => c.run(as_json).await,
            Self::Counter(c) => c.counter(as_json).await,
            Self::Appeal(c) => c.appeal(as_json).await,
            Self::Restore(c) => c.restore(as_json).await,
            Self::Suppressions(c) => c.run(as_json).await,
            Self::LeftOut(c) => c.run(as_json),
            Self::Receipt(c) => c.run(as_json).await,
            Self::Verify(c) => c.run(as_json),
        }
    }
}

impl Ls {
    async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let number = |s: &OptOutState| {
            let name = s.name().to_uppercase().replace('-', "_");
            v1::OptOutState::from_str_name(&name).map(i32::from).ok_or_else(|| anyhow!("'{s}' is no state"))
        };
        let mut request = v1::ListOptOutsRequest {
            states: self.states.iter().map(number).collect::<Result<_>>()?,
            overdue: self.overdue,
            page_size: 1000,
            page_token: String::new(),
        };
        let mut all = Vec::new();
        loop {
            let page = connection.opt_out().list_opt_outs(request.clone()).await.map_err(refused)?.into_inner();
            all.extend(page.opt_outs);
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        if as_json {
            output::json(&all.iter().map(print::as_json).collect::<Vec<_>>())?;
        } else {
            print::list(&all);
        }
        connection.close().await
    }
}

impl Show {
    async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let request = v1::GetOptOutRequest { id: self.id, with_statement: self.statement };
        let answer = connection.opt_out().get_opt_out(request).await.map_err(refused)?.into_inner();
        let optout = answer.opt_out.unwrap_or_default();
        match (as_json, self.statement) {
            (true, false) => output::json(&print::as_json(&optout))?,
            (true, true) => output::json(&json!({"statement_of_reasons": answer.statement_of_reasons}))?,
            (false, true) => print!("{}", answer.statement_of_reasons),
            (false, false) => print::optout(&optout),
        }
        connection.close().await
    }
}

impl Suppressions {
    async fn run(self, as_json: bool) -> Result<()> {
        let connection = self.target.connect().await?;
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListSuppressionsRequest { page_size: 1000, page_token };
            let page = connection.opt_out().list_suppressions(request).await.map_err(refused)?.into_inner();
            all.extend(page.suppressions);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        if as_json {
            let one = |s: &v1::Suppression| json!({"opt_out": s.opt_out, "is_part": s.is_part, "n_runs": s.n_runs, "n_kept": s.n_kept});
            output::json(&all.iter().map(one).collect::<Vec<Value>>())?;
        } else {
            let row = |s: &v1::Suppression| {
                let what = if s.is_part { "a passage" } else { "a document" };
                vec![s.opt_out.to_string(), what.to_owned(), s.n_runs.to_string(), s.n_kept.to_string()]
            };
            output::table(
                &["opt-out", "what", "runs of words", "kept as hashes"],
                &all.iter().map(row).collect::<Vec<_>>(),
            );
        }
        connection.close().await
    }
}
