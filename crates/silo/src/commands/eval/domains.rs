//! `silo eval ppl`.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::json;
use silo_eval::{DomainResult, Measurement, Scope, Setting, Tuned, evaluate};

use super::reference::{Closed, Reference, find, gaps, references};
use super::{Ground, Run, write};
use crate::output;

pub fn run(run: &Run, as_json: bool) -> Result<()> {
    let ground = Ground::open(&run.config)?;
    let (results, shared) = evaluate(&ground.gatherer(), &ground.domains)?;
    let references = references(&ground)?;
    let closed = gaps(&results, &references, &COLUMNS[2..], ground.config.eval.min_gap_bits);
    std::fs::create_dir_all(&run.output).with_context(|| format!("cannot make {}", run.output.display()))?;
    let facts = ground.facts(run);
    let whole = json!({
        "made": facts, "shared": shared, "domains": results, "references": references, "gap_closed": closed,
    });
    write(&run.output.join("domains.json"), &format!("{whole:#}\n"))?;
    write(&run.output.join("domains.csv"), &csv(&results))?;
    let table = markdown(&results, &shared) + &compared(&results, &references, &closed);
    write(&run.output.join("domains.md"), &page(&facts, &table))?;
    if as_json {
        return output::json(&whole);
    }
    print!("{table}");
    Ok(())
}

fn csv(results: &[DomainResult]) -> String {
    let mut out = "domain,setting,scope,k,knn_weight,knn_temperature,validation_nats,validation_tokens,validation_bytes,test_nats,\
                   test_tokens,test_bytes,test_bits_per_byte,test_perplexity\n"
        .to_owned();
    for result in results {
        for m in &result.measurements {
            let parameters =
                m.parameters.map_or(",,".to_owned(), |p| format!("{},{},{}", p.k, p.knn_weight, p.knn_temperature));
            let (v, t) = (&m.validation, &m.test);
            put(
                &mut out,
                format_args!(
                    "{},{},{},{parameters},{},{},{},{},{},{},{:.6},{:.4}\n",
                    result.domain,
                    name(m),
                    json!(m.scope).as_str().unwrap_or_default(),
                    v.nats,
                    v.n_tokens,
                    v.n_bytes,
                    t.nats,
                    t.n_tokens,
                    t.n_bytes,
                    t.bits_per_byte(),
                    t.perplexity()
                ),
            );
        }
    }
    out
}

fn name(m: &Measurement) -> String {
    json!(m.setting).as_str().unwrap_or_default().to_owned()
}

/// Writing to a string does not fail.
fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes all text");
}

/// Columns of the table, in the order of a reader's interest.
const COLUMNS: [(&str, Setting, Scope); 9] = [
    ("parametric", Setting::Parametric, Scope::Mixed),
    ("its temperature tuned", Setting::Tempered, Scope::Mixed),
    ("kNN, own shard", Setting::Knn, Scope::Matched),
    ("kNN, whole store", Setting::Knn, Scope::Mixed),
    ("kNN, whole store, shared parameters", Setting::KnnShared, Scope::Mixed),
    ("context, own shard", Setting::Context, Scope::Matched),
    ("context, whole store", Setting::Context, Scope::Mixed),
    ("both, own shard", Setting::KnnAndContext, Scope::Matched),
    ("both, whole store", Setting::KnnAndContext, Scope::Mixed),
];

fn markdown(results: &[DomainResult], shared: &Tuned) -> String {
    let mut out = String::new();
    for (title, show) in [
        ("Bits per byte on test text", (|m| format!("{:.4}", m.test.bits_per_byte())) as fn(&Measurement) -> String),
        ("Perplexity per token on test text", |m| format!("{:.2}", m.test.perplexity())),
    ] {
        put(&mut out, format_args!("## {title}\n\n| domain |"));
        COLUMNS.iter().for_each(|(name, ..)| put(&mut out, format_args!(" {name} |")));
        put(&mut out, format_args!("\n| --- |{}\n", " --- |".repeat(COLUMNS.len())));
        for result in results {
            put(&mut out, format_args!("| {} |", result.domain));
            for (_, setting, scope) in COLUMNS {
                let cell = find(result, setting, scope);
                put(&mut out, format_args!(" {} |", cell.map(show).unwrap_or_default()));
            }
            out.push('\n');
        }
        out.push('\n');
    }
    let p = shared.parameters;
    put(
        &mut out,
        format_args!(
            "Shared parameters, tuned on the validation text of all domains together: k {}, weight {}, temperature {}.\n",
            p.k, p.knn_weight, p.knn_temperature
        ),
    );
    let edge: Vec<&str> = results.iter().filter(|r| r.at_the_edge).map(|r| r.domain.as_str()).collect();
    if shared.at_the_edge || !edge.is_empty() {
        put(
            &mut out,
            format_args!(
                "The best temperature lies at an end of the grid for: {} {}.\n",
                edge.join(", "),
                if shared.at_the_edge { "(and all together)" } else { "" }
            ),
        );
    }
    out
}

