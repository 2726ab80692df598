//! reStructuredText and Markdown: the marks are taken away, the text and its code stay.

use regex::Regex;

use super::Cleaned;

fn is_underline(line: &str) -> bool {
    let line = line.trim_end();
    let mut chars = line.chars();
    let Some(first) = chars.next() else { return false };
    line.len() >= 3 && "=-`:.'\"~^_*+#<>".contains(first) && chars.all(|c| c == first)
}

/// Applies replacements in order; a pattern that does not compile would be found by the tests.
fn replace_all(text: &str, replacements: &[(&str, &str)]) -> String {
    let mut out = text.to_owned();
    for (pattern, by) in replacements {
        if let Ok(regex) = Regex::new(pattern) {
            out = regex.replace_all(&out, *by).into_owned();
        }
    }
    out
}

pub(super) fn clean_rst(text: &str) -> Cleaned {
    let lines: Vec<&str> = text.lines().collect();
    let mut title = String::new();
    let mut out = String::new();
    let mut skipped_indent: Option<usize> = None;
    for (i, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        if let Some(limit) = skipped_indent {
            // Comments, and the options of directives: an indented block up to its end.
            let option = trimmed.starts_with(':') || trimmed.is_empty();
            if (indent > limit && option)
                || (trimmed.is_empty() && indent == 0 && i > 0 && lines[i - 1].trim().is_empty())
            {
                continue;
            }
            skipped_indent = None;
        }
        if is_underline(line) {
            if title.is_empty() && i > 0 {
                title = lines[i - 1].trim().to_owned();
            }
            continue;
        }
        if let Some(directive) = trimmed.strip_prefix(".. ") {
            skipped_indent = Some(indent);
            // What a note, or a definition of a function, says stands after the mark.
            if let Some((name, rest)) = directive.split_once("::") {
                let hidden = [
                    "toctree",
                    "include",
                    "image",
                    "figure",
                    "index",
                    "highlight",
                    "currentmodule",
                    "module",
                    "contents",
                    "code-block",
                    "sourcecode",
                    "raw",
                    "only",
                    "literalinclude",
                ];
                if !hidden.contains(&name) && !rest.trim().is_empty() {
                    out.push_str(&format!("{}{}\n", &line[..indent], rest.trim()));
                }
            }
            continue;
        }
        out.push_str(line.strip_suffix("::").map(|l| format!("{l}:")).as_deref().unwrap_or(line));
        out.push('\n');
    }
    let text = replace_all(
        &out,
        &[
            (r":[a-zA-Z:+-]+:`[~!]?([^`<]*?)\s*<[^`>]*>`", "$1"),
            (r":[a-zA-Z:+-]+:`[~!]?([^`]*)`", "$1"),
            (r"`([^`<]+?)\s*<[^`>]*>`__?", "$1"),
            (r"``([^`]*)``", "$1"),
            (r"`([^`]*)`__?", "$1"),
            (r"\*\*([^*\n]+)\*\*", "$1"),
            (r"(^|\s)\*([^*\s][^*\n]*)\*", "$1$2"),
            (r"(?m)^\|\s?", ""),
        ],
    );
    Cleaned { title, text }
}

pub(super) fn clean_markdown(text: &str) -> Cleaned {
    let title = text.lines().find_map(|l| l.strip_prefix("# ")).unwrap_or_default().trim().to_owned();
    let text = replace_all(
        text,
        &[
            (r"(?s)<!--.*?-->", ""),
            (r"!\[([^\]]*)\]\([^)]*\)", "$1"),
            (r"\[([^\]]+)\]\([^)]*\)", "$1"),
            (r"\[([^\]]+)\]\[[^\]]*\]", "$1"),
            (r"(?m)^\[[^\]]+\]:\s+\S+.*$", ""),
            (r"(?m)^#{1,6}\s+", ""),
            (r"(?m)^(```|~~~).*$", ""),
            (r"(?m)^(=+|-{3,})\s*$", ""),
            (r"</?[a-zA-Z][^>\n]*>", ""),
            (r"\*\*([^*\n]+)\*\*", "$1"),
            (r"__([^_\n]+)__", "$1"),
            (r"`([^`\n]+)`", "$1"),
        ],
    );
    Cleaned { title, text }
}

#[cfg(test)]
mod tests {
    use crate::Format;

    #[test]
    fn rst_loses_its_marks() {
        let text = "Title\n=====\n\n.. module:: os\n   :synopsis: x\n\nUse :func:`open` or :ref:`this <that>`, see `the site <u>`_ and ``x = 1``::\n\n    code()\n\n.. note:: Mind **this**.\n\n.. toctree::\n   :maxdepth: 1\n\n.. a comment\n\nEnd.\n";
        let cleaned = Format::Rst.clean(text.as_bytes());
        assert_eq!(cleaned.title, "Title");
        assert_eq!(
            cleaned.text,
            "Title\n\nUse open or this, see the site and x = 1:\n\n    code()\n\nMind this.\n\nEnd.\n"
        );
    }

    #[test]
    fn markdown_loses_its_marks() {
        let text = "# A title\n\nSome [link](u) and **bold** `code`, ![pic](p).\n\n```js\nlet x;\n```\n<!-- no -->\n[ref]: u\n";
        let cleaned = Format::Markdown.clean(text.as_bytes());
        assert_eq!(cleaned.title, "A title");
        assert_eq!(cleaned.text, "A title\n\nSome link and bold code, pic.\n\nlet x;\n");
    }
}
