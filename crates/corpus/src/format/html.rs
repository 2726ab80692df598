//! HTML → paragraphs.

use std::cell::RefCell;

use encoding_rs::Encoding;
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer};
use regex::bytes::Regex;

use super::{Cleaned, plain};

/// Elements whose content is no text of the page.
const SKIPPED: &[&str] =
    &["script", "style", "nav", "header", "footer", "noscript", "svg", "form", "button", "template"];

/// Classes and ids of navigation in the documentation generators that are common: Sphinx, DocBook, MediaWiki, texinfo, Doxygen.
const NAVIGATION: &[&str] = &[
    "sphinxsidebar",
    "related",
    "navheader",
    "navfooter",
    "footer",
    "headerlink",
    "toc",
    "toctree-wrapper",
    "nav",
    "navbar",
    "navigation",
    "mw-navigation",
    "cpp-footer-base",
    "catlinks",
    "printfooter",
    "siteSub",
    "contentSub",
    "jump-to-nav",
    "editsection",
    "t-navbar",
    "sidebar",
    "breadcrumb",
];

/// Elements that begin a paragraph.
const BLOCKS: &[&str] = &[
    "p",
    "div",
    "section",
    "article",
    "main",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "dl",
    "table",
    "blockquote",
    "pre",
    "figure",
    "hr",
    "body",
];

/// Elements without content.
const VOID: &[&str] =
    &["br", "hr", "img", "input", "link", "meta", "col", "area", "base", "embed", "source", "track", "wbr"];

/// Elements that begin a line.
const LINES: &[&str] = &["br", "li", "dt", "dd", "tr", "caption"];

/// Decodes as the page says, else as UTF-8, else as browsers do.
fn decode(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(2048)];
    if std::str::from_utf8(bytes).is_ok() {
        return plain::decode(bytes);
    }
    let named = Regex::new(r#"(?i)<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*["']?([A-Za-z0-9_:-]+)"#)
        .ok()
        .and_then(|r| r.captures(head).and_then(|c| Encoding::for_label(c.get(1)?.as_bytes())));
    match named {
        Some(encoding) => encoding.decode(bytes).0.into_owned(),
        None => plain::decode(bytes),
    }
}

fn is_navigation(tag: &Tag) -> bool {
    tag.attrs.iter().any(|a| match &*a.name.local {
        "role" => &*a.value == "navigation",
        "id" => NAVIGATION.contains(&&*a.value),
        "class" => a.value.split_whitespace().any(|c| NAVIGATION.contains(&c)),
        _ => false,
    })
}

/// The tokenizer of the HTML standard feeds it. No tree is built: nesting matters only inside what is left out, where tags of the
/// same name are counted.
#[derive(Default)]
struct Page(RefCell<State>);

#[derive(Default)]
struct State {
    writer: Writer,
    title: String,
    in_title: bool,
    /// Name of the outermost element that is left out, and how many of that name are open.
    skipped: Option<(String, usize)>,
}

impl State {
    /// What the tokenizer must know of an element whose content is no markup.
    fn raw(name: &str) -> Option<RawKind> {
        match name {
            "script" => Some(RawKind::ScriptData),
            "style" | "noscript" | "iframe" => Some(RawKind::Rawtext),
            "title" | "textarea" => Some(RawKind::Rcdata),
            _ => None,
        }
    }

    fn start(&mut self, tag: &Tag) -> Option<RawKind> {
        let name = &*tag.name;
        let empty = tag.self_closing || VOID.contains(&name);
        match &mut self.skipped {
            Some((outer, depth)) if outer == name && !empty => *depth += 1,
            Some(_) => {}
            None if name == "title" && self.title.is_empty() => self.in_title = true,
            None if !empty && (SKIPPED.contains(&name) || is_navigation(tag)) => {
                self.skipped = Some((name.to_owned(), 1))
            }
            None => self.writer.enter(name),
        }
        Self::raw(name)
    }

    fn end(&mut self, name: &str) {
        match &mut self.skipped {
            Some((outer, depth)) if outer == name => {
                *depth -= 1;
                if *depth == 0 {
                    self.skipped = None;
                }
            }
            Some(_) => {}
            None if name == "title" => self.in_title = false,
            None => self.writer.leave(name),
        }
    }

