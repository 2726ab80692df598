//! Requests and plans on the terminal.

use serde_json::{Value, json};
use silo_proto::v1;

use crate::commands::remove::parts_json;
use crate::output::{self, time};

/// The name of a message's state or code, as in files.
fn name(text: &str) -> String {
    text.to_lowercase().replace('_', "-")
}

pub(super) fn state(value: i32) -> String {
    v1::OptOutState::try_from(value).map_or_else(|_| "unknown".into(), |s| name(s.as_str_name()))
}

fn reason(value: i32) -> String {
    v1::ReasonCode::try_from(value).map_or_else(|_| "unknown".into(), |r| name(r.as_str_name()))
}

fn match_json(m: &v1::PassageMatch) -> Value {
    json!({
        "source": m.source, "document": m.document, "exact": m.exact, "overlap": m.overlap, "quarantined": m.quarantined,
        "uri": m.uri, "title": m.title,
    })
}

pub(super) fn as_json(o: &v1::OptOut) -> Value {
    let event = |e: &v1::OptOutEvent| {
        json!({
            "at_unix_ms": e.at_unix_ms, "actor": e.actor, "action": e.action, "becomes": state(e.becomes),
            "reason": reason(e.reason), "note": e.note,
        })
    };
    let spared = |d: &v1::DocumentName| json!({"source": d.source, "document": d.document});
    json!({
        "id": o.id, "state": state(o.state), "legal_hold": o.legal_hold, "kind": o.kind, "source": o.source,
        "uri_prefix": o.uri_prefix, "passage": o.passage, "passage_sha256": o.passage_sha256, "documents": o.documents,
        "claimant": o.claimant, "contact": o.contact, "matches": o.matches.iter().map(match_json).collect::<Vec<_>>(),
        "spared": o.spared.iter().map(spared).collect::<Vec<_>>(), "withheld": parts_json(&o.withheld),
        "removal": o.removal, "decide_by_unix_ms": o.decide_by_unix_ms, "restore_from_unix_ms": o.restore_from_unix_ms,
        "appeal_until_unix_ms": o.appeal_until_unix_ms, "overdue": o.overdue,
        "events": o.events.iter().map(event).collect::<Vec<_>>(),
    })
}

pub(super) fn plan_json(p: &v1::OptOutPlan) -> Value {
    let document = |d: &v1::PlannedDocument| json!({"source": d.source, "document": d.document, "n_tokens": d.n_tokens, "uri": d.uri, "title": d.title});
    let quote = |q: &v1::Quote| {
        let found = q.found.as_ref().map(match_json);
        json!({"of_source": q.of_source, "of_document": q.of_document, "found": found})
    };
    json!({
        "parts": parts_json(&p.parts), "n_documents": p.n_documents, "n_tokens": p.n_tokens,
        "documents": p.documents.iter().map(document).collect::<Vec<_>>(),
        "matches": p.matches.iter().map(match_json).collect::<Vec<_>>(),
        "quotes": p.quotes.iter().map(quote).collect::<Vec<_>>(), "n_not_compared": p.n_not_compared, "model": p.model,
        "training_sources_known": p.training_sources_known, "trained_on": p.trained_on,
        "n_unavailable_shards": p.n_unavailable_shards,
    })
}

/// What stands for a document where nothing of it is shown: its hash.
fn label(uri: &str, document: &str) -> String {
    if uri.is_empty() { document.to_owned() } else { output::one_line(uri, 72) }
}

fn percent(overlap: f64) -> String {
    format!("{:.0} %", overlap * 100.0)
}

/// Documents of a plan that are listed on a terminal.
const LISTED: usize = 20;

