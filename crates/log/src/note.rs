//! Signed notes as C2SP `signed-note` describes them, with Ed25519 keys; the texts of keys are those of Go's `sumdb/note`.
//!
//! A note is a text, an empty line, and lines with signatures over the exact bytes of the text. Lines of keys that the reader does not know
//! are passed over: witnesses add theirs.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer};
use rand::Rng;
use sha2::{Digest, Sha256};

use crate::LogError;

/// The kind of a key: Ed25519.
const ED25519: u8 = 1;
const SEPARATOR: &str = "\n\n";
const DASH: &str = "\u{2014} ";
const ROTATION: &str = "silo key rotation v1";

/// A key that signs.
pub struct SigningKey {
    key: ed25519_dalek::SigningKey,
    public: VerifyingKey,
}

/// A key that signatures are checked with. As text: name, id and key, with `+` between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    name: String,
    key: ed25519_dalek::VerifyingKey,
}

fn check_name(name: &str) -> Result<&str, LogError> {
    if name.is_empty() || name.len() > 200 || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+') {
        let reason =
            format!("'{name}' is no name of a key: use up to 200 bytes without spaces and '+', as in example.org/silo");
        return Err(LogError::Key(reason));
    }
    Ok(name)
}

impl SigningKey {
    /// Draws a key.
    pub fn generate(name: &str) -> Result<Self, LogError> {
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        Self::of(check_name(name)?, &seed)
    }

    fn of(name: &str, seed: &[u8; 32]) -> Result<Self, LogError> {
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        let public = VerifyingKey { name: check_name(name)?.to_owned(), key: key.verifying_key() };
        Ok(Self { key, public })
    }

    /// The key that its signatures are checked with.
    pub fn verifying_key(&self) -> &VerifyingKey {
        &self.public
    }

    /// The secret key as text, to be kept where nobody else reads it.
    pub fn to_secret_text(&self) -> String {
        let data = STANDARD.encode([&[ED25519], &self.key.to_bytes()[..]].concat());
        format!("PRIVATE+KEY+{}+{}+{data}", self.public.name, hex::encode(self.public.id()))
    }

    /// Reads what [`SigningKey::to_secret_text`] wrote.
    pub fn from_secret_text(text: &str) -> Result<Self, LogError> {
        let wrong = || LogError::Key("a secret key reads PRIVATE+KEY+name+id+data; `silo key create` makes one".into());
        let rest = text.trim().strip_prefix("PRIVATE+KEY+").ok_or_else(wrong)?;
        // The data is base64 and may hold a '+' itself.
        let [name, id, data] = *rest.splitn(3, '+').collect::<Vec<_>>() else { return Err(wrong()) };
        Self::from_parts(name, id, data).ok_or_else(wrong)
    }

    fn from_parts(name: &str, id: &str, data: &str) -> Option<Self> {
        let data = STANDARD.decode(data).ok()?;
        let seed = data.strip_prefix(&[ED25519])?.try_into().ok()?;
        let key = Self::of(name, seed).ok()?;
        (hex::encode(key.public.id()) == id).then_some(key)
    }

    fn sign(&self, text: &str) -> String {
        let signature = self.key.sign(text.as_bytes()).to_bytes();
        let data = STANDARD.encode([&self.public.id()[..], &signature].concat());
        format!("{DASH}{} {data}\n", self.public.name)
    }
}

impl VerifyingKey {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first bytes of SHA-256(name ‖ newline ‖ kind ‖ key): a hint which key made a signature.
    fn id(&self) -> [u8; 4] {
        let text =
            Sha256::new().chain_update(&self.name).chain_update([b'\n', ED25519]).chain_update(self.key.as_bytes());
        let hash: [u8; 32] = text.finalize().into();
        [hash[0], hash[1], hash[2], hash[3]]
    }

    fn verifies(&self, text: &str, signature: &[u8; 64]) -> bool {
        self.key.verify_strict(text.as_bytes(), &Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = STANDARD.encode([&[ED25519], &self.key.as_bytes()[..]].concat());
        write!(f, "{}+{}+{data}", self.name, hex::encode(self.id()))
    }
}

impl FromStr for VerifyingKey {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        let wrong = || LogError::Key(format!("'{}' does not read name+id+data", text.trim()));
        let [name, id, data] = *text.trim().splitn(3, '+').collect::<Vec<_>>() else { return Err(wrong()) };
        let data = STANDARD.decode(data).map_err(|_| wrong())?;
        let bytes = data.strip_prefix(&[ED25519]).and_then(|key| key.try_into().ok()).ok_or_else(wrong)?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| wrong())?;
        let key = Self { name: check_name(name)?.to_owned(), key };
        if hex::encode(key.id()) == id { Ok(key) } else { Err(wrong()) }
    }
}

/// Signs a text, which must end with a newline and hold no empty line.
pub fn sign(text: &str, keys: &[&SigningKey]) -> String {
    debug_assert!(text.ends_with('\n') && !text.contains(SEPARATOR), "a text that can be told from its signatures");
    let signatures: String = keys.iter().map(|key| key.sign(text)).collect();
    format!("{text}\n{signatures}")
}

