//! Which documents repeat others, and are neither trained nor measured on.

use std::collections::HashSet;

use crate::dedup::exact_key;
use crate::{CorpusDocument, Exclusion, NearDuplicates, Overlap, Role, Split};

/// Jaccard similarity of near-duplicates.
const NEAR_DUPLICATE: f64 = 0.8;
/// Held-out documents with more of their 13-grams elsewhere are contaminated.
const MAX_OVERLAP: f64 = 0.2;

/// Marks what is not trained or measured on, in sources with their roles. Held-out text is compared with all training text and with what goes to the
/// store. Neutral sources are compared with themselves and with what models learn: they change nothing of the others, and governed text nothing of
/// them.
pub(crate) fn exclude(sources: Vec<(Role, &mut Vec<CorpusDocument>)>) {
    let [mut train, mut domain, mut neutral] = [Vec::new(), Vec::new(), Vec::new()];
    for (role, documents) in sources {
        let of_role = match role {
            Role::Train => &mut train,
            Role::Domain => &mut domain,
            Role::Neutral => &mut neutral,
        };
        of_role.extend(documents);
    }
    let n_train = train.len();
    // Training sources first, so that a held-out copy gives way to the one that is trained on.
    train.append(&mut domain);
    mark(&mut train, &[]);
    // Sketches of all training text are only made where somebody asks for them.
    if !neutral.is_empty() {
        let learnt: Vec<&CorpusDocument> = train[..n_train].iter().map(|d| &**d).filter(|d| d.tier.is_open()).collect();
        mark(&mut neutral, &learnt);
    }
}

/// Marks, of `documents`, what repeats one of `others` or an earlier one, and of held-out text what has too much in common with training text.
fn mark(documents: &mut [&mut CorpusDocument], others: &[&CorpusDocument]) {
    let (mut exact, mut near) = (HashSet::new(), NearDuplicates::new(NEAR_DUPLICATE));
    for other in others {
        exact.insert(exact_key(&other.text));
        near.seen(&other.text);
    }
    let mut overlap = Overlap::default();
    for split in [Split::Train, Split::Validation, Split::Test] {
        for d in documents.iter_mut().filter(|d| d.split == split) {
            if !exact.insert(exact_key(&d.text)) {
                d.excluded = Some(Exclusion::ExactDuplicate);
            } else if near.seen(&d.text) {
                d.excluded = Some(Exclusion::NearDuplicate);
            } else if split != Split::Train {
                overlap.hold_out(&d.text);
            }
        }
    }
    let of_documents = documents.iter().map(|d| &**d);
    of_documents
        .chain(others.iter().copied())
        .filter(|d| d.split == Split::Train)
        .for_each(|d| overlap.look_at(&d.text));
    for d in documents.iter_mut().filter(|d| d.split != Split::Train && d.excluded.is_none()) {
        let share = overlap.share(&d.text);
        d.overlap = Some(share);
        if share > MAX_OVERLAP {
            d.excluded = Some(Exclusion::Contaminated);
        }
    }
}
