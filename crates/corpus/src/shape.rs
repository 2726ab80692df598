//! The shape of a source's documents: what every page repeats is taken away, and long files are cut.

use std::collections::HashMap;

use crate::dedup::exact_key;

/// A paragraph that stands in so many documents of a source …
const REPEATED_DOCUMENTS: usize = 10;
/// … and in so large a share of them is a menu or a footer, not text.
const REPEATED_SHARE: f64 = 0.1;
/// Files longer than this are cut between paragraphs.
const PART_BYTES: usize = 100_000;

/// Takes paragraphs away that a source's documents repeat. Lists of file licences and the like repeat as well; they are judged by the
/// same rule.
pub(crate) fn drop_repeated<'a>(texts: impl Iterator<Item = &'a mut String>) {
    let texts: Vec<&mut String> = texts.collect();
    let mut counts: HashMap<[u8; 32], (usize, usize)> = HashMap::new();
    for (number, text) in texts.iter().enumerate() {
        for paragraph in text.split("\n\n") {
            // A paragraph that stands twice in one document counts once for it.
            let (n, last) = counts.entry(exact_key(paragraph)).or_insert((0, usize::MAX));
            if *last != number {
                (*n, *last) = (*n + 1, number);
            }
        }
    }
    let limit = REPEATED_DOCUMENTS.max((texts.len() as f64 * REPEATED_SHARE) as usize);
    for text in texts {
        let repeated = |p: &&str| counts.get(&exact_key(p)).is_none_or(|(n, _)| *n < limit);
        let kept: Vec<&str> = text.trim_end().split("\n\n").filter(repeated).collect();
        let joined = kept.join("\n\n");
        *text = if joined.is_empty() { joined } else { joined + "\n" };
    }
}

/// Cuts a text between paragraphs into parts of about [`PART_BYTES`]; a single longer paragraph stays whole.
pub(crate) fn parts(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut at) = (0, 0);
    for paragraph in text.split_inclusive("\n\n") {
        if at > start && at + paragraph.len() - start > PART_BYTES {
            out.push(&text[start..at]);
            start = at;
        }
        at += paragraph.len();
    }
    if at > start {
        out.push(&text[start..at]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn menus_go_and_text_stays() {
        let page = |i: usize| format!("Home\nAbout\n\nPage {i} says something.\n\nFooter\n");
        let mut texts: Vec<String> = (0..30).map(page).collect();
        drop_repeated(texts.iter_mut());
        assert_eq!(texts[7], "Page 7 says something.\n");
        let mut few: Vec<String> = (0..9).map(page).collect();
        drop_repeated(few.iter_mut());
        assert_eq!(few[3], page(3), "few documents prove nothing");
    }

    #[test]
    fn long_texts_are_cut_between_paragraphs_and_lose_nothing() {
        let text: String = (0..5000).map(|i| format!("Paragraph number {i} of a very long file.\n\n")).collect();
        let parts = parts(&text);
        assert!(parts.len() > 1 && parts.iter().all(|p| p.len() <= PART_BYTES));
        assert_eq!(parts.concat(), text);
        assert_eq!(super::parts("short"), ["short"]);
        assert!(super::parts("").is_empty());
    }
}
