//! E-mail → its text. Headers other than the subject are addresses and ways, not text.

use mail_parser::MessageParser;

use super::{Cleaned, plain};

/// A mail, or a JSON object whose `text` is one. Parts in HTML become plain text; attachments are left out.
pub(super) fn clean(bytes: &[u8]) -> Cleaned {
    let json: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    let inner = json.as_ref().and_then(|value| value.get("text")?.as_str());
    let Some(message) = MessageParser::default().parse(inner.map_or(bytes, str::as_bytes)) else {
        return Cleaned::default();
    };
    let title = message.subject().unwrap_or_default().to_owned();
    let bodies: Vec<_> = (0..).map_while(|i| message.body_text(i)).collect();
    let body = plain::clean(&bodies.join("\n\n").replace("\r\n", "\n"));
    let text = if title.is_empty() { body.text } else { format!("{title}\n\n{}", body.text) };
    Cleaned { title, text }
}

#[cfg(test)]
mod tests {
    use crate::Format;

    const MAIL: &str = "From ann@x Mon Aug 1 2002\nReceived: from a by b\nSubject: =?utf-8?q?Caf=C3=A9?=\nMIME-Version: 1.0\n\
                        Content-Type: text/plain\n\nDear Bob,\n\n> you wrote this\n\nAnd I this.\n";

    #[test]
    fn subject_and_text_stay() {
        let expected = "Caf\u{e9}\n\nDear Bob,\n\n> you wrote this\n\nAnd I this.\n";
        let cleaned = Format::Mail.clean(MAIL.as_bytes());
        assert_eq!((cleaned.title.as_str(), cleaned.text.as_str()), ("Caf\u{e9}", expected));
        let json = serde_json::json!({"id": "1", "text": MAIL}).to_string();
        assert_eq!(Format::Mail.clean(json.as_bytes()).text, expected);
        let html = "Subject: s\nContent-Type: text/html\n\n<p>One <b>two</b></p><p>three</p>";
        let text = Format::Mail.clean(html.as_bytes()).text;
        assert!(text.contains("One two") && !text.contains('<'), "{text}");
    }
}
