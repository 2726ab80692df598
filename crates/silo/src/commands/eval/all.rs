//! `silo eval all`.

use anyhow::Result;

use super::page::Measured;
use super::{Ground, Run, attribution, context, curve, domains, generation, keys, overlap, swap, weights, works};
use crate::output;

type Measurement = fn(&Run) -> Result<Measured<'static>>;
type Asked = fn(&Ground) -> bool;

/// All that stand on one configuration, and whether it asks for them.
const MEASUREMENTS: [(Measurement, Asked); 11] = [
    (domains::run, |_| true),
    (weights::run, |_| true),
    (overlap::run, |_| true),
    (curve::store_size, |g| !g.config.eval.store_shares.is_empty()),
    (curve::removal, |_| true),
    (context::run, |g| !g.config.eval.contexts.is_empty()),
    (keys::run, |g| !g.config.eval.recipes.is_empty()),
    (swap::run, |g| g.config.eval.swap.is_some()),
    (works::run, |g| !g.config.eval.opt_outs.is_empty()),
    (attribution::run, |_| true),
    (generation::run, |g| g.config.eval.references.iter().any(|r| r.knows_domains && !r.is_per_domain())),
];

/// Measures one after the other, and writes a page that says what came out of each.
pub fn run(run: &Run, as_json: bool) -> Result<()> {
    let asked: Vec<Measurement> = {
        let ground = Ground::open(&run.config)?;
        MEASUREMENTS.iter().filter(|(_, asked)| asked(&ground)).map(|(measure, _)| *measure).collect()
    };
    let (mut page, mut whole) = ("# What came out\n".to_owned(), serde_json::Map::new());
    for (i, measure) in asked.iter().enumerate() {
        let measured = measure(run)?;
        eprintln!("{} of {}: {}", i + 1, asked.len(), measured.title);
        measured.write(run)?;
        if !as_json {
            print!("{}", measured.tables);
        }
        if i == 0 {
            page += &measured.made_with();
        }
        page += &format!("\n## [{}]({}.md)\n\n{}\n", measured.title, measured.name, measured.finding);
        if measured.picture.is_some() {
            page += &format!("\n![{}]({}.svg)\n", measured.title, measured.name);
        }
        // After each: what is done stands there if the next one fails.
        output::file(&run.output.join("summary.md"), &page)?;
        whole.insert(measured.name.to_owned(), measured.whole);
    }
    if as_json { output::json(&whole) } else { Ok(()) }
}
