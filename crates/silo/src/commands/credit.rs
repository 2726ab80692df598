//! Text coloured by who made it, in a terminal and as a page.

use std::collections::HashMap;
use std::fmt::Write as _;

use silo_proto::v1;

use super::tier_name;
use crate::output;

/// Colours of sources, in the order in which the text names them: red, green, blue. The same in a terminal and on a page.
const COLOURS: [(u8, u8, u8); 8] = [
    (31, 119, 180),
    (214, 100, 0),
    (44, 140, 44),
    (196, 40, 40),
    (128, 90, 170),
    (140, 86, 75),
    (200, 80, 160),
    (110, 125, 20),
];

/// Documents that a legend names of each source.
const DOCUMENTS: usize = 3;

/// An answer with its credit.
pub struct Credited<'a> {
    /// The prompt.
    pub prompt: &'a str,
    /// Its tokens, with shares.
    pub tokens: &'a [v1::Token],
    /// Its end.
    pub finished: &'a v1::Finished,
    /// URI and title of documents, by shard and hash.
    pub documents: &'a HashMap<(u64, String), (String, String)>,
}

/// Which colour each source has.
#[derive(Default)]
pub struct Palette(Vec<String>);

impl Palette {
    /// The colour of a source: one after the other, and round again when they run out.
    pub fn of(&mut self, source: &str) -> (u8, u8, u8) {
        let known = self.0.iter().position(|name| name == source);
        let place = known.unwrap_or_else(|| {
            self.0.push(source.to_owned());
            self.0.len() - 1
        });
        COLOURS[place % COLOURS.len()]
    }
}

/// The source with the greatest share of a token, if sources together have more than the model.
fn holder(token: &v1::Token) -> Option<&v1::SourceShare> {
    let all: f64 = token.shares.iter().map(|s| s.share).sum();
    token.shares.iter().max_by(|a, b| a.share.total_cmp(&b.share)).filter(|_| all > 0.5)
}

/// A token's text in the colour of its source.
pub fn coloured(token: &v1::Token, palette: &mut Palette) -> String {
    match holder(token) {
        Some(share) => painted(&output::printable(&token.text, true), palette.of(&share.source)),
        None => output::printable(&token.text, true).into_owned(),
    }
}

fn painted(text: &str, (r, g, b): (u8, u8, u8)) -> String {
    format!("\x1b[38;2;{r};{g};{b}m{text}\x1b[0m")
}

fn percent(share: f64, n_tokens: f64) -> String {
    format!("{:.1} %", 100.0 * share / n_tokens)
}

impl Credited<'_> {
    fn n_tokens(&self) -> f64 {
        self.finished.usage.unwrap_or_default().new_tokens.max(1) as f64
    }

    /// The documents of a source with the greatest shares: what they are called, and their shares.
    fn documents_of(&self, source: &str) -> Vec<(String, f64)> {
        let of_source = self.finished.documents.iter().filter(|d| d.source == source).take(DOCUMENTS);
        let called = |d: &v1::DocumentShare| match self.documents.get(&(d.shard, d.document.clone())) {
            Some((uri, title)) if title.is_empty() => uri.clone(),
            Some((uri, title)) if !uri.is_empty() => format!("{title} ({uri})"),
            _ => d.document.get(..16).unwrap_or_default().to_owned(),
        };
        of_source.map(|d| (called(d), d.share)).collect()
    }

    /// Shares, licences, documents and notices, below the text.
    pub fn print_legend(&self, palette: Option<&mut Palette>) {
        let n = self.n_tokens();
        let mut rows = vec![vec![percent(self.finished.parametric_total, n), "(model)".into()]];
        rows[0].resize(5, String::new());
        for s in &self.finished.sources {
            let [tier, licence, owner] = [tier_name(s.tier).to_owned(), s.licence.clone(), s.owner.clone()];
            rows.push(vec![percent(s.total, n), s.source.clone(), tier, licence, owner]);
        }
        output::table(&["share", "source", "tier", "licence", "owner"], &rows);
        if let Some(palette) = palette {
            let shown =
                self.finished.sources.iter().filter(|s| palette.0.contains(&s.source)).map(|s| s.source.clone());
            let shown: Vec<String> = shown.collect();
            let names: Vec<String> = shown.iter().map(|name| painted(name, palette.of(name))).collect();
            if !names.is_empty() {
                println!(
                    "A token is coloured where sources have more of it than the model, as the greatest: {}",
                    names.join(" ")
                );
            }
        }
        for s in &self.finished.sources {
            for (document, share) in self.documents_of(&s.source) {
                println!(
                    "  {:>7}  {}  {}",
                    percent(share, n),
                    s.source,
                    output::one_line(&output::plain(&document), 90)
                );
            }
        }
        for notice in &self.finished.notices {
            println!("[{}] {}", notice.source, output::plain(&notice.text));
        }
    }

    /// One page that needs nothing else.
    pub fn page(&self) -> String {
        let (mut palette, n) = (Palette::default(), self.n_tokens());
        let mut text = String::new();
        for token in self.tokens {
            let all: f64 = token.shares.iter().map(|s| s.share).sum();
            let mut of_each = vec![format!("model {}", percent(1.0 - all, 1.0))];
            let mut shares: Vec<&v1::SourceShare> = token.shares.iter().collect();
            shares.sort_by(|a, b| b.share.total_cmp(&a.share));
            of_each.extend(shares.iter().take(6).map(|s| format!("{} {}", s.source, percent(s.share, 1.0))));
            let colour = shares.first().map(|first| {
                let (r, g, b) = palette.of(&first.source);
                format!(" style=\"background:rgba({r},{g},{b},{:.2})\"", 0.6 * all)
            });
            let (title, shown) = (escaped(&of_each.join(", ")), escaped(&token.text));
            let _ = write!(text, "<span title=\"{title}\"{}>{shown}</span>", colour.unwrap_or_default());
        }
        text.push_str(&escaped(&self.finished.text));
        let mut rows = format!(
            "<tr><td>{}</td><td><i>the model</i></td><td></td><td></td><td></td></tr>",
            percent(self.finished.parametric_total, n)
        );
        for s in &self.finished.sources {
            let (r, g, b) = palette.of(&s.source);
            let of_documents: Vec<String> = (self.documents_of(&s.source).iter())
                .map(|(name, share)| format!("{} {}", percent(*share, n), escaped(name)))
                .collect();
            let _ = write!(
                rows,
                "<tr><td>{}</td><td><span class=\"chip\" style=\"background:rgb({r},{g},{b})\"></span>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                percent(s.total, n),
                escaped(&s.source),
                escaped(&s.licence),
                escaped(&s.owner),
                of_documents.join("<br>"),
            );
        }
        let notice = |n: &v1::Notice| format!("<li>{}</li>", escaped(&n.text));
        let notices: String = self.finished.notices.iter().map(notice).collect();
        let provenance = self.finished.provenance.clone().unwrap_or_default();
        PAGE.replace("{prompt}", &escaped(self.prompt))
            .replace("{rows}", &rows)
            .replace("{notices}", &notices)
            .replace("{epoch}", &provenance.epoch.to_string())
            .replace("{root}", &escaped(&provenance.root))
            .replace("{model}", &escaped(&provenance.model_hash))
            .replace("{text}", &text) // the last, for it may hold what looks like a place
    }
}

