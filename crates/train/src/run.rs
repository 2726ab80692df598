//! The loop: rows in, steps made, log and checkpoints out.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{DType, Device};
use sha2::{Digest, Sha256};
use silo_core::{ContentHash, SourceId, Tier, Tokenizer};
use silo_corpus::{CorpusDocument, SourceDeclaration};
use silo_model::{ByteLevelTokenizer, LoadedModel, Provenance};

use crate::TrainError;
use crate::checkpoint::{Checkpoint, Goal, RunIdentity};
use crate::config::TrainConfig;
use crate::cpu::{CpuPass, Loss};
use crate::data::{Documents, Row};
use crate::device::TensorPass;
use crate::gemm::Kernel;
use crate::log::{Log, LogLine, Validation};
use crate::optimizer::{AdamW, Moments};
use crate::params::Layout;
use crate::text::{Text, tokenize};
use crate::tokenizer::{self, END_OF_TEXT};
use crate::{card, export};

/// Where a run computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrainDevice {
    /// On the CPU: bf16 products with f32 sums, by AMX where there is.
    #[default]
    Cpu,
    /// On the first NVIDIA GPU in bf16; needs a build with the feature `cuda`.
    Cuda,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are made, the model is written.
    Finished,
    /// It was asked to stop; a checkpoint holds all of it.
    Stopped {
        /// Steps made.
        step: u64,
    },
}

enum Pass {
    Cpu(Box<CpuPass>),
    Device(Box<TensorPass>),
}

impl Pass {
    fn new(config: &TrainConfig, device: TrainDevice) -> Result<Self, TrainError> {
        let (shape, row_tokens) = (config.shape(), config.model.context_tokens);
        Ok(match device {
            TrainDevice::Cpu => {
                Self::Cpu(Box::new(CpuPass::new(shape, Kernel::best(), row_tokens, config.optimizer.lanes)))
            }
            TrainDevice::Cuda => {
                Self::Device(Box::new(TensorPass::new(shape, Device::new_cuda(0)?, DType::BF16, row_tokens)?))
            }
        })
    }

    fn name(&self) -> String {
        match self {
            Self::Cpu(pass) => format!("cpu {:?}", pass.fixed.kernel).to_lowercase(),
            Self::Device(_) => "cuda bf16".into(),
        }
    }

    fn gradients(&mut self, parameters: &[f32], rows: &[Row], out: &mut [f32]) -> Result<Loss, TrainError> {
        match self {
            Self::Cpu(pass) => Ok(pass.gradients(parameters, rows, out)),
            Self::Device(pass) => Ok(pass.gradients(parameters, rows, out)?),
        }
    }

    fn losses(&mut self, parameters: &[f32], rows: &[Row]) -> Result<Vec<Loss>, TrainError> {
        match self {
            Self::Cpu(pass) => Ok(pass.losses(parameters, rows)),
            Self::Device(pass) => Ok(pass.losses(parameters, rows)?),
        }
    }
}

/// The rows of all epochs, one after the other.
struct RowStream<'a> {
    documents: &'a Documents,
    row_tokens: usize,
    seed: u64,
    epoch: Option<(u64, Vec<Row>)>,
    /// SHA-256 of the tokens of each epoch that was begun, in their order.
    hashes: BTreeMap<u64, ContentHash>,
}

impl RowStream<'_> {
    fn epoch(&mut self, epoch: u64) -> &[Row] {
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let rows = self.documents.epoch(END_OF_TEXT, self.row_tokens, self.seed, epoch);
            let mut hash = Sha256::new();
            rows.iter().for_each(|r| hash.update(bytemuck::cast_slice(&r.tokens)));
            self.hashes.insert(epoch, ContentHash(hash.finalize().into()));
            self.epoch = Some((epoch, rows));
        }
        self.epoch.as_ref().map_or(&[], |(_, rows)| rows)
    }

    /// Hashes the epochs up to `last` that an earlier call ran through.
    fn hash_all(&mut self, last: u64) {
        for epoch in 0..=last {
            if !self.hashes.contains_key(&epoch) {
                self.epoch(epoch);
            }
        }
    }

    /// The rows of a step; `n_rows` is the number of rows of every epoch.
    fn step(&mut self, step: u64, rows_per_step: usize, n_rows: u64) -> Vec<Row> {
        let first = step * rows_per_step as u64;
        (first..first + rows_per_step as u64).map(|i| self.epoch(i / n_rows)[(i % n_rows) as usize].clone()).collect()
    }
}

