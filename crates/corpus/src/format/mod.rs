//! File contents → clean paragraphs.

mod code;
mod html;
mod lines;
mod mail;
mod man;
mod markup;
mod plain;
mod sword;
mod tagged;
mod xml;

use serde::Deserialize;

/// Format of a source's files. Names that end in `.gz` or `.dz` are decompressed first, whatever the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Plain text.
    Text,
    /// HTML; navigation, headers and footers are left out.
    Html,
    /// man and mdoc pages.
    Man,
    /// reStructuredText.
    Rst,
    /// Markdown.
    Markdown,
    /// DocBook and Mallard.
    Docbook,
    /// Source code.
    Code,
    /// Words with their part of speech, as `the/at jury/nn`: the tags are taken away.
    Tagged,
    /// Data files of SWORD modules (zText, zCom).
    Sword,
    /// WordNet's `data.*`.
    Wordnet,
    /// The comments of Metamath databases.
    Metamath,
    /// JSON: its strings of five words and more.
    Json,
    /// E-mail (RFC 5322 with MIME): subject and text; or JSON with the mail as `text`.
    Mail,
    /// AIML: what is said to a chat bot, and what it answers.
    Aiml,
}

/// A cleaned text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cleaned {
    /// A title, if the file has one.
    pub title: String,
    /// Paragraphs, separated by an empty line; code keeps its lines.
    pub text: String,
}

impl Format {
    /// Cleans a file's content. It never fails: what cannot be decoded as the file says is decoded as its encoding allows, and bytes
    /// that mean nothing become U+FFFD.
    pub fn clean(self, bytes: &[u8]) -> Cleaned {
        let mut cleaned = match self {
            Self::Html => html::clean(bytes),
            Self::Sword => sword::clean(bytes),
            Self::Mail => mail::clean(bytes),
            other => {
                let text = plain::decode(bytes);
                match other {
                    Self::Man => man::clean(&text),
                    Self::Rst => markup::clean_rst(&text),
                    Self::Markdown => markup::clean_markdown(&text),
                    Self::Docbook => xml::clean(&text, &xml::DOCBOOK),
                    Self::Aiml => xml::clean(&text, &xml::AIML),
                    Self::Code => code::clean(&text),
                    Self::Tagged => tagged::clean(&text),
                    Self::Wordnet => lines::wordnet(&text),
                    Self::Metamath => lines::metamath(&text),
                    Self::Json => lines::json(&text),
                    Self::Text | Self::Html | Self::Sword | Self::Mail => plain::clean(&text),
                }
            }
        };
        cleaned.text = plain::tidy(&cleaned.text);
        cleaned.title = cleaned.title.split_whitespace().collect::<Vec<_>>().join(" ");
        cleaned
    }
}
