//! The contract of [`Tokenizer`].

use silo_core::Tokenizer;

/// Texts that tokenizers get wrong: nothing, spaces, controls, letters of several bytes, what looks like a special token.
const TEXTS: [&str; 12] = [
    "",
    " ",
    "  two  spaces\t\ttabs \r\n\n lines ",
    "\u{0}\u{1}\u{7f}",
    "a",
    "Grüße aus Köln – 3,5 %",
    "日本語と한국어",
    "👩‍👩‍👧 e\u{301} é",
    "<s></s><unk><|endoftext|>[INST]",
    "0123456789 3.14159265358979",
    "fn main() { println!(\"{:?}\", x); }",
    "\u{feff}\u{fffd}\u{10ffff}",
];

/// Checks the contract.
pub fn tokenizer(tokenizer: &dyn Tokenizer) {
    for text in TEXTS {
        let tokens = tokenizer.encode(text).expect("any text has tokens");
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| tokenizer.bytes(*t).to_vec()).collect();
        assert_eq!(bytes, text.as_bytes(), "{text:?}");
        assert_eq!(tokenizer.decode(&tokens), text);
        assert_eq!(tokenizer.encode(text).expect("any text has tokens"), tokens, "the same each time");
        assert!(tokens.iter().all(|t| (*t as usize) < tokenizer.vocab_size()), "{text:?}");
        let special = |t: &u32| tokenizer.beginning_of_text() == Some(*t) || tokenizer.end_of_text().contains(t);
        assert!(!tokens.iter().any(special), "{text:?} has a special token: {tokens:?}");
    }
    let special = tokenizer.beginning_of_text().into_iter().chain(tokenizer.end_of_text().iter().copied());
    assert!(special.into_iter().all(|t| tokenizer.bytes(t).is_empty()), "a special token is no text");
    assert!(tokenizer.bytes(tokenizer.vocab_size() as u32).is_empty() && tokenizer.bytes(u32::MAX).is_empty());
}