    fn text(&mut self, text: &str) {
        if self.in_title {
            self.title.push_str(text);
        } else if self.skipped.is_none() {
            self.writer.text(text);
        }
    }
}

impl TokenSink for Page {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut state = self.0.borrow_mut();
        match token {
            Token::TagToken(tag) if tag.kind == TagKind::StartTag => {
                if let Some(kind) = state.start(&tag) {
                    return TokenSinkResult::RawData(kind);
                }
            }
            Token::TagToken(tag) => state.end(&tag.name),
            Token::CharacterTokens(text) => state.text(&text),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

pub(super) fn clean(bytes: &[u8]) -> Cleaned {
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(decode(bytes)));
    let tokenizer = Tokenizer::new(Page::default(), Default::default());
    let _ = tokenizer.feed(&input); // it stops for scripts, which it does not run, and goes on below
    tokenizer.end();
    let state = tokenizer.sink.0.take();
    Cleaned { title: state.title, text: state.writer.out }
}

#[derive(Default)]
struct Writer {
    out: String,
    /// Depth of `pre` elements.
    preformatted: usize,
    space: bool,
}

impl Writer {
    fn end_line(&mut self, ending: &str) {
        self.space = false;
        let kept = self.out.trim_end_matches([' ', '\n']).len();
        self.out.truncate(kept);
        if !self.out.is_empty() {
            self.out.push_str(ending);
        }
    }

    fn enter(&mut self, name: &str) {
        if BLOCKS.contains(&name) {
            self.end_line("\n\n");
        } else if LINES.contains(&name) {
            let ending = if self.out.ends_with("\n\n") { "\n\n" } else { "\n" };
            self.end_line(ending);
        }
        match name {
            "pre" => self.preformatted += 1,
            "td" | "th" => self.space = true,
            _ => {}
        }
    }

    fn leave(&mut self, name: &str) {
        if name == "pre" {
            self.preformatted = self.preformatted.saturating_sub(1);
        }
        if BLOCKS.contains(&name) {
            self.end_line("\n\n");
        }
    }

    fn text(&mut self, text: &str) {
        if self.preformatted > 0 {
            self.out.push_str(text);
            return;
        }
        let starts_with_space = text.starts_with(|c: char| c.is_whitespace());
        for (i, word) in text.split_whitespace().enumerate() {
            let space = i > 0 || starts_with_space || self.space;
            if space && !self.out.is_empty() && !self.out.ends_with(['\n', ' ']) {
                self.out.push(' ');
            }
            self.out.push_str(word);
            self.space = false;
        }
        self.space |= text.ends_with(|c: char| c.is_whitespace());
    }
}

#[cfg(test)]
mod tests {
    use crate::Format;

    #[track_caller]
    fn check(html: &[u8], expected: &str) {
        assert_eq!(Format::Html.clean(html).text, expected);
    }

    #[test]
    fn pages_become_paragraphs() {
        check(b"<p>One <b>two</b>\n three.</p><p>Four<br>five</p>", "One two three.\n\nFour\nfive\n");
        check(b"<ul><li>a</li><li>b</li></ul>c", "a\nb\n\nc\n");
        check(b"<pre>x = 1\n  y = 2</pre>", "x = 1\n  y = 2\n");
        check(b"<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc\n");
        check(b"a<i>b</i> <i>c</i>", "ab c\n");
    }

    #[test]
    fn navigation_and_scripts_are_left_out() {
        let page =
            b"<html><head><title> A  title </title></head><body><nav>menu</nav><div class='sphinxsidebar x'>toc</div>\
            <script>code()</script><p>text<a class=headerlink>#</a></p><div role=navigation>next</div></body></html>";
        let cleaned = Format::Html.clean(page);
        assert_eq!((cleaned.title.as_str(), cleaned.text.as_str()), ("A title", "text\n"));
    }

    #[test]
    fn other_encodings_are_read_as_declared_or_as_browsers_do() {
        check(b"<meta charset=iso-8859-2><p>\xb3\xf3d\xbc</p>", "\u{142}\u{f3}d\u{17a}\n");
        check(b"<p>caf\xe9</p>", "café\n");
        check(b"<meta charset=iso-8859-1><p>caf\xc3\xa9</p>", "café\n"); // what it says is wrong: it is UTF-8
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let page = "<div>".repeat(20_000) + "deep";
        check(page.as_bytes(), "deep\n");
    }
}
