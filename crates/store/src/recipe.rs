//! Index recipes: how documents become entries.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use silo_core::{ContentHash, KeySite, ModelCard};
use silo_lexical::Bm25;
use silo_vector::{Probe, Quantizer};

use crate::StoreError;

/// Type of the stored keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    /// As the model made them.
    F32,
    /// Half the memory; the rounding is far under the distance of neighbours.
    F16,
}

impl KeyType {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// How documents become entries. All shards of a store share one recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Its name.
    pub name: String,
    /// Which hidden state is the key.
    pub key_site: KeySite,
    /// Type of the stored keys.
    pub key_type: KeyType,
    /// Documents are encoded in windows of this many tokens …
    pub window_tokens: usize,
    /// … that move by this many: every key but a document's first ones sees at least `window_tokens − stride_tokens` tokens.
    pub stride_tokens: usize,
    /// Passages are this many tokens of a document …
    pub passage_tokens: usize,
    /// … and begin this many tokens apart.
    pub passage_stride_tokens: usize,
    /// How passages are scored.
    pub bm25: Bm25,
    /// Inverted lists for approximate search; exact search without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ivf: Option<Ivf>,
}

/// Approximate search through inverted lists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ivf {
    /// SHA-256 of the quantiser's file: in a recipe file, `quantizer` names the file instead, relative to the recipe.
    pub quantizer_sha256: ContentHash,
    /// Lists that a query looks into.
    pub n_probe: usize,
    /// So many of the best by code, and at least k, are ranked by their exact distance.
    pub rerank: usize,
    /// The quantiser itself; not in manifests, which name it by its hash.
    #[serde(skip)]
    pub quantizer: Option<Arc<Quantizer>>,
}

impl Ivf {
    /// How hard to look.
    pub fn probe(&self) -> Probe {
        Probe { n_probe: self.n_probe, rerank: self.rerank }
    }
}

/// `indexes/*.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    name: String,
    key_site: KeySite,
    key_type: KeyType,
    window_tokens: usize,
    stride_tokens: usize,
    passage_tokens: usize,
    passage_stride_tokens: usize,
    bm25: Bm25,
    ivf: Option<IvfFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IvfFile {
    quantizer: PathBuf,
    n_probe: usize,
    rerank: usize,
}