/// As text of a page.
fn escaped(text: &str) -> String {
    let escape = |c| match c {
        '&' => "&amp;".into(),
        '<' => "&lt;".into(),
        '>' => "&gt;".into(),
        '"' => "&quot;".into(),
        '{' => "&#123;".into(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect::<String>()
}

const PAGE: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Who made this text</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
.text { white-space: pre-wrap; border: 1px solid #ddd; border-radius: 6px; padding: 1rem; font-family: Georgia, serif; font-size: 1.1rem }
.prompt { color: #888 }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem }
td:first-child { white-space: nowrap }
td, th { text-align: left; vertical-align: top; padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid #eee }
.chip { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin-right: 0.4em }
footer, li { font-size: 0.85rem; color: #555; overflow-wrap: anywhere }
</style></head><body>
<h1>Who made this text</h1>
<p>Each token has the colour of the source with the greatest share in its probability, the stronger the more all sources have of it; without
colour it is the model's. Point at a token for its shares.</p>
<div class="text"><span class="prompt">{prompt}</span>{text}</div>
<h2>Shares of the whole</h2>
<table><tr><th>share</th><th>source</th><th>licence</th><th>owner</th><th>documents with the most</th></tr>{rows}</table>
<h2>Notices</h2><ul>{notices}</ul>
<footer>Shares are exact: the part of each token's probability that came from a source's entries, summed. Store at epoch {epoch}, root {root};
model {model}.</footer>
</body></html>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_what_was_said_and_runs_nothing() {
        let share = |source: &str, share| v1::SourceShare { source: source.into(), share };
        let token = |text: &str, shares| v1::Token { text: text.into(), shares, ..v1::Token::default() };
        let tokens = [token("<script>{rows}", vec![share("one", 0.7)]), token(" own", vec![share("one", 0.1)])];
        let sources = vec![v1::SourceTotal { source: "one".into(), total: 0.8, ..v1::SourceTotal::default() }];
        let finished = v1::Finished { sources, parametric_total: 1.2, ..v1::Finished::default() };
        let credited = Credited { prompt: "say", tokens: &tokens, finished: &finished, documents: &HashMap::new() };
        let page = credited.page();
        assert!(page.contains("&lt;script&gt;&#123;rows}</span>") && !page.contains("<script>"), "{page}");
        assert!(page.contains("title=\"model 30.0 %, one 70.0 %\""), "{page}");
        let mut palette = Palette::default();
        assert!(coloured(&tokens[0], &mut palette).starts_with("\x1b[38;2;"));
        assert_eq!(coloured(&tokens[1], &mut palette), " own", "it is the model's");
    }
}