pub(super) fn plan(p: &v1::OptOutPlan) {
    println!("{} documents, {} tokens, in {} shards", p.n_documents, p.n_tokens, p.parts.len());
    if p.matches.is_empty() {
        let row = |d: &v1::PlannedDocument| vec![d.source.clone(), d.n_tokens.to_string(), label(&d.uri, &d.document)];
        output::table(&["source", "tokens", "document"], &p.documents.iter().take(LISTED).map(row).collect::<Vec<_>>());
        if p.n_documents as usize > LISTED {
            println!("… and {} more", p.n_documents as usize - LISTED);
        }
    } else {
        let row = |m: &v1::PassageMatch| {
            let how = if m.exact { "all of it" } else { "part of it" };
            vec![m.source.clone(), how.to_owned(), percent(m.overlap), label(&m.uri, &m.document)]
        };
        output::table(&["source", "holds", "in common", "document"], &p.matches.iter().map(row).collect::<Vec<_>>());
    }
    if !p.quotes.is_empty() {
        println!("\nDocuments that are not part of this, and hold much of one that is:");
        let row = |q: &v1::Quote| {
            let found = q.found.clone().unwrap_or_default();
            let of = format!("{}…", &q.of_document[..q.of_document.len().min(12)]);
            vec![found.source, percent(found.overlap), label(&found.uri, &found.document), of]
        };
        output::table(&["source", "in common", "document", "with"], &p.quotes.iter().map(row).collect::<Vec<_>>());
    }
    if p.n_not_compared > 0 {
        println!("{} documents were not compared with others", p.n_not_compared);
    }
    if p.n_unavailable_shards > 0 {
        println!("{} shards cannot be read, and were not looked into", p.n_unavailable_shards);
    }
    match (p.training_sources_known, p.trained_on.is_empty()) {
        (false, _) => println!("it is not known what the model {} was trained on", p.model),
        (true, true) => println!("the model {} was not trained on any of these sources", p.model),
        (true, false) => println!(
            "the model {} was trained on {}: nothing is withdrawn from weights; the next training leaves out what is granted",
            p.model,
            p.trained_on.join(", ")
        ),
    }
}

pub(super) fn list(all: &[v1::OptOut]) {
    let row = |o: &v1::OptOut| {
        let withheld: u64 = o.withheld.iter().map(|p| p.n_documents).sum();
        let due =
            if o.overdue { format!("{} (overdue)", time(o.decide_by_unix_ms)) } else { time(o.decide_by_unix_ms) };
        let state = if o.legal_hold { format!("{}, on hold", state(o.state)) } else { state(o.state) };
        vec![o.id.to_string(), state, o.kind.clone(), withheld.to_string(), due, output::one_line(&o.claimant, 32)]
    };
    let header = ["opt-out", "state", "kind", "withheld", "decide by", "claimant"];
    output::table(&header, &all.iter().map(row).collect::<Vec<_>>());
}

pub(super) fn optout(o: &v1::OptOut) {
    let hold = if o.legal_hold { ", on legal hold" } else { "" };
    println!("opt-out {} is {}{hold}", o.id, state(o.state));
    println!("  by {} ({})", o.claimant, o.contact);
    let what = match &o.kind[..] {
        "source" => format!("all of {}", o.source),
        "documents" => format!("{} documents of {}", o.documents.len(), o.source),
        "uri-prefix" if o.uri_prefix.is_empty() => "documents with a common beginning of their URIs".into(),
        "uri-prefix" => format!("documents whose URI begins with {}", o.uri_prefix),
        _ if o.passage.is_empty() => format!("a passage with SHA-256 {}", o.passage_sha256),
        _ => format!("a passage: {}", output::one_line(&o.passage, 60)),
    };
    println!("  about {what}");
    let withheld: u64 = o.withheld.iter().map(|p| p.n_documents).sum();
    println!("  in quarantine: {withheld} documents");
    if let Some(removal) = o.removal {
        println!("  withdrawn by change {removal}: `silo optout receipt {removal}` proves it");
    }
    for m in &o.matches {
        let how = if m.exact { "holds all of it" } else { "holds part of it" };
        println!("  {} {} {how}, {} in common", m.source, m.document, percent(m.overlap));
    }
    if !o.spared.is_empty() {
        println!("  let stay: {} documents", o.spared.len());
    }
    println!("  to be decided by {}", time(o.decide_by_unix_ms));
    if let Some(at) = o.restore_from_unix_ms {
        println!("  can be restored after the counter-notice from {}", time(at));
    }
    if let Some(at) = o.appeal_until_unix_ms {
        println!("  can be appealed until {}", time(at));
    }
    for e in &o.events {
        println!("  {}  {} by {} ({})  {}", time(e.at_unix_ms), e.action, e.actor, reason(e.reason), e.note);
    }
}