/// A model that a run begins with.
pub(crate) struct Start {
    pub(crate) hash: ContentHash,
    pub(crate) provenance: Provenance,
    parameters: Vec<f32>,
}

impl Start {
    /// What it was trained on.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &SourceId> {
        self.provenance.training_sources.iter().flatten()
    }

    fn open(config: &TrainConfig, path: &Path, tokenizer_json: &str) -> Result<Self, TrainError> {
        let refuse = |reason: &str| TrainError::Start { path: path.to_owned(), reason: reason.to_owned() };
        let model = LoadedModel::open(path)?;
        let shape = config.shape();
        if model.shape != shape {
            return Err(refuse("its architecture is not that of [model]"));
        }
        let tokenizer = path.join("tokenizer.json");
        if std::fs::read_to_string(&tokenizer).map_err(TrainError::io(&tokenizer))? != tokenizer_json {
            return Err(refuse("its tokenizer is another; name it as tokenizer.path"));
        }
        let known =
            |p: &Provenance| !p.training_tiers.is_empty() && p.training_sources.as_ref().is_some_and(|s| !s.is_empty());
        let provenance = model.provenance.clone().filter(known);
        let provenance =
            provenance.ok_or_else(|| refuse("it does not say what it was trained on: tiers and sources"))?;
        let restricted = provenance.training_tiers.contains(&Tier::Restricted);
        if restricted && config.data.reference.is_none() {
            return Err(refuse("it was trained on restricted text, and this run is no reference"));
        }
        let parameters = Layout::new(&shape).of_model(&shape, &model)?;
        Ok(Self { hash: model.hash, provenance, parameters })
    }
}

/// What a finished or stopped run knows about itself.
pub(crate) struct RunFacts<'a> {
    pub(crate) config: &'a TrainConfig,
    /// Steps made.
    pub(crate) step: u64,
    pub(crate) identity: &'a RunIdentity,
    pub(crate) text: &'a Text,
    /// The model that it began with.
    pub(crate) start: Option<&'a Start>,
    pub(crate) declarations: &'a [SourceDeclaration],
    pub(crate) tokenizer_json: &'a str,
    pub(crate) n_training_tokens: usize,
    pub(crate) rows_per_epoch: u64,
    pub(crate) epoch_hashes: BTreeMap<u64, ContentHash>,
    pub(crate) lines: &'a [LogLine],
}

/// Runs or goes on with a run until it is finished or `stop` is set. `progress` is told each line of the log and what else is done.
pub fn train(
    config: &TrainConfig,
    device: TrainDevice,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(&str, Option<&LogLine>),
) -> Result<Outcome, TrainError> {
    config.check()?;
    let work = &config.paths.work;
    std::fs::create_dir_all(work).map_err(TrainError::io(work))?;
    let _lock = lock(work)?;
    with_run(config, device, Goal::Train, progress, |run, progress| {
        run.log = Log::open(&log_path(config), run.state.step)?;
        run.steps(stop, progress)?;
        let finished = run.state.step == config.optimizer.steps;
        Ok(if finished {
            (Outcome::Finished, Some(config.paths.output.clone()))
        } else {
            (Outcome::Stopped { step: run.state.step }, None)
        })
    })
}

