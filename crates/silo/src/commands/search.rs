//! `silo search`.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use silo_proto::v1;

use super::Text;
use crate::client::{Target, refused};
use crate::output;

/// What the store would retrieve for a text: neighbours of its last token, and passages.
#[derive(Debug, Args)]
pub struct Search {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    text: Text,
    /// Neighbours [default: the server's].
    #[arg(long)]
    k: Option<u32>,
    /// Passages [default: the server's].
    #[arg(long)]
    passages: Option<u32>,
    /// Use only these sources.
    #[arg(long, value_name = "SOURCE")]
    allow_source: Vec<String>,
    /// Do not use these sources.
    #[arg(long, value_name = "SOURCE")]
    deny_source: Vec<String>,
}

impl Search {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        let filter =
            v1::Filter { allow_sources: self.allow_source, deny_sources: self.deny_source, ..v1::Filter::default() };
        let request =
            v1::SearchRequest { text: self.text.read()?, filter: Some(filter), k: self.k, passages: self.passages };
        let connection = self.target.connect().await?;
        let response = connection.datastore().search(request).await.map_err(refused)?.into_inner();
        if as_json {
            output::json(&describe(&response))?;
        } else {
            print(&response);
        }
        connection.close().await
    }
}

fn describe(r: &v1::SearchResponse) -> Value {
    let neighbor = |n: &v1::NeighborHit| {
        json!({"distance": n.distance, "source": n.source, "document": n.document, "position": n.position, "uri": n.uri,
               "title": n.title, "context": n.context, "continuation": n.continuation})
    };
    let passage = |p: &v1::PassageHit| {
        json!({"score": p.score, "source": p.source, "document": p.document, "start": p.start, "uri": p.uri, "title": p.title,
               "text": p.text})
    };
    let provenance = r.provenance.clone().unwrap_or_default();
    json!({
        "neighbors": r.neighbors.iter().map(neighbor).collect::<Vec<_>>(),
        "passages": r.passages.iter().map(passage).collect::<Vec<_>>(),
        "epoch": provenance.epoch, "root": provenance.root,
    })
}

fn print(r: &v1::SearchResponse) {
    println!("nearest entries (squared distance: smaller is nearer)");
    let rows: Vec<Vec<String>> = r
        .neighbors
        .iter()
        .map(|n| {
            let context = output::one_line(&n.context, 60);
            vec![
                format!("{:.2}", n.distance),
                n.source.clone(),
                context,
                format!("{:?}", n.continuation),
                n.title.clone(),
            ]
        })
        .collect();
    output::table(&["distance", "source", "… context", "next", "title"], &rows);
    println!("\npassages (BM25: larger is better)");
    let passage = |p: &v1::PassageHit| {
        vec![format!("{:.2}", p.score), p.source.clone(), output::one_line(&p.text, 80), p.title.clone()]
    };
    output::table(&["score", "source", "text", "title"], &r.passages.iter().map(passage).collect::<Vec<_>>());
}