/// What other models say of the same text alone, and how much of the gap to those that have learnt it is closed.
fn compared(results: &[DomainResult], references: &[Reference], closed: &[Closed]) -> String {
    if references.is_empty() {
        return String::new();
    }
    let mut out =
        "\n## Models without a store, bits per byte on test text\n\n| domain | parametric | kNN, whole store |"
            .to_owned();
    references.iter().for_each(|r| put(&mut out, format_args!(" {} |", r.name)));
    put(&mut out, format_args!("\n| --- |{}\n", " --- |".repeat(2 + references.len())));
    for (i, result) in results.iter().enumerate() {
        put(&mut out, format_args!("| {} |", result.domain));
        for setting in [Setting::Parametric, Setting::Knn] {
            let cell = find(result, setting, Scope::Mixed);
            put(&mut out, format_args!(" {:.4} |", cell.map_or(f64::NAN, |m| m.test.bits_per_byte())));
        }
        references.iter().for_each(|r| put(&mut out, format_args!(" {:.4} |", r.test[i].bits_per_byte())));
        out.push('\n');
    }
    out += "\n## Gap closed\n\n(LM − x) / (LM − reference): of mean perplexities, as the paper; of each domain's, at most 1, averaged; of mean \
            log-perplexities. Beaten: domains in which x is better than the reference.\n\n\
            | reference | x | of mean perplexity | per domain, capped | of log-perplexity | domains without a gap | beaten |\n\
            | --- | --- | --- | --- | --- | --- | --- |\n";
    for Closed { reference, setting, gap } in closed {
        let share = |part: Option<f64>| part.map_or("no gap".to_owned(), |part| format!("{:.0} %", 100.0 * part));
        let (mean, capped, log) = (share(gap.mean_perplexity), share(gap.capped), share(gap.log_perplexity));
        let beaten = format!("{} of {}", gap.n_beaten, gap.n_domains);
        put(
            &mut out,
            format_args!(
                "| {reference} | {setting} | {mean} | {capped} | {log} | {} | {beaten} |\n",
                gap.n_without_a_gap
            ),
        );
    }
    out
}

fn page(facts: &serde_json::Value, table: &str) -> String {
    let text = |name: &str| facts[name].as_str().unwrap_or_default().to_owned();
    let window = match facts["sizes"]["window_tokens"].as_u64() {
        None | Some(0) => "the model's context".to_owned(),
        Some(n) => format!("{n} tokens"),
    };
    format!(
        "# Domains\n\nHeld-out text of domains, scored by the service's engine: document by document from the beginning of text, in windows of {} \
         that move by half of it, each token once; in the context modes, passages stand before what fits of the text so \
         far, and are retrieved again every stride. Weight, temperature and k were chosen on validation text, \
         per domain and mode (\"shared\": one choice for all); test text was scored once with them.\n\n\
         * Command: `{}`\n* Commit: {}\n* Machine: {}\n* Model: {}, {} parameters\n* Store: {} entries, recipe {}\n* Raw data: `domains.csv`, \
         `domains.json`\n\nThe draws are those of hashes: nothing is random.\n\n{table}",
        window,
        text("command"),
        text("commit"),
        text("machine"),
        facts["model"]["name"].as_str().unwrap_or_default(),
        facts["model"]["n_parameters"],
        facts["n_entries"],
        facts["recipe"]["name"].as_str().unwrap_or_default()
    )
}
