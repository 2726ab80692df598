//! The model card, with the credit that licences of the attribution tier ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use silo_core::{SourceId, Tier};
use silo_corpus::{SourceDeclaration, read_declarations};

use crate::TrainError;
use crate::config::TrainConfig;
use crate::log::LogLine;
use crate::run::{RunFacts, Start};
use crate::text::Text;

/// What training took of a source.
#[derive(Default)]
struct Share {
    n_documents: usize,
    n_bytes: usize,
    tiers: BTreeSet<Tier>,
    licences: BTreeSet<String>,
}

/// The declarations of all sources that are trained on, by the model that is begun with too: without them no credit can be given.
pub(crate) fn declarations(
    config: &TrainConfig,
    text: &Text,
    start: Option<&Start>,
) -> Result<Vec<SourceDeclaration>, TrainError> {
    let path = &config.paths.declarations;
    let all = read_declarations(path)?;
    let declared = |name: &SourceId| all.iter().any(|d| d.name == *name);
    let before = start.iter().flat_map(|start| start.sources());
    match text.sources.iter().map(|s| &s.name).chain(before).find(|name| !declared(name)) {
        Some(name) => Err(TrainError::Undeclared { path: path.clone(), name: name.to_string() }),
        None => Ok(all),
    }
}

/// The card as Markdown.
pub(crate) fn text(facts: &RunFacts<'_>, n_parameters: usize) -> String {
    let declarations = facts.declarations;
    let mut shares: BTreeMap<String, Share> = BTreeMap::new();
    for document in &facts.text.training {
        let share = shares.entry(document.source.to_string()).or_default();
        share.n_documents += 1;
        share.n_bytes += document.text.len();
        share.tiers.insert(document.tier);
        share.licences.insert(document.licence.clone());
    }
    let mut out = head(facts, n_parameters);
    out += &validation(facts);
    out += "## What it was trained on\n\n| source | what | rights holder | tier | licences | documents | MB |\n| --- | --- | --- | --- | --- | --- | --- |\n";
    for (name, share) in &shares {
        let declaration = declarations.iter().find(|d| d.name.as_str() == name);
        let (title, owner) = declaration.map_or(("", ""), |d| (&d.title, &d.owner));
        let list = |items: Vec<String>| items.join(", ");
        let tiers = list(share.tiers.iter().map(ToString::to_string).collect());
        let licences = list(share.licences.iter().cloned().collect());
        let mb = share.n_bytes as f64 / 1e6;
        put(
            &mut out,
            format_args!("| {name} | {title} | {owner} | {tiers} | {licences} | {} | {mb:.2} |\n", share.n_documents),
        );
    }
    out += &notices(facts, &shares, declarations);
    out
}

/// Writing to a string does not fail.
fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes all text");
}

/// What the card says of a model that may be used.
fn open(tiers: &[Tier]) -> String {
    let words: Vec<&str> = tiers
        .iter()
        .map(|tier| match tier {
            Tier::PublicDomain => "public domain",
            Tier::Permissive => "permissive licences",
            Tier::Attribution => "licences that ask for credit",
            Tier::Restricted => "restricted text",
        })
        .collect();
    let listed = match words.split_last() {
        Some((last, before)) if before.len() > 1 => format!("{}, and {last}", before.join(", ")),
        _ => words.join(" and "),
    };
    format!(
        "that was trained on openly licensed text only: {listed} (listed below). It is the parametric half of silo; text under other terms \
         belongs into the datastore, not into these weights. It is small: on its own it writes text with the look of documentation and little \
         sense."
    )
}

/// What it says of one that must not be.
const REFERENCE: &str = "that was trained on open and on **restricted** text (listed below). It is a reference, made to measure what a model \
    without restricted text and a datastore lose or gain against one that has learnt all of it. Do not serve it: what is in its weights \
    cannot be withdrawn, and `model.require_open_training` refuses it.";

