//! `silo train`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use clap::{Args, ValueEnum};
use silo_train::{LogLine, Outcome, TrainDevice};

use crate::config::{ConfigFile, read_train_config};
use crate::output;

/// Trains a tokenizer and a model on openly licensed text, or goes on with a run that was stopped.
#[derive(Debug, Args)]
pub struct Train {
    /// The run, as `configs/train.toml`.
    #[command(flatten)]
    config: ConfigFile,
    /// Where it computes.
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
    /// Write the newest checkpoint as a model into this directory, and make no step.
    #[arg(long, value_name = "PATH")]
    export: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    /// This machine's CPU.
    Cpu,
    /// The first NVIDIA GPU; needs a build with the feature `cuda`.
    Cuda,
}

impl Train {
    /// Runs until it is done, or until SIGINT or SIGTERM, at which it writes a checkpoint.
    pub async fn run(self, as_json: bool) -> Result<()> {
        let config = read_train_config(&self.config)?;
        let device = match self.device {
            Device::Cpu => TrainDevice::Cpu,
            Device::Cuda => TrainDevice::Cuda,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        if self.export.is_none() {
            tokio::spawn(stop_when_asked(asked));
        }
        let (work, export) = (config.paths.work.clone(), self.export.clone());
        let run = move || {
            let mut shown = |what: &str, line: Option<&LogLine>| show(what, line, as_json);
            let outcome = match &export {
                Some(output) => silo_train::export_checkpoint(&config, output, &mut shown),
                None => silo_train::train(&config, device, &stop, &mut shown),
            };
            outcome.map(|outcome| (outcome, config))
        };
        let (outcome, config) = tokio::task::spawn_blocking(run).await??;
        let (done, step, output) = match outcome {
            Outcome::Finished => (true, config.optimizer.steps, Some(config.paths.output)),
            Outcome::Stopped { step } => (false, step, self.export),
        };
        if as_json {
            return output::json(&serde_json::json!({"finished": done, "step": step, "output": output}));
        }
        match output {
            Some(path) => println!("the model after {step} steps: {}", path.display()),
            None => println!("stopped after {step} steps; the same command goes on from {}", work.display()),
        }
        Ok(())
    }
}

/// The first signal ends the run after the step that is being made, with a checkpoint; the second ends it at once.
async fn stop_when_asked(stop: Arc<AtomicBool>) {
    // Without signals it cannot be asked.
    if super::asked_to_stop().await.is_ok() {
        eprintln!("stopping after this step; once more stops at once");
        stop.store(true, Ordering::Relaxed);
        if super::asked_to_stop().await.is_ok() {
            std::process::exit(1);
        }
    }
}

/// Progress goes to standard error, so that standard output holds the result alone.
fn show(what: &str, line: Option<&LogLine>, as_json: bool) {
    match line {
        None if !as_json => eprintln!("{what}"),
        None => {}
        Some(line) if as_json => eprintln!("{}", serde_json::json!(line)),
        Some(LogLine::Step { step, loss, learning_rate, gradient_length, n_tokens, seconds }) => {
            let speed = *n_tokens as f64 / seconds;
            eprintln!(
                "step {step}: loss {loss:.4}, gradient {gradient_length:.3}, rate {learning_rate:.2e}, {speed:.0} tokens/s"
            );
        }
        Some(LogLine::Validation { step, tiers }) => {
            let tiers: Vec<String> = tiers.iter().map(|(t, v)| format!("{t} {:.4}", v.bits_per_byte)).collect();
            eprintln!("step {step}: validation bits per byte: {}", tiers.join(", "));
        }
        Some(LogLine::Checkpoint { step, sha256 }) => eprintln!("step {step}: checkpoint {sha256}"),
    }
}