/// Writes the newest checkpoint of a run as a model into `output`, and makes no step.
pub fn export_checkpoint(
    config: &TrainConfig,
    output: &Path,
    progress: &mut dyn FnMut(&str, Option<&LogLine>),
) -> Result<Outcome, TrainError> {
    if Checkpoint::newest(&checkpoints(&config.paths.work))?.is_none() {
        return Err(TrainError::NoCheckpoint(config.paths.work.clone()));
    }
    with_run(config, TrainDevice::Cpu, Goal::Export, progress, |run, _| {
        Ok((Outcome::Stopped { step: run.state.step }, Some(output.to_owned())))
    })
}

/// Opens the run, works with it, and writes the model where the work says so.
fn with_run(
    config: &TrainConfig,
    device: TrainDevice,
    goal: Goal,
    progress: &mut dyn FnMut(&str, Option<&LogLine>),
    work_with: impl FnOnce(
        &mut Run<'_>,
        &mut dyn FnMut(&str, Option<&LogLine>),
    ) -> Result<(Outcome, Option<PathBuf>), TrainError>,
) -> Result<Outcome, TrainError> {
    config.check()?;
    progress("reading the corpus", None);
    let text = Text::read(config)?;
    if text.n_left_out > 0 {
        progress(&format!("{} documents are left out by opt-outs", text.n_left_out), None);
    }
    let tokenizer_json = tokenizer_of(config, &text, progress)?;
    let start = config.start_from.as_deref().map(|path| Start::open(config, path, &tokenizer_json)).transpose()?;
    let declarations = card::declarations(config, &text, start.as_ref())?;
    let tokenizer = ByteLevelTokenizer::from_json(tokenizer_json.as_bytes(), Some(END_OF_TEXT), &[END_OF_TEXT])
        .map_err(TrainError::Tokenizer)?;
    if tokenizer.vocab_size() != config.tokenizer.vocab_size {
        let (got, want) = (tokenizer.vocab_size(), config.tokenizer.vocab_size);
        let reason = format!("the text gives {got} tokens only, tokenizer.vocab_size asks for {want}; ask for fewer");
        return Err(TrainError::Tokenizer(reason));
    }
    progress("tokenizing", None);
    let (documents, data) = tokenize(&text.training, &tokenizer)?;
    let pass = Pass::new(config, device)?;
    let begins_with = start.as_ref().map(|start| start.hash.to_string()).unwrap_or_default();
    let identity = RunIdentity {
        configuration: ContentHash::of((config.identity().to_string() + &begins_with).as_bytes()),
        tokenizer: ContentHash::of(tokenizer_json.as_bytes()),
        data,
        backend: pass.name(),
    };
    let validation = validation_rows(&text.validation, &tokenizer, config.model.context_tokens)?;
    let parameters = start.as_ref().map(|start| start.parameters.clone());
    let mut run = Run::start(config, pass, (identity, goal), parameters, &documents, validation)?;
    progress(
        &format!("{} tokens, {} rows an epoch, step {}", documents.n_tokens(), run.rows_per_epoch, run.state.step),
        None,
    );
    let (outcome, output) = work_with(&mut run, progress)?;
    let Some(output) = output else { return Ok(outcome) };
    let n_rows = run.state.step * config.optimizer.rows_per_step as u64;
    run.rows.hash_all(n_rows.saturating_sub(1) / run.rows_per_epoch);
    let facts = RunFacts {
        config,
        step: run.state.step,
        identity: &run.state.identity,
        text: &text,
        start: start.as_ref(),
        declarations: &declarations,
        tokenizer_json: &tokenizer_json,
        n_training_tokens: documents.n_tokens(),
        rows_per_epoch: run.rows_per_epoch,
        epoch_hashes: std::mem::take(&mut run.rows.hashes),
        lines: &run.log.lines,
    };
    export::write(&facts, &run.layout, &run.state.parameters, &output)?;
    Ok(outcome)
}