/// The text of a note, and those of the keys that signed it: at least one. A wrong signature of one of them refuses the note.
pub fn open<'a, 'k>(note: &'a str, keys: &'k [VerifyingKey]) -> Result<(&'a str, Vec<&'k VerifyingKey>), LogError> {
    let wrong = |reason: &str| LogError::Signature(reason.to_owned());
    let at = note
        .rfind(SEPARATOR)
        .ok_or_else(|| wrong("there is none: a text, an empty line and signatures are expected"))?;
    let (text, signatures) = (&note[..=at], &note[at + SEPARATOR.len()..]);
    let lines = signatures.strip_suffix('\n').ok_or_else(|| wrong("the last line is not whole"))?;
    let mut signed = Vec::new();
    for line in lines.split('\n') {
        let parts = line.strip_prefix(DASH).and_then(|rest| rest.split_once(' '));
        let (name, data) = parts.ok_or_else(|| wrong("a line of signatures does not begin with a dash and a name"))?;
        let data = STANDARD.decode(data).map_err(|_| wrong("a signature is not base64"))?;
        let short = || wrong("a signature has no name or too few bytes");
        let parts = data.split_first_chunk::<4>().filter(|(_, rest)| !name.is_empty() && rest.len() >= 3);
        let (id, signature) = parts.ok_or_else(short)?;
        let Some(key) = keys.iter().find(|key| key.name == name && key.id() == *id) else { continue };
        let signature = signature.try_into().map_err(|_| wrong("a signature has not 64 bytes"))?;
        if !key.verifies(text, signature) {
            return Err(wrong(&format!(
                "that of {name} is not one over this text: it was changed, or signed by another key"
            )));
        }
        signed.push(key);
    }
    if signed.is_empty() { Err(wrong("none of the keys that were given made one")) } else { Ok((text, signed)) }
}

/// A statement, by the old key and by the new one, that the new one takes its place.
pub fn rotation(old: &SigningKey, new: &SigningKey, at_unix_ms: i64) -> String {
    let text = format!("{ROTATION}\nfrom {}\nto {}\nat {at_unix_ms}\n", old.public, new.public);
    sign(&text, &[old, new])
}

/// The statements of a file that holds several, one after the other.
pub(crate) fn statements(text: &str) -> Vec<String> {
    let parts = text.split(ROTATION).skip(1);
    parts.map(|part| format!("{ROTATION}{}\n", part.trim_end_matches('\n'))).collect()
}

/// The key that takes the place of one of `keys`, by a statement that both have signed.
pub fn rotated(statement: &str, keys: &[VerifyingKey]) -> Result<VerifyingKey, LogError> {
    let wrong = || LogError::Signature("this is no statement about the rotation of a key that was given".into());
    let lines: Vec<&str> = statement.lines().collect();
    let [ROTATION, from, to, ..] = *lines else { return Err(wrong()) };
    let old: VerifyingKey = from.strip_prefix("from ").ok_or_else(wrong)?.parse()?;
    let new: VerifyingKey = to.strip_prefix("to ").ok_or_else(wrong)?.parse()?;
    if !keys.contains(&old) {
        return Err(wrong());
    }
    let both = [old, new];
    let (_, signed) = open(statement, &both)?;
    let [old, new] = &both;
    if signed.contains(&old) && signed.contains(&new) { Ok(new.clone()) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_those_of_the_reference() {
        // The example of Go's golang.org/x/mod/sumdb/note.
        let key: VerifyingKey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".parse().unwrap();
        assert_eq!(key.to_string(), "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW");
        let text =
            "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        let line = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
        let note = format!("{text}\n{line}");
        let keys = [key];
        assert_eq!(open(&note, &keys).unwrap(), (text, vec![&keys[0]]));
        let secret = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
        let signer = SigningKey::from_secret_text(secret).unwrap();
        assert_eq!(signer.to_secret_text(), secret);
        assert_eq!(sign(text, &[&signer]), note);
    }

    #[test]
    fn no_changed_character_is_accepted() {
        let (key, other) = (SigningKey::generate("a").unwrap(), SigningKey::generate("a").unwrap());
        let note = sign("one\ntwo\n", &[&key]);
        let keys = [key.verifying_key().clone()];
        assert_eq!(open(&note, &keys).unwrap().0, "one\ntwo\n");
        assert!(open(&note, &[other.verifying_key().clone()]).is_err());
        for (at, c) in note.char_indices() {
            for replacement in ["", "x", "\n", "A", "="] {
                let changed = format!("{}{replacement}{}", &note[..at], &note[at + c.len_utf8()..]);
                assert!(changed == note || open(&changed, &keys).is_err(), "{replacement:?} at {at}");
            }
        }
        let both = sign("one\ntwo\n", &[&other, &key]);
        assert_eq!(open(&both, &keys).unwrap().1.len(), 1, "a witness' line is passed over");
    }

    #[test]
    fn a_key_follows_another_only_with_both_signatures() {
        let [a, b, c] = ["x", "x", "y"].map(|name| SigningKey::generate(name).unwrap());
        let public = |key: &SigningKey| key.verifying_key().clone();
        assert_eq!(rotated(&rotation(&a, &b, 5), &[public(&a)]).unwrap(), public(&b));
        assert!(rotated(&rotation(&a, &b, 5), &[public(&c)]).is_err());
        let text = format!("{ROTATION}\nfrom {}\nto {}\nat 5\n", a.public, b.public);
        for signer in [&a, &b, &c] {
            assert!(rotated(&sign(&text, &[signer]), &[public(&a)]).is_err());
        }
        for name in ["", "with space", "a+b"] {
            assert!(SigningKey::generate(name).is_err());
        }
    }
}