impl Recipe {
    /// Reads a recipe file and the quantiser that it names. Unknown keys and senseless numbers are refused.
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        let file = Self::parse(path)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let ivf = file.ivf.as_ref().map(|ivf| ivf.read(directory)).transpose()?;
        Self::resolve(path, file, ivf)
    }

    /// Reads a recipe file for exact search, whatever it says of lists: they may still have to be made.
    pub fn read_without_lists(path: &Path) -> Result<Self, StoreError> {
        Self::resolve(path, Self::parse(path)?, None)
    }

    fn parse(path: &Path) -> Result<RecipeFile, StoreError> {
        let text = std::fs::read_to_string(path).map_err(StoreError::io(path))?;
        toml::from_str(&text).map_err(|e| Self::refuse(path, e.to_string().trim()))
    }

    fn resolve(path: &Path, file: RecipeFile, ivf: Option<Ivf>) -> Result<Self, StoreError> {
        let recipe = Self {
            name: file.name,
            key_site: file.key_site,
            key_type: file.key_type,
            window_tokens: file.window_tokens,
            stride_tokens: file.stride_tokens,
            passage_tokens: file.passage_tokens,
            passage_stride_tokens: file.passage_stride_tokens,
            bm25: file.bm25,
            ivf,
        };
        recipe.check().map_err(|reason| Self::refuse(path, &reason))?;
        Ok(recipe)
    }

    /// What a quantiser says that was made of text which may be withdrawn.
    pub const COMPARISON: &str = "comparison";

    /// The sources that its quantiser was made of, if it was made for comparison only: where entries are found must not depend on what may be
    /// withdrawn.
    pub fn made_of(&self) -> Option<&str> {
        self.quantizer()?.1.about().get(Self::COMPARISON).map(String::as_str)
    }

    /// The quantiser, if search is approximate.
    pub fn quantizer(&self) -> Option<(&Ivf, &Quantizer)> {
        let ivf = self.ivf.as_ref()?;
        Some((ivf, ivf.quantizer.as_deref()?))
    }

    fn refuse(path: &Path, reason: &str) -> StoreError {
        StoreError::Recipe { path: path.to_owned(), reason: reason.to_owned() }
    }

    fn check(&self) -> Result<(), String> {
        if self.window_tokens < 2 {
            return Err(format!("window_tokens is {}, it must be 2 or more", self.window_tokens));
        }
        if self.stride_tokens == 0 || self.stride_tokens > self.window_tokens {
            return Err(format!(
                "stride_tokens is {}, it must be from 1 to window_tokens ({})",
                self.stride_tokens, self.window_tokens
            ));
        }
        if self.passage_tokens == 0
            || self.passage_stride_tokens == 0
            || self.passage_stride_tokens > self.passage_tokens
        {
            return Err(
                "passage_tokens and passage_stride_tokens must be above 0, and the stride at most the length".into()
            );
        }
        if !(self.bm25.k1 >= 0.0 && self.bm25.k1.is_finite() && (0.0..=1.0).contains(&self.bm25.b)) {
            return Err("bm25.k1 must be 0 or more, bm25.b from 0 to 1".into());
        }
        if self.ivf.as_ref().is_some_and(|ivf| ivf.n_probe == 0 || ivf.rerank == 0) {
            return Err("ivf.n_probe and ivf.rerank must be 1 or more".into());
        }
        Ok(())
    }

    /// Whether it can be used with a model.
    pub fn check_model(&self, card: &ModelCard) -> Result<(), StoreError> {
        let refuse = |reason| Err(StoreError::RecipeForModel { recipe: self.name.clone(), reason });
        if self.window_tokens > card.context_tokens {
            return refuse(format!(
                "window_tokens is {}, the model's window has {}",
                self.window_tokens, card.context_tokens
            ));
        }
        if self.key_site != card.key_site {
            return refuse(format!("its key site is {}, the model was opened with {}", self.key_site, card.key_site));
        }
        match (&self.ivf, self.quantizer()) {
            (Some(_), Some((_, quantizer))) => check_quantizer(quantizer, card).or_else(refuse)?,
            (Some(_), None) => return refuse("it comes from a manifest, which names its quantiser only".into()),
            (None, _) => {}
        }
        Ok(())
    }

    /// SHA-256 of its canonical form: of everything but its name.
    pub fn hash(&self) -> ContentHash {
        let Self {
            name: _,
            key_site,
            key_type,
            window_tokens,
            stride_tokens,
            passage_tokens,
            passage_stride_tokens,
            bm25,
            ivf,
        } = self;
        let key_type = match key_type {
            KeyType::F32 => "f32",
            KeyType::F16 => "f16",
        };
        // How hard to look is no part of it: it changes no file.
        let ivf = ivf.as_ref().map_or(String::new(), |ivf| format!("ivf {}\n", ivf.quantizer_sha256));
        let canonical = format!(
            "silo-recipe 1\nkey_site {key_site}\nkey_type {key_type}\nwindow {window_tokens}\nstride {stride_tokens}\n\
             distance squared-l2\npassage {passage_tokens}\npassage_stride {passage_stride_tokens}\nbm25 {} {}\n{ivf}",
            bm25.k1, bm25.b
        );
        ContentHash::of(canonical.as_bytes())
    }
}

impl IvfFile {
    fn read(&self, directory: &Path) -> Result<Ivf, StoreError> {
        let path = directory.join(&self.quantizer);
        let bytes = std::fs::read(&path)
            .map_err(|e| Recipe::refuse(&path, &format!("{e}; make a quantiser with `silo index train`")))?;
        let quantizer = Quantizer::from_bytes(&bytes)
            .map_err(|e| Recipe::refuse(&path, &format!("{e}; make one with `silo index train`")))?;
        let (n_probe, rerank) = (self.n_probe, self.rerank);
        let quantizer_sha256 = ContentHash::of(&bytes);
        Ok(Ivf { quantizer_sha256, n_probe, rerank, quantizer: Some(Arc::new(quantizer)) })
    }
}

/// What a quantiser says about the keys it was made from; see [`quantizer_about`].
const MODEL: &str = "model";
const KEY_SITE: &str = "key_site";

/// What a quantiser for keys of a model must say about itself.
pub fn quantizer_about(card: &ModelCard) -> [(String, String); 2] {
    [(MODEL.into(), card.hash.to_string()), (KEY_SITE.into(), card.key_site.to_string())]
}

fn check_quantizer(quantizer: &Quantizer, card: &ModelCard) -> Result<(), String> {
    if quantizer.dim() != card.key_dim {
        return Err(format!(
            "its quantiser is for keys of {} values, the model's have {}",
            quantizer.dim(),
            card.key_dim
        ));
    }
    for (field, expected) in quantizer_about(card) {
        let got = quantizer.about().get(&field);
        if got != Some(&expected) {
            let got = got.map_or("none", String::as_str);
            return Err(format!(
                "its quantiser was made for {field} {got}, not {expected}; make one with `silo index train`"
            ));
        }
    }
    Ok(())
}