/// The tokenizer of the run: the one that is named, or trained once on its text, then kept in its directory beside the hash of what it was made from.
fn tokenizer_of(
    config: &TrainConfig,
    text: &Text,
    progress: &mut dyn FnMut(&str, Option<&LogLine>),
) -> Result<String, TrainError> {
    if let Some(path) = &config.tokenizer.path {
        return std::fs::read_to_string(path).map_err(TrainError::io(path));
    }
    let mut made_from = Sha256::new();
    made_from.update((config.tokenizer.vocab_size as u64).to_le_bytes());
    text.training.iter().for_each(|d| made_from.update(d.hash.0));
    let made_from = ContentHash(made_from.finalize().into()).to_string();
    let work = &config.paths.work;
    let (path, hash_path) = (work.join("tokenizer.json"), work.join("tokenizer.made-from"));
    if let (Ok(json), Ok(hash)) = (std::fs::read_to_string(&path), std::fs::read_to_string(&hash_path))
        && hash == made_from
    {
        return Ok(json);
    }
    progress("training the tokenizer", None);
    let json = tokenizer::train(text.training.iter().map(|d| d.text.as_str()), config.tokenizer.vocab_size)?;
    // The hash last: without it the tokenizer is made again.
    for (path, contents) in [(&path, &json), (&hash_path, &made_from)] {
        let partial = path.with_extension("partial");
        std::fs::write(&partial, contents).map_err(TrainError::io(&partial))?;
        std::fs::rename(&partial, path).map_err(TrainError::io(path))?;
    }
    Ok(json)
}

struct Run<'a> {
    config: &'a TrainConfig,
    layout: Layout,
    optimizer: AdamW,
    pass: Pass,
    state: Checkpoint,
    rows: RowStream<'a>,
    rows_per_epoch: u64,
    validation: ValidationRows,
    log: Log,
}

/// Per tier: rows and bytes of text.
type ValidationRows = BTreeMap<Tier, (Vec<Row>, usize)>;

fn validation_rows(
    documents: &[CorpusDocument],
    tokenizer: &ByteLevelTokenizer,
    row_tokens: usize,
) -> Result<ValidationRows, TrainError> {
    let mut out = BTreeMap::new();
    for tier in Tier::ALL {
        let of_tier: Vec<_> = documents.iter().filter(|d| d.tier == tier).cloned().collect();
        if !of_tier.is_empty() {
            let n_bytes = of_tier.iter().map(|d| d.text.len()).sum();
            out.insert(tier, (tokenize(&of_tier, tokenizer)?.0.in_order(END_OF_TEXT, row_tokens), n_bytes));
        }
    }
    Ok(out)
}

impl<'a> Run<'a> {
    fn start(
        config: &'a TrainConfig,
        pass: Pass,
        (identity, goal): (RunIdentity, Goal),
        parameters: Option<Vec<f32>>,
        documents: &'a Documents,
        validation: ValidationRows,
    ) -> Result<Self, TrainError> {
        let layout = Layout::new(&config.shape());
        let (state, sha256) = initial_state(config, &layout, (identity, goal), parameters)?;
        let row_tokens = config.model.context_tokens;
        let mut rows = RowStream { documents, row_tokens, seed: config.seed, epoch: None, hashes: BTreeMap::new() };
        let rows_per_epoch = rows.epoch(0).len() as u64;
        if rows_per_epoch == 0 {
            let what = format!("{row_tokens} tokens of training text, which one row takes");
            return Err(TrainError::NoText { path: config.paths.corpus.clone(), what });
        }
        let log = Log::read(&log_path(config), state.step)?;
        if let (Some(logged), Some(found)) = (log.checkpoint(state.step), sha256)
            && logged != found
        {
            return Err(Checkpoint::changed(&checkpoints(&config.paths.work), state.step));
        }
        let optimizer = AdamW::new(config.optimizer.clone(), &layout);
        Ok(Self { config, layout, optimizer, pass, state, rows, rows_per_epoch, validation, log })
    }

