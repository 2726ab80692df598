//! Messages → requests. Beyond here everything is valid.

use std::time::{Duration, Instant};

use silo_core::sampling::SamplingParameters;
use silo_core::{Document, Filter, Permissions, Selection, ShardId, SourceId, Term, Tier, Tokenizer};
use silo_engine::{ContextParameters, Depth, GenerateRequest, KnnOverrides, Mode, OnRemoval, Retrieval, ScoreRequest};
use silo_govern::{Caller, Declaration, SignalFile, SourceUpdate};
use silo_proto::v1;

use crate::ServerConfig;
use crate::status::{BadField, unknown_enum};
use crate::to_proto::Attribution;

type Result<T> = std::result::Result<T, BadField>;

pub(crate) fn tier(value: i32, field: &'static str) -> Result<Option<Tier>> {
    match v1::Tier::try_from(value).map_err(|_| unknown_enum(field, value))? {
        v1::Tier::Unspecified => Ok(None),
        v1::Tier::PublicDomain => Ok(Some(Tier::PublicDomain)),
        v1::Tier::Permissive => Ok(Some(Tier::Permissive)),
        v1::Tier::Attribution => Ok(Some(Tier::Attribution)),
        v1::Tier::Restricted => Ok(Some(Tier::Restricted)),
    }
}

pub(crate) fn source_id(text: &str, field: &'static str) -> Result<SourceId> {
    text.parse().map_err(|e: silo_core::InvalidId| BadField::new(field, e.to_string()))
}

pub(crate) fn filter(message: Option<v1::Filter>, caller: &Caller) -> Result<Filter> {
    let m = message.unwrap_or_default();
    let sources = |names: &[String], field| names.iter().map(|n| source_id(n, field)).collect::<Result<Vec<_>>>();
    let tiers = |values: &[i32], field| -> Result<Vec<Tier>> {
        values.iter().map(|&v| tier(v, field)?.ok_or_else(|| BadField::new(field, "a tier must be named"))).collect()
    };
    let shards = |ids: Vec<u64>| ids.into_iter().map(ShardId).collect();
    Ok(Filter {
        allow_sources: sources(&m.allow_sources, "filter.allow_sources")?,
        deny_sources: sources(&m.deny_sources, "filter.deny_sources")?,
        allow_tiers: tiers(&m.allow_tiers, "filter.allow_tiers")?,
        deny_tiers: tiers(&m.deny_tiers, "filter.deny_tiers")?,
        allow_shards: shards(m.allow_shards),
        deny_shards: shards(m.deny_shards),
        scope: caller.sources.clone(),
    })
}

pub(crate) fn retrieval(
    message: Option<v1::Retrieval>,
    defaults: ContextParameters,
    caller: &Caller,
) -> Result<Retrieval> {
    let m = message.unwrap_or_default();
    let mode = match v1::RetrievalMode::try_from(m.mode).map_err(|_| unknown_enum("retrieval.mode", m.mode))? {
        v1::RetrievalMode::Unspecified | v1::RetrievalMode::Parametric => Mode::Parametric,
        v1::RetrievalMode::Knn => Mode::Knn,
        v1::RetrievalMode::Context => Mode::Context,
        v1::RetrievalMode::KnnAndContext => Mode::KnnAndContext,
    };
    let set = |value: Option<u32>, default: usize| value.map_or(default, |v| v as usize);
    let context = m.context.map(|c| ContextParameters {
        passages: set(c.passages, defaults.passages),
        stride_tokens: set(c.stride_tokens, defaults.stride_tokens),
        query_tokens: set(c.query_tokens, defaults.query_tokens),
        max_passage_tokens: set(c.max_passage_tokens, defaults.max_passage_tokens),
    });
    let knn = KnnOverrides {
        k: m.k.map(|k| k as usize),
        knn_weight: m.knn_weight,
        knn_temperature: m.knn_temperature,
        match_tokens: m.match_tokens.map(|n| n as usize),
        match_bonus: m.match_bonus,
    };
    let (filter, influence_cap) = (filter(m.filter, caller)?, m.influence_cap);
    Ok(Retrieval { mode, filter, without: Vec::new(), knn, influence_cap, context })
}

/// A text or its tokens.
enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

