//! man and mdoc pages → paragraphs: the requests that shape text, without running roff.

use regex::{Captures, Regex};

use super::Cleaned;

/// Requests and macros that end a paragraph.
const PARAGRAPHS: &[&str] = &[
    "PP", "LP", "P", "Pp", "TP", "TQ", "IP", "HP", "It", "sp", "RS", "RE", "nf", "fi", "EX", "EE", "Bl", "El", "Bd",
    "Ed", "bp",
];
/// Those that head a section.
const HEADINGS: &[&str] = &["SH", "SS", "Sh", "Ss"];
/// Those whose arguments are text.
const TEXTS: &[&str] = &[
    "B", "I", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB", "Nm", "Fl", "Ar", "Op", "Pa", "Xr", "Va", "Dv", "Fn",
    "Ft", "Fa", "Ic", "Em", "Sy", "Li", "Ql", "Dq", "Sq", "Cm", "Ev", "Er", "Vt", "In", "Nd", "An", "Tn", "Ns", "No",
    "Qq", "Pq", "Ux", "Bx", "Fx",
];
/// Those of them whose arguments are joined without spaces.
const ALTERNATING: &[&str] = &["BR", "RB", "BI", "IB", "IR", "RI"];

/// Arguments of a request; quotes hold several words together.
fn arguments(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut current: Option<String> = None;
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                current.get_or_insert_default().push('"');
            }
            '"' => {
                quoted = !quoted;
                current.get_or_insert_default();
            }
            '\\' => {
                let word = current.get_or_insert_default();
                word.push('\\');
                word.extend(chars.next());
            }
            c if c.is_whitespace() && !quoted => out.extend(current.take()),
            c => current.get_or_insert_default().push(c),
        }
    }
    out.extend(current);
    out
}

struct Escapes {
    pattern: Regex,
}

impl Escapes {
    fn new() -> Option<Self> {
        let pattern = r#"\\(?:f(?:\[[^\]]*\]|\(..|.)|s[-+]?(?:\[[^\]]*\]|\d+)|\*(?:\[[^\]]*\]|\(..|.)|\[([^\]]*)\]|\((..)|".*$|(.))"#;
        Regex::new(pattern).ok().map(|pattern| Self { pattern })
    }

    fn named(name: &str) -> &'static str {
        match name {
            "em" => "—",
            "en" => "–",
            "aq" | "cq" => "'",
            "oq" => "‘",
            "dq" => "\"",
            "lq" => "“",
            "rq" => "”",
            "bu" => "•",
            "co" => "©",
            "ha" => "^",
            "ti" => "~",
            "rs" => "\\",
            "mu" => "×",
            "<=" => "≤",
            ">=" => "≥",
            "->" => "→",
            "+-" => "±",
            "la" => "⟨",
            "ra" => "⟩",
            _ => "",
        }
    }

    fn resolve(&self, text: &str) -> String {
        let replace = |c: &Captures<'_>| -> String {
            if let Some(name) = c.get(1).or_else(|| c.get(2)) {
                return Self::named(name.as_str()).to_owned();
            }
            match c.get(3).map(|m| m.as_str()) {
                Some("-") => "-".into(),
                Some("e") => "\\".into(),
                Some(" " | "~" | "0") => " ".into(),
                Some("&" | "|" | "^" | "/" | "," | "c" | ")" | "%" | ":" | "d" | "u") | None => String::new(),
                Some(other) => other.to_owned(),
            }
        };
        self.pattern.replace_all(text, replace).into_owned()
    }
}

pub(super) fn clean(text: &str) -> Cleaned {
    let Some(escapes) = Escapes::new() else { return Cleaned::default() };
    let mut page = Page { escapes, title: String::new(), out: String::new(), filled: true, in_definition: false };
    text.lines().for_each(|line| page.line(line));
    Cleaned { title: page.title, text: page.out }
}

struct Page {
    escapes: Escapes,
    title: String,
    out: String,
    /// Whether lines are joined to paragraphs.
    filled: bool,
    /// Inside `.de` or `.ig`, until `..`.
    in_definition: bool,
}

impl Page {
    fn line(&mut self, line: &str) {
        if self.in_definition {
            self.in_definition = !line.starts_with("..");
            return;
        }
        let Some(request) = line.strip_prefix(['.', '\'']) else {
            let text = self.escapes.resolve(line);
            return self.text(&text);
        };
        let request = request.trim_start();
        let (name, rest) = request.split_once(char::is_whitespace).unwrap_or((request, ""));
        let words = || arguments(rest).iter().map(|a| self.escapes.resolve(a)).collect::<Vec<_>>();
        match name {
            "TH" | "Dt" => {
                let words = words();
                let section = words.get(1).map(|s| format!("({s})")).unwrap_or_default();
                self.title = words.first().map(|t| format!("{}{section}", t.to_lowercase())).unwrap_or_default();
            }
            "de" | "ig" => self.in_definition = true,
            "nf" | "EX" => {
                self.paragraph();
                self.filled = false;
            }
            "fi" | "EE" => {
                self.paragraph();
                self.filled = true;
            }
            "IP" => {
                let label = words().into_iter().next().unwrap_or_default();
                self.paragraph();
                self.text(&label);
            }
            name if HEADINGS.contains(&name) => {
                let heading = words().join(" ");
                self.paragraph();
                self.text(&heading);
                self.paragraph();
            }
            name if PARAGRAPHS.contains(&name) => self.paragraph(),
            name if TEXTS.contains(&name) => {
                let words = words();
                let text = words.join(if ALTERNATING.contains(&name) { "" } else { " " });
                self.text(&text);
            }
            _ => {} // settings of fonts, dates, conditions: no text
        }
    }

    fn paragraph(&mut self) {
        let kept = self.out.trim_end().len();
        self.out.truncate(kept);
        if !self.out.is_empty() {
            self.out.push_str("\n\n");
        }
    }

    fn text(&mut self, text: &str) {
        if text.trim().is_empty() {
            return self.paragraph();
        }
        if !self.out.is_empty() && !self.out.ends_with('\n') {
            self.out.push(if self.filled { ' ' } else { '\n' });
        }
        self.out.push_str(if self.filled { text.trim() } else { text });
    }
}

#[cfg(test)]
mod tests {
    use crate::Format;

    #[test]
    fn pages_become_paragraphs() {
        let page = ".\\\" a comment\n.TH LS 1 2023-01-01\n.SH NAME\nls \\- list\ndirectory contents\n.SH SYNOPSIS\n.B ls\n.RI [ OPTION ]...\n\
            .PP\nUse\n.BR stat (1)\nor \\fBfind\\fP(1) \\(em \\e or not.\n.nf\n  int x;\n  int y;\n.fi\nEnd.\n";
        let cleaned = Format::Man.clean(page.as_bytes());
        assert_eq!(cleaned.title, "ls(1)");
        let expected = "NAME\n\nls - list directory contents\n\nSYNOPSIS\n\nls [OPTION]...\n\nUse stat(1) or find(1) — \\ or not.\n\n  int x;\n  int y;\n\nEnd.\n";
        assert_eq!(cleaned.text, expected);
    }

    #[test]
    fn quoted_arguments_hold_together_and_definitions_are_left_out() {
        let page = ".de XX\nsecret\n..\n.SH \"SEE ALSO\"\n.B \"a b\" c\n";
        assert_eq!(Format::Man.clean(page.as_bytes()).text, "SEE ALSO\n\na b c\n");
    }
}
