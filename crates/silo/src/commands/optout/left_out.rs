//! `silo optout left-out`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use silo_core::{OptOutSelection, OptOutState};
use silo_corpus::BuildReport;
use silo_govern::{Sketch, Suppressed};
use silo_store::RemovalLog;

use crate::config::ServeConfig;
use crate::output;

/// Compares a corpus with what a store keeps out.
#[derive(Debug, Args)]
pub struct LeftOut {
    /// The server's configuration, which names the store. It may be in use.
    #[arg(long, value_name = "PATH")]
    config: PathBuf,
    /// The corpus, as `silo corpus build` made it.
    #[arg(long, value_name = "PATH", default_value = "work/corpus")]
    corpus: PathBuf,
    /// The file to write: the SHA-256 of a text per line.
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
}

impl LeftOut {
    /// Runs the command.
    pub fn run(self, as_json: bool) -> Result<()> {
        let config = ServeConfig::read(&self.config)?;
        let workflow = RemovalLog::read(&config.store.root)?.workflow;
        // Whatever a source is asked out as a whole, by a request that is open or was granted.
        let asked_out =
            workflow.optouts.iter().filter(|o| !matches!(o.state, OptOutState::Rejected | OptOutState::Restored));
        let sources: BTreeSet<String> = asked_out
            .filter_map(|o| match &o.request.selection {
                OptOutSelection::Source { source } => Some(source.to_string()),
                _ => None,
            })
            .collect();
        let suppressed = Suppressed::new(workflow.suppressions);
        let overlap = config.govern.optout.suppression_overlap;
        let (mut hashes, mut n_documents) = (BTreeSet::new(), 0);
        for source in BuildReport::read(&self.corpus)?.sources {
            let documents = source.documents(&self.corpus)?;
            n_documents += documents.len();
            let all = sources.contains(source.name.as_str());
            let sketches: Vec<Sketch> = documents.iter().map(|d| Sketch::of(&workflow.key, &d.text)).collect();
            let hits = suppressed.check_all(&sketches, overlap);
            let out = documents.iter().zip(hits).filter(|(_, hit)| all || hit.is_some());
            hashes.extend(out.map(|(document, _)| document.hash.to_string()));
        }
        let text: String = hashes.iter().map(|hash| format!("{hash}\n")).collect();
        output::file(&self.output, text)?;
        if as_json {
            return output::json(&json!({"n_documents": n_documents, "n_left_out": hashes.len()}));
        }
        println!("{} of {n_documents} documents are left out: {}", hashes.len(), self.output.display());
        Ok(())
    }
}