fn tokens(input: Option<Input>, field: &'static str, tokenizer: &dyn Tokenizer) -> Result<Vec<u32>> {
    match input {
        None => Err(BadField::new(field, "it is missing; give `text` or `tokens`")),
        Some(Input::Text(text)) => tokenizer.encode(&text).map_err(|e| BadField::new(field, e.to_string())),
        Some(Input::Tokens(ids)) => match ids.iter().find(|&&t| t as usize >= tokenizer.vocab_size()) {
            Some(t) => {
                Err(BadField::new(field, format!("token {t} is outside the vocabulary of {}", tokenizer.vocab_size())))
            }
            None => Ok(ids),
        },
    }
}

pub(crate) fn attribution(value: i32) -> Result<Attribution> {
    Ok(match v1::AttributionDetail::try_from(value).map_err(|_| unknown_enum("attribution", value))? {
        v1::AttributionDetail::Unspecified => Attribution::None,
        v1::AttributionDetail::PerResponse => Attribution::PerResponse,
        v1::AttributionDetail::PerToken => Attribution::PerToken,
    })
}

pub(crate) fn depth(value: i32) -> Result<Depth> {
    Ok(match v1::AttributionDepth::try_from(value).map_err(|_| unknown_enum("attribution_depth", value))? {
        v1::AttributionDepth::Unspecified | v1::AttributionDepth::Sources => Depth::Sources,
        v1::AttributionDepth::Documents => Depth::Documents,
        v1::AttributionDepth::Neighbors => Depth::Neighbors,
    })
}

pub(crate) fn sampling(message: &v1::Sampling) -> SamplingParameters {
    let d = SamplingParameters::default();
    let mut bias: Vec<(u32, f64)> = message.bias.iter().map(|(t, b)| (*t, *b)).collect();
    bias.sort_by_key(|(t, _)| *t);
    SamplingParameters {
        temperature: message.temperature.unwrap_or(d.temperature),
        top_k: message.top_k.map_or(d.top_k, |k| k as usize),
        top_p: message.top_p.unwrap_or(d.top_p),
        min_p: message.min_p.unwrap_or(d.min_p),
        repetition_penalty: message.repetition_penalty.unwrap_or(d.repetition_penalty),
        bias,
    }
}

/// What a request's surroundings say.
pub(crate) struct Surroundings<'a> {
    pub(crate) config: &'a ServerConfig,
    pub(crate) tokenizer: &'a dyn Tokenizer,
    pub(crate) context: ContextParameters,
    /// From gRPC's `grpc-timeout`.
    pub(crate) deadline: Option<Instant>,
    pub(crate) caller: &'a Caller,
}

pub(crate) fn generate(m: v1::GenerateRequest, s: &Surroundings<'_>, seed: u64) -> Result<GenerateRequest> {
    let input = m.prompt.map(|p| match p {
        v1::generate_request::Prompt::Text(text) => Input::Text(text),
        v1::generate_request::Prompt::Tokens(t) => Input::Tokens(t.ids),
    });
    let max_new_tokens = m.max_new_tokens.map_or(s.config.default_new_tokens, |n| n as usize);
    if max_new_tokens == 0 || max_new_tokens > s.config.max_new_tokens {
        return Err(BadField::new(
            "max_new_tokens",
            format!("it is {max_new_tokens}; it must be from 1 to {}", s.config.max_new_tokens),
        ));
    }
    let alternatives = m.alternatives.unwrap_or(0) as usize;
    if alternatives > s.config.max_alternatives {
        return Err(BadField::new(
            "alternatives",
            format!("it is {alternatives}; it must be at most {}", s.config.max_alternatives),
        ));
    }
    if m.stop.len() > s.config.max_stop_strings {
        return Err(BadField::new(
            "stop",
            format!("{} strings; at most {} are taken", m.stop.len(), s.config.max_stop_strings),
        ));
    }
    if m.stop.iter().any(String::is_empty) {
        return Err(BadField::new("stop", "a stop string is empty"));
    }
    let on_removal =
        match v1::OnRemoval::try_from(m.on_removal).map_err(|_| unknown_enum("on_removal", m.on_removal))? {
            v1::OnRemoval::Unspecified | v1::OnRemoval::End => OnRemoval::End,
            v1::OnRemoval::Repin => OnRemoval::Repin,
        };
    Ok(GenerateRequest {
        prompt: tokens(input, "prompt", s.tokenizer)?,
        max_new_tokens,
        sampling: sampling(&m.sampling.unwrap_or_default()),
        seed,
        stop: m.stop,
        retrieval: retrieval(m.retrieval, s.context, s.caller)?,
        depth: Depth::Sources,
        leave_one_passage_out: m.leave_one_passage_out,
        on_removal,
        alternatives,
        time_limit: m.time_limit_ms.map(|ms| Instant::now() + Duration::from_millis(ms.into())),
        deadline: s.deadline,
    })
}

