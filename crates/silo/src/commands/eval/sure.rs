//! How sure it is that the store does more, or less, than a model that has learnt the text.

use std::cmp::Ordering;

use serde::Serialize;
use silo_eval::{Difference, DomainResult, Loss, Scope, Setting};

use super::page::Table;
use super::reference::{Reference, find};

/// How much more bits per byte a setting takes than a reference.
#[derive(Debug, Serialize)]
pub struct Sure {
    /// The reference.
    pub reference: String,
    /// The setting, as the tables call it.
    pub setting: String,
    /// Of each domain, in their order.
    pub domains: Vec<Difference>,
    /// The mean of them.
    pub all: Difference,
}

/// Of settings as columns name them, to all references that know the domains and have scored the same tokens.
pub fn differences(
    results: &[DomainResult],
    references: &[Reference],
    columns: &[(&str, Setting, Scope)],
) -> Vec<Sure> {
    let mut out = Vec::new();
    for reference in references.iter().filter(|r| r.knows_domains) {
        for (name, setting, scope) in columns {
            let pairs: Option<Vec<Vec<(Loss, Loss)>>> = results
                .iter()
                .zip(&reference.texts)
                .map(|(result, theirs)| pairs(&find(result, *setting, *scope)?.texts, theirs))
                .collect();
            out.extend(pairs.map(|pairs| Sure {
                reference: reference.name.clone(),
                setting: (*name).to_owned(),
                domains: pairs.iter().map(|pairs| Difference::of(std::slice::from_ref(pairs))).collect(),
                all: Difference::of(&pairs),
            }));
        }
    }
    out
}

fn pairs(ours: &[Loss], theirs: &[Loss]) -> Option<Vec<(Loss, Loss)>> {
    let same = ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| a.n_tokens == b.n_tokens);
    same.then(|| ours.iter().copied().zip(theirs.iter().copied()).collect())
}

impl Sure {
    fn count(&self, sign: Ordering) -> usize {
        self.domains.iter().filter(|d| d.sign() == Some(sign)).count()
    }

    /// On how many domains it is clear.
    pub fn in_words(&self) -> String {
        format!(
            " That it is better is clear on {}, that it is worse on {} (the interval does not hold 0); the mean difference is {} bits per byte.",
            self.count(Ordering::Less),
            self.count(Ordering::Greater),
            shown(&self.all)
        )
    }
}

fn shown(difference: &Difference) -> String {
    let interval = difference.interval.map(|[low, high]| format!(" [{low:+.4}, {high:+.4}]"));
    format!("{:+.4}{}", difference.bits_per_byte, interval.unwrap_or_default())
}

/// A row for each domain, and one for all.
pub fn table(domains: &[&str], sure: &[Sure]) -> String {
    let Some(first) = sure.first() else { return String::new() };
    let head = ["domain".to_owned(), "documents".to_owned()].into_iter();
    let head = head.chain(sure.iter().map(|s| format!("{} − {}", s.setting, s.reference)));
    let row = |name: &str, of: &dyn Fn(&Sure) -> Difference| {
        let own = [name.to_owned(), of(first).n_texts.to_string()].into_iter();
        own.chain(sure.iter().map(|s| shown(&of(s)))).collect()
    };
    let each = domains.iter().enumerate().map(|(i, name)| row(name, &|s| s.domains[i]));
    let rows = each.chain([row("mean of the domains", &|s| s.all)]).collect();
    format!(
        "\n## How sure that is\n\nDifference in bits per byte, below 0 where the store does more, and where it lies in 95 of 100 draws, with replacement, of as many of the \
         domain's test documents.\n\n{}",
        Table::new(head, rows).markdown()
    )
}