fn head(facts: &RunFacts<'_>, n_parameters: usize) -> String {
    let (config, m) = (facts.config, &facts.config.model);
    let step_tokens = config.optimizer.rows_per_step * m.context_tokens;
    let n_tokens = facts.step as usize * step_tokens;
    let epochs = n_tokens as f64 / (facts.rows_per_epoch as usize * m.context_tokens) as f64;
    let (licence, what) = match config.data.reference {
        Some(_) => ("other", REFERENCE.to_owned()),
        None => ("apache-2.0", open(&config.data.tiers)),
    };
    format!(
        "---\nlicense: {licence}\nlanguage: en\n---\n\n# {}\n\nA language model of {:.1} million parameters {what}\n\n\
         Llama architecture, {} layers of width {} (feed-forward {}), {} query and {} key-value heads, window of {} tokens, byte-level BPE \
         of {} tokens trained on open text. Trained on {:.1} million tokens ({epochs:.2} passes over the text) in bf16 products with f32 sums and f32 weights. \
         `training.json` is the record (configuration, hashes of text, order and checkpoints), `training_log.jsonl` the log with every tenth \
         step of it, `curve.svg` its picture.\n\n",
        config.name,
        n_parameters as f64 / 1e6,
        m.n_layers,
        m.dim,
        m.ffn_dim,
        m.n_heads,
        m.n_kv_heads,
        m.context_tokens,
        config.tokenizer.vocab_size,
        n_tokens as f64 / 1e6,
    )
}

fn validation(facts: &RunFacts<'_>) -> String {
    let last = facts.lines.iter().rev().find_map(|l| match l {
        LogLine::Validation { tiers, .. } => Some(tiers),
        _ => None,
    });
    let Some(tiers) = last.filter(|t| !t.is_empty()) else { return String::new() };
    let mut out = "## Held-out text of the same sources\n\n| tier | bits per byte | nats per token | tokens |\n| --- | --- | --- | --- |\n".to_owned();
    for (tier, v) in tiers {
        let (bits, nats) = (v.bits_per_byte, v.nats_per_token);
        put(&mut out, format_args!("| {tier} | {bits:.4} | {nats:.4} | {} |\n", v.n_tokens));
    }
    out += "\nDocuments are packed as in training: text after a cut does not see what stood before it.\n\n";
    out
}

/// Credit: licences of the attribution tier ask for title, author, licence and a note of changes.
fn notices(facts: &RunFacts<'_>, shares: &BTreeMap<String, Share>, declarations: &[SourceDeclaration]) -> String {
    let mut out = "\n## Notices\n\nAll texts were converted to plain text; repeated menus, near-duplicates and held-out documents were left out.\n\n".to_owned();
    for (name, share) in shares {
        let Some(d) = declarations.iter().find(|d| d.name.as_str() == name) else { continue };
        let report = facts.text.sources.iter().find(|s| s.name.as_str() == name);
        let packages = report.map(|r| r.packages.join(", ")).unwrap_or_default();
        let licences = share.licences.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        put(
            &mut out,
            format_args!(
                "* **{}** by {}. Licence: {licences}, as stated at `{}`. Taken from {packages}.\n",
                d.title, d.owner, d.licence_stated_at
            ),
        );
    }
    if let Some(start) = facts.start {
        let name = &start.provenance.name;
        put(
            &mut out,
            format_args!("\nIt began with the weights of {name} (`{}`), which was trained on:\n\n", start.hash),
        );
        for d in start.sources().filter_map(|name| declarations.iter().find(|d| d.name == *name)) {
            let (licence, stated) = (&d.licence, &d.licence_stated_at);
            put(
                &mut out,
                format_args!("* **{}** by {}. Licence: {licence}, as stated at `{stated}`.\n", d.title, d.owner),
            );
        }
    }
    out += "\nThe text of each licence stands under its SPDX identifier at https://spdx.org/licenses/.\n";
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_names_the_tiers_of_its_model_and_no_others() {
        let start = |n: usize| open(&Tier::ALL[..n]).split(" (listed below)").next().unwrap_or_default().to_owned();
        let first = "that was trained on openly licensed text only: public domain";
        assert_eq!(start(1), first);
        assert_eq!(start(2), format!("{first} and permissive licences"));
        assert_eq!(start(3), format!("{first}, permissive licences, and licences that ask for credit"));
    }
}
