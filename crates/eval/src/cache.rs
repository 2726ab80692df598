//! Evidence on disk: a search is made once, however many settings are scored from it, and a run that was stopped goes on.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use silo_core::ContentHash;
use silo_engine::{Evidence, Retrieved};

use crate::EvalError;

/// A folder of evidence, each file named by the hash of all that it was made from.
#[derive(Debug, Clone)]
pub struct EvidenceCache {
    folder: PathBuf,
    /// Model, recipe and root of the store.
    made_from: Value,
}

/// Changes with the form of the files, and whenever engines answer otherwise than before.
const FORMAT: u32 = 3;
/// Changes whenever something else is chosen from the same evidence.
const CHOICE: u32 = 4;

impl EvidenceCache {
    /// Evidence of a model and a store, as `made_from` names them: whatever answers depend on.
    pub fn new(folder: &Path, made_from: Value) -> Result<Self, EvalError> {
        fs::create_dir_all(folder).map_err(EvalError::io(folder))?;
        Ok(Self { folder: folder.to_owned(), made_from })
    }

    /// What was gathered before for this question, or what `gather` gives now. A file that is damaged is made again.
    pub(crate) fn get(
        &self,
        question: &Value,
        gather: impl FnOnce() -> Result<Vec<Evidence>, EvalError>,
    ) -> Result<Vec<Evidence>, EvalError> {
        self.keep(question, "evidence", gather, pack, unpack)
    }

    /// The same of what was chosen by evidence.
    pub(crate) fn choice<T: Serialize + DeserializeOwned>(
        &self,
        question: &Value,
        choose: impl FnOnce() -> Result<T, EvalError>,
    ) -> Result<T, EvalError> {
        let pack = |choice: &T| json!(choice).to_string().into_bytes();
        let question = json!({"choice": CHOICE, "of": question});
        self.keep(&question, "choice", choose, pack, |bytes| serde_json::from_slice(bytes).ok())
    }

    fn keep<T>(
        &self,
        question: &Value,
        kind: &str,
        make: impl FnOnce() -> Result<T, EvalError>,
        pack: impl FnOnce(&T) -> Vec<u8>,
        unpack: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<T, EvalError> {
        let key = json!({"format": FORMAT, "made_from": self.made_from, "question": question});
        let path = self.folder.join(format!("{}.{kind}", ContentHash::of(key.to_string().as_bytes())));
        if let Some(found) = fs::read(&path).ok().and_then(|bytes| unpack(opened(&bytes)?)) {
            return Ok(found);
        }
        let made = make()?;
        let partial = path.with_extension("partial");
        fs::write(&partial, sealed(pack(&made))).map_err(EvalError::io(&partial))?;
        fs::rename(&partial, &path).map_err(EvalError::io(&path))?;
        Ok(made)
    }
}

/// With SHA-256 of all at its end.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let hash = ContentHash::of(&bytes);
    bytes.extend(hash.0);
    bytes
}

/// `None` if it is not what [`sealed`] made.
fn opened(bytes: &[u8]) -> Option<&[u8]> {
    let (rest, hash) = bytes.split_last_chunk::<32>()?;
    (ContentHash::of(rest).0 == *hash).then_some(rest)
}

/// Numbers in little-endian order.
fn pack(evidence: &Vec<Evidence>) -> Vec<u8> {
    let mut out = (evidence.len() as u64).to_le_bytes().to_vec();
    for token in evidence {
        out.extend(token.token.to_le_bytes());
        out.extend(token.parametric_log_probability.to_le_bytes());
        out.extend(token.model_entropy.to_le_bytes());
        out.extend((token.tempered.len() as u32).to_le_bytes());
        token.tempered.iter().for_each(|x| out.extend(x.to_le_bytes()));
        out.extend((token.neighbors.len() as u32).to_le_bytes());
        for Retrieved { distance, value, matched } in &token.neighbors {
            out.extend(distance.to_le_bytes());
            out.extend(value.to_le_bytes());
            out.extend(matched.to_le_bytes());
        }
    }
    out
}

/// `None` if it is not what [`pack`] wrote.
fn unpack(mut rest: &[u8]) -> Option<Vec<Evidence>> {
    let n = u64::from_le_bytes(take(&mut rest)?);
    let mut out = Vec::new();
    for _ in 0..n {
        let token = u32::from_le_bytes(take(&mut rest)?);
        let parametric_log_probability = f64::from_le_bytes(take(&mut rest)?);
        let model_entropy = f64::from_le_bytes(take(&mut rest)?);
        let n_tempered = u32::from_le_bytes(take(&mut rest)?);
        let tempered =
            (0..n_tempered).map(|_| Some(f64::from_le_bytes(take(&mut rest)?))).collect::<Option<Vec<f64>>>()?;
        let n_neighbors = u32::from_le_bytes(take(&mut rest)?);
        let neighbors = (0..n_neighbors).map(|_| neighbor(&mut rest)).collect::<Option<Vec<_>>>()?;
        out.push(Evidence { token, parametric_log_probability, model_entropy, tempered, neighbors });
    }
    rest.is_empty().then_some(out)
}

fn neighbor(rest: &mut &[u8]) -> Option<Retrieved> {
    let distance = f32::from_le_bytes(take(rest)?);
    let value = u32::from_le_bytes(take(rest)?);
    Some(Retrieved { distance, value, matched: u16::from_le_bytes(take(rest)?) })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::evidence;

    proptest! {
        #[test]
        fn what_is_packed_comes_back_and_what_is_damaged_does_not(evidence in prop::collection::vec(evidence(), 0..6), at in any::<prop::sample::Index>()) {
            let mut bytes = sealed(pack(&evidence));
            prop_assert_eq!(opened(&bytes).and_then(unpack), Some(evidence));
            let at = at.index(bytes.len());
            bytes[at] ^= 1;
            prop_assert_eq!(opened(&bytes), None);
        }
    }

    #[test]
    fn a_question_is_gathered_for_once_and_again_if_its_file_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let cache = EvidenceCache::new(folder.path(), json!({"root": "a"})).unwrap();
        let mut n = 0;
        let mut ask = |cache: &EvidenceCache, question: &str| {
            let gather = || {
                n += 1;
                let (tempered, neighbors) = (Vec::new(), Vec::new());
                Ok(vec![Evidence {
                    token: 1,
                    parametric_log_probability: -1.0,
                    model_entropy: 1.0,
                    tempered,
                    neighbors,
                }])
            };
            assert_eq!(cache.get(&json!(question), gather).unwrap().len(), 1);
            n
        };
        assert_eq!([ask(&cache, "x"), ask(&cache, "x"), ask(&cache, "y")], [1, 1, 2]);
        let other = EvidenceCache::new(folder.path(), json!({"root": "b"})).unwrap();
        assert_eq!(ask(&other, "x"), 3);
        let choose = |n: u32| cache.choice(&json!("x"), || Ok(n)).unwrap();
        assert_eq!([choose(1), choose(2)], [1, 1]);
        for file in fs::read_dir(folder.path()).unwrap() {
            fs::write(file.unwrap().path(), b"x").unwrap();
        }
        assert_eq!((ask(&cache, "x"), choose(3)), (4, 3));
    }
}