    fn steps(&mut self, stop: &AtomicBool, progress: &mut dyn FnMut(&str, Option<&LogLine>)) -> Result<(), TrainError> {
        let mut gradients = vec![0.0; self.layout.len];
        let steps = self.config.optimizer.steps;
        while self.state.step < steps {
            let line = self.step(&mut gradients)?;
            self.note(line, progress)?;
            let (step, log) = (self.state.step, &self.config.log);
            let stopping = stop.load(Ordering::Relaxed);
            if step.is_multiple_of(log.validate_every) || step == steps {
                let line = self.validate()?;
                self.note(line, progress)?;
            }
            if step.is_multiple_of(log.checkpoint_every) || step == steps || stopping {
                self.log.sync()?;
                let directory = checkpoints(&self.config.paths.work);
                let sha256 = self.state.write(&directory, log.keep)?;
                self.note(LogLine::Checkpoint { step, sha256 }, progress)?;
            }
            if stopping {
                break;
            }
        }
        Ok(())
    }

    fn note(&mut self, line: LogLine, progress: &mut dyn FnMut(&str, Option<&LogLine>)) -> Result<(), TrainError> {
        progress("", Some(&line));
        self.log.add(line)
    }

    fn step(&mut self, gradients: &mut [f32]) -> Result<LogLine, TrainError> {
        let (start, step) = (Instant::now(), self.state.step);
        let rows = self.rows.step(step, self.config.optimizer.rows_per_step, self.rows_per_epoch);
        let loss = self.pass.gradients(&self.state.parameters, &rows, gradients)?;
        let gradient_length = self.optimizer.step(step, &mut self.state.parameters, &mut self.state.moments, gradients);
        if !loss.mean().is_finite() || !gradient_length.is_finite() {
            return Err(TrainError::Diverged { step, loss: loss.mean() });
        }
        self.state.step += 1;
        Ok(LogLine::Step {
            step: self.state.step,
            loss: loss.mean(),
            learning_rate: self.optimizer.learning_rate(step),
            gradient_length,
            n_tokens: loss.n_tokens,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn validate(&mut self) -> Result<LogLine, TrainError> {
        let mut tiers = BTreeMap::new();
        for (tier, (rows, n_bytes)) in &self.validation {
            let losses = self.pass.losses(&self.state.parameters, rows)?;
            let loss = losses.into_iter().fold(Loss::default(), |a, b| a + b);
            let bits_per_byte = loss.nats / std::f64::consts::LN_2 / *n_bytes as f64;
            let (n_tokens, n_bytes) = (loss.n_tokens, *n_bytes);
            let validation = Validation { nats_per_token: loss.mean(), bits_per_byte, n_tokens, n_bytes };
            tiers.insert(tier.to_string(), validation);
        }
        Ok(LogLine::Validation { step: self.state.step, tiers })
    }
}

fn log_path(config: &TrainConfig) -> PathBuf {
    config.paths.work.join("log.jsonl")
}

/// One process at a time works at a run. The system lets go of the lock when the process ends, however it ends.
fn lock(work: &Path) -> Result<File, TrainError> {
    let path = work.join("run.lock");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(TrainError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TrainError::Locked(work.to_owned())),
        Err(TryLockError::Error(e)) => Err(TrainError::io(&path)(e)),
    }
}

fn checkpoints(work: &Path) -> PathBuf {
    work.join("checkpoints")
}

/// The newest checkpoint, which must be of this run, with the hash of its file; or these parameters, or fresh ones.
fn initial_state(
    config: &TrainConfig,
    layout: &Layout,
    (identity, goal): (RunIdentity, Goal),
    parameters: Option<Vec<f32>>,
) -> Result<(Checkpoint, Option<ContentHash>), TrainError> {
    match Checkpoint::newest(&checkpoints(&config.paths.work))? {
        None => {
            let parameters = parameters.unwrap_or_else(|| layout.initial(config.seed));
            let moments = Moments::new(layout.len);
            Ok((Checkpoint { step: 0, identity, parameters, moments }, None))
        }
        Some((found, sha256)) => match found.identity.difference(&identity, goal) {
            Some(what) => Err(TrainError::OtherRun { path: config.paths.work.clone(), what }),
            None => Ok((found, Some(sha256))),
        },
    }
}