pub(crate) fn score(m: v1::ScoreRequest, s: &Surroundings<'_>) -> Result<ScoreRequest> {
    let input = m.input.map(|p| match p {
        v1::score_request::Input::Text(text) => Input::Text(text),
        v1::score_request::Input::Tokens(t) => Input::Tokens(t.ids),
    });
    let positive = |value: Option<u32>, field| match value {
        Some(0) => Err(BadField::new(field, "it must be above 0")),
        value => Ok(value.unwrap_or(0) as usize),
    };
    Ok(ScoreRequest {
        tokens: tokens(input, "input", s.tokenizer)?,
        window_tokens: positive(m.window_tokens, "window_tokens")?,
        stride_tokens: positive(m.stride_tokens, "stride_tokens")?,
        retrieval: retrieval(m.retrieval, s.context, s.caller)?,
        depth: match attribution(m.attribution)? {
            Attribution::PerToken => Some(depth(m.attribution_depth)?),
            Attribution::PerResponse | Attribution::None => None,
        },
        leave_one_passage_out: m.leave_one_passage_out,
        deadline: s.deadline,
    })
}

fn permissions(p: v1::Permissions) -> Permissions {
    let v1::Permissions { train, knn, context, verbatim, display } = p;
    Permissions { train, knn, context, verbatim, display }
}

/// A change of what is said about a source.
pub(crate) fn update(m: v1::UpdateSourceRequest) -> Result<SourceUpdate> {
    let signal = |file: v1::SignalFile| {
        let kind = file.kind.parse().map_err(|e: String| BadField::new("signals.kind", e))?;
        let path = if file.path.is_empty() { "/".to_owned() } else { file.path };
        if !path.starts_with('/') {
            return Err(BadField::new("signals.path", format!("'{path}' does not begin with a slash")));
        }
        Ok(SignalFile { kind, text: file.text, path, found_at: file.found_at })
    };
    Ok(SourceUpdate {
        permissions: m.permissions.map(permissions),
        term: m.term.map(|t| Term { starts_unix_ms: t.starts_unix_ms, ends_unix_ms: t.ends_unix_ms }),
        signals: m.signals.into_iter().map(signal).collect::<Result<_>>()?,
        replace_signals: m.replace_signals,
    })
}

pub(crate) fn declaration(m: v1::Source) -> Result<Declaration> {
    let permissions = m.permissions.map(permissions);
    Ok(Declaration {
        tier: tier(m.tier, "source.tier")?,
        name: m.name,
        owner: m.owner,
        licence: m.licence,
        licence_stated_at: m.licence_stated_at,
        notice: m.notice,
        permissions,
    })
}

/// A document of a source; its tier is decided later, from its licence.
pub(crate) fn document(m: v1::Document, source: &SourceId) -> Document {
    let (uri, title, licence, text) = (m.uri, m.title, m.licence, m.text);
    Document { source: source.clone(), uri, title, licence, tier: Tier::Restricted, text }
}

pub(crate) fn selection(m: v1::remove_documents_request::Selection) -> Result<Selection> {
    use v1::remove_documents_request::Selection as M;
    match m {
        M::Source(name) => Ok(Selection::Source(source_id(&name, "source")?)),
        M::Documents(list) => {
            let hash = |text: &String| {
                text.parse().map_err(|e: silo_core::InvalidId| BadField::new("documents.documents", e.to_string()))
            };
            let source = source_id(&list.source, "documents.source")?;
            Ok(Selection::Documents { source, documents: list.documents.iter().map(hash).collect::<Result<_>>()? })
        }
        M::UriPrefix(p) => {
            let named = !p.source.is_empty();
            let source = named.then(|| source_id(&p.source, "uri_prefix.source")).transpose()?;
            Ok(Selection::UriPrefix { source, prefix: p.prefix })
        }
    }
}
