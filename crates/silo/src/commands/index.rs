//! `silo index`.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use silo_core::{ContentHash, Tier, TokenId};
use silo_corpus::{BuildReport, CorpusDocument, LicenceGate, SourceReport, Split};
use silo_store::{Recipe, encode, quantizer_about};
use silo_vector::{Training, train_quantizer};

use crate::config::{DeviceConfig, ModelConfig};
use crate::{output, wiring};

/// Documents that are encoded together.
const DOCUMENTS_PER_BATCH: usize = 16;

/// Tokens that are taken of one document, so that a few long ones do not make up the sample.
const TOKENS_PER_DOCUMENT: usize = 1024;

/// Index recipes: what approximate search needs.
#[derive(Debug, Subcommand)]
pub enum Index {
    /// Make the quantiser that all shards of a recipe share, from openly licensed text.
    Train(Train),
}

/// Makes a quantiser.
#[derive(Debug, Args)]
pub struct Train {
    #[command(flatten)]
    quantizer: Quantizer,
    /// Where the quantiser goes.
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
}

/// A quantiser: projection and centroids, by Faiss, from keys of open text.
#[derive(Debug, Args)]
pub struct Quantizer {
    /// The model whose keys it is for.
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,
    /// A recipe with the key site and windows that it is for; its own lists, if any, do not matter.
    #[arg(long, default_value = "indexes/exact.toml", value_name = "PATH")]
    pub recipe: PathBuf,
    /// A corpus built by `silo corpus build`.
    #[arg(long, default_value = "work/corpus", value_name = "PATH")]
    pub corpus: PathBuf,
    /// Tiers of the training sources that keys are taken from.
    #[arg(long, value_delimiter = ',', default_value = "public-domain,permissive,attribution")]
    pub tiers: Vec<Tier>,
    /// Take the keys from these sources instead, restricted ones too: for measuring what a quantiser of training text costs. What is made of them
    /// carries their names, and a server refuses it.
    #[arg(long, value_delimiter = ',', conflicts_with = "tiers", value_name = "SOURCES")]
    pub comparison: Vec<String>,
    /// Keys to take, from documents drawn by hash.
    #[arg(long, default_value_t = 200_000)]
    pub keys: usize,
    /// Inverted lists.
    #[arg(long, default_value_t = 1024)]
    pub lists: usize,
    /// Values of a projected key: bytes of a code. At most 256.
    #[arg(long, default_value_t = 128)]
    pub projected: usize,
    /// Draws the first centroids.
    #[arg(long, default_value_t = 1)]
    pub seed: u32,
}

/// A quantiser that was made.
pub struct Made {
    /// Its file.
    pub bytes: Vec<u8>,
    /// Keys that it was made of.
    pub n_keys: usize,
}

impl Index {
    /// Runs the command.
    pub fn run(self, as_json: bool) -> Result<()> {
        match self {
            Self::Train(c) => c.run(as_json),
        }
    }
}

impl Train {
    fn run(self, as_json: bool) -> Result<()> {
        let (quantizer, output) = (self.quantizer, self.output);
        let Made { bytes, n_keys } = quantizer.make()?;
        output::file(&output, &bytes)?;
        let Quantizer { lists, projected, .. } = quantizer;
        let sha256 = ContentHash::of(&bytes);
        if as_json {
            return output::json(&serde_json::json!({
                "output": output, "sha256": sha256, "n_keys": n_keys, "n_lists": lists, "projected": projected,
            }));
        }
        println!("{}: {lists} lists of codes of {projected} bytes, from {n_keys} keys", output.display());
        Ok(())
    }
}

impl Quantizer {
    /// Encodes a sample of the text, and clusters it.
    pub fn make(&self) -> Result<Made> {
        let recipe = Recipe::read_without_lists(&self.recipe)?;
        let config = ModelConfig {
            path: self.model.clone(),
            key_site: recipe.key_site,
            device: DeviceConfig::Cpu,
            threads: 0,
            require_open_training: false,
        };
        let (model, tokenizer) = wiring::load_model(&config)?;
        recipe.check_model(model.card())?;
        let mut documents = self.documents()?;
        // Drawn by hash: a sample of all sources that does not depend on their order.
        documents.sort_by_key(|d| d.hash);
        let mut keys: Vec<f32> = Vec::new();
        let (dim, mut n_documents) = (model.card().key_dim, 0);
        for batch in documents.chunks(DOCUMENTS_PER_BATCH) {
            if keys.len() >= self.keys * dim {
                break;
            }
            let tokens: Vec<Vec<TokenId>> =
                batch.iter().map(|d| tokenizer.encode(&d.text)).collect::<Result<_, _>>()?;
            let slices: Vec<&[TokenId]> = tokens.iter().map(|t| &t[..t.len().min(TOKENS_PER_DOCUMENT)]).collect();
            let bos = tokenizer.beginning_of_text();
            for encoded in encode(&*model, bos, &slices, &recipe, &AtomicBool::new(false))? {
                keys.extend_from_slice(&encoded.keys.data);
            }
            n_documents += batch.len();
        }
        keys.truncate(self.keys * dim);
        let n_keys = keys.len() / dim;
        let training = Training {
            projected: self.projected,
            n_lists: self.lists,
            seed: self.seed,
            about: self.about(n_keys, n_documents, quantizer_about(model.card())),
        };
        eprintln!("clustering {n_keys} keys of {n_documents} documents");
        Ok(Made { bytes: train_quantizer(&keys, dim, training)?.to_bytes()?, n_keys })
    }

    fn about(
        &self,
        n_keys: usize,
        n_documents: usize,
        model: [(String, String); 2],
    ) -> std::collections::BTreeMap<String, String> {
        let tiers = self.tiers.iter().map(Tier::to_string).collect::<Vec<_>>().join(",");
        let made_of = match &self.comparison[..] {
            [] => ("tiers", tiers),
            sources => (Recipe::COMPARISON, sources.join(",")),
        };
        let more = [
            made_of,
            ("n_keys", n_keys.to_string()),
            ("n_documents", n_documents.to_string()),
            ("seed", self.seed.to_string()),
        ];
        model.into_iter().chain(more.map(|(k, v)| (k.to_owned(), v))).collect()
    }

    /// Training documents of the tiers, each of which has passed the licence gate: what decides where every other text is found must
    /// itself be free to use.
    fn documents(&self) -> Result<Vec<CorpusDocument>> {
        let gate = LicenceGate::new(&self.tiers);
        let mut out = Vec::new();
        let report = BuildReport::read(&self.corpus)?;
        let compared = |name: &str| self.comparison.iter().any(|c| c == name);
        let wanted =
            |s: &&SourceReport| if self.comparison.is_empty() { s.is_learnt() } else { compared(s.name.as_str()) };
        for source in report.sources.iter().filter(wanted) {
            let documents = source.documents(&self.corpus)?;
            let usable = |d: &CorpusDocument| {
                d.split == Split::Train
                    && d.excluded.is_none()
                    && (compared(source.name.as_str()) || gate.violation(d).is_none())
            };
            out.extend(documents.into_iter().filter(usable));
        }
        if out.is_empty() {
            bail!("the corpus at {} has no training text of these tiers", self.corpus.display());
        }
        Ok(out)
    }
}
