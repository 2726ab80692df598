//! Sets of document numbers of a shard.

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

/// A set of document numbers of one shard, small however many they are. As text: the portable serialisation of a roaring bitmap, in
/// hexadecimal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Numbers(RoaringBitmap);

impl Numbers {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether a number is among them.
    pub fn contains(&self, number: u32) -> bool {
        self.0.contains(number)
    }

    /// All of them, rising.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter()
    }

    pub(crate) fn insert(&mut self, number: u32) {
        self.0.insert(number);
    }

    pub(crate) fn insert_range(&mut self, range: std::ops::Range<u32>) {
        self.0.insert_range(range);
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    pub(crate) fn without(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        self.0 |= &other.0;
    }

    /// Those that only one of the two has.
    pub(crate) fn symmetric_difference(&self, other: &Self) -> Self {
        Self(&self.0 ^ &other.0)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut small = self.0.clone();
        small.optimize();
        let mut out = Vec::with_capacity(small.serialized_size());
        small.serialize_into(&mut out).expect("memory takes all bytes");
        out
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        RoaringBitmap::deserialize_from(bytes).map(Self).map_err(|e| format!("no set of document numbers: {e}"))
    }
}

impl FromIterator<u32> for Numbers {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        Self(numbers.into_iter().collect())
    }
}

impl From<Numbers> for String {
    fn from(numbers: Numbers) -> Self {
        hex::encode(numbers.to_bytes())
    }
}

impl TryFrom<String> for Numbers {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = hex::decode(text).map_err(|e| e.to_string())?;
        Self::from_bytes(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_numbers_are_a_small_record() {
        let mut numbers = Numbers::default();
        numbers.insert_range(1000..1_001_000);
        numbers.insert(7);
        assert!(numbers.len() == 1_000_001 && numbers.to_bytes().len() < 300, "{}", numbers.to_bytes().len());
        let text = serde_json::to_string(&numbers).unwrap();
        assert_eq!(serde_json::from_str::<Numbers>(&text).unwrap(), numbers);
        assert!(Numbers::from_bytes(&numbers.to_bytes()[..20]).is_err());
    }
}
