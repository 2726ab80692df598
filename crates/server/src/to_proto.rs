//! Answers → messages.

use std::collections::{BTreeMap, HashMap};

use silo_core::{GateTerms, Permissions, Snapshot, Source, SourceId, Tier, Tokenizer};
use silo_engine::{
    Depth, DocumentId, FinishReason, Finished, InForce, LeftOut, Mode, NeighborShare, PassageId, Score, SourceCredit,
    TokenCredit, TokenEvent,
};
use silo_govern::{BackupRecord, Caller, Found, Removal, RemovalPart, ShardDetail, ShardState, SourceState};
use silo_proto::v1;

pub(crate) fn tier(tier: Tier) -> v1::Tier {
    match tier {
        Tier::PublicDomain => v1::Tier::PublicDomain,
        Tier::Permissive => v1::Tier::Permissive,
        Tier::Attribution => v1::Tier::Attribution,
        Tier::Restricted => v1::Tier::Restricted,
    }
}

pub(crate) fn provenance(snapshot: &Snapshot, card: &silo_core::ModelCard) -> v1::Provenance {
    v1::Provenance {
        epoch: snapshot.epoch.0,
        root: snapshot.root.to_string(),
        model_hash: card.hash.to_string(),
        model_training_tiers: tiers(card),
    }
}

fn tiers(card: &silo_core::ModelCard) -> Vec<i32> {
    card.training_tiers.iter().flatten().map(|&t| tier(t).into()).collect()
}

pub(crate) fn in_force(p: &InForce) -> v1::InForce {
    let mode = match p.mode {
        Mode::Parametric => v1::RetrievalMode::Parametric,
        Mode::Knn => v1::RetrievalMode::Knn,
        Mode::Context => v1::RetrievalMode::Context,
        Mode::KnnAndContext => v1::RetrievalMode::KnnAndContext,
    };
    v1::InForce {
        mode: mode.into(),
        k: p.knn.k as u32,
        knn_weight: p.knn.knn_weight,
        knn_temperature: p.knn.knn_temperature,
        context_passages: p.context.passages as u32,
        context_stride_tokens: p.context.stride_tokens as u32,
        context_query_tokens: p.context.query_tokens as u32,
        context_max_passage_tokens: p.context.max_passage_tokens as u32,
        influence_cap: p.influence_cap,
        match_tokens: p.knn.match_tokens as u32,
        match_bonus: p.knn.match_bonus,
        gate: p
            .knn
            .gate
            .map(|gate| v1::Gate { sharp: Some(gate_terms(gate.sharp)), broad: Some(gate_terms(gate.broad)) }),
    }
}

fn gate_terms(terms: GateTerms) -> v1::GateTerms {
    let GateTerms { bias, nearest, spread, model_entropy, neighbor_entropy, log_distinct } = terms;
    v1::GateTerms { bias, nearest, spread, model_entropy, neighbor_entropy, log_distinct }
}

pub(crate) fn shares(shares: Vec<(SourceId, f64)>) -> Vec<v1::SourceShare> {
    let share = |(source, share): (SourceId, f64)| v1::SourceShare { source: source.into(), share };
    shares.into_iter().map(share).collect()
}

fn capped(sources: impl Iterator<Item = (SourceId, u64)>) -> Vec<v1::CappedSource> {
    sources.map(|(source, n_tokens)| v1::CappedSource { source: source.into(), n_tokens }).collect()
}

pub(crate) fn names(sources: Vec<SourceId>) -> Vec<String> {
    sources.into_iter().map(Into::into).collect()
}

fn left_out(passages: Vec<LeftOut>) -> Vec<v1::LeftOutPassage> {
    let one = |LeftOut { passage, log_probability }: LeftOut| v1::LeftOutPassage {
        source: passage.document.source.into(),
        shard: passage.document.shard.0,
        document: passage.document.document.to_string(),
        start: passage.start,
        log_probability,
    };
    passages.into_iter().map(one).collect()
}

/// The greatest gain first.
fn passages(passages: HashMap<PassageId, (f64, u64)>) -> Vec<v1::PassageTotal> {
    let mut all: Vec<(PassageId, (f64, u64))> = passages.into_iter().collect();
    all.sort_by(|(a, (x, _)), (b, (y, _))| y.total_cmp(x).then_with(|| a.cmp(b)));
    let one = |(passage, (log_probability_gain, n_tokens)): (PassageId, (f64, u64))| v1::PassageTotal {
        source: passage.document.source.into(),
        shard: passage.document.shard.0,
        document: passage.document.document.to_string(),
        start: passage.start,
        log_probability_gain,
        n_tokens,
    };
    all.into_iter().map(one).collect()
}

fn documents(documents: Vec<(DocumentId, f64)>) -> Vec<v1::DocumentShare> {
    let share = |(id, share): (DocumentId, f64)| v1::DocumentShare {
        source: id.source.into(),
        shard: id.shard.0,
        document: id.document.to_string(),
        share,
    };
    documents.into_iter().map(share).collect()
}

fn neighbors(neighbors: Vec<NeighborShare>, caller: &Caller) -> Vec<v1::NeighborShare> {
    let shown = |n: &NeighborShare| n.permissions.display && (n.permissions.verbatim || caller.may_search());
    let share = |n: NeighborShare| v1::NeighborShare {
        position: shown(&n).then_some(n.position),
        source: n.id.source.into(),
        shard: n.id.shard.0,
        document: n.id.document.to_string(),
        distance: n.distance,
        share: n.share,
    };
    neighbors.into_iter().map(share).collect()
}

/// What a call said about its answer, and who made it.
pub(crate) struct Asked {
    pub(crate) seed: u64,
    pub(crate) attribution: Attribution,
    pub(crate) depth: Depth,
    pub(crate) caller: Caller,
    /// Under which the answer is kept, if it is.
    pub(crate) id: String,
}

/// How exactly sources are credited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribution {
    None,
    PerResponse,
    PerToken,
}

pub(crate) fn token(t: TokenEvent, tokenizer: &dyn Tokenizer, asked: &Asked) -> v1::Token {
    let alternative =
        |(id, log_probability): (u32, f64)| v1::Alternative { id, text: tokenizer.decode(&[id]), log_probability };
    let mut credit = if asked.attribution == Attribution::PerToken { t.credit } else { TokenCredit::default() };
    if asked.depth < Depth::Documents {
        credit.documents.clear();
    }
    v1::Token {
        id: t.token,
        text: t.text,
        log_probability: t.log_probability,
        alternatives: t.alternatives.into_iter().map(alternative).collect(),
        shares: shares(credit.sources),
        documents: documents(credit.documents),
        neighbors: neighbors(credit.neighbors, &asked.caller),
        capped_sources: names(credit.capped),
        left_out: if asked.attribution == Attribution::PerToken { left_out(t.left_out) } else { Vec::new() },
    }
}

/// What licences ask for, of sources by their share, and of those whose passages were read. Of a source of which nothing is in the store any
/// more, nothing is said.
fn notices(sources: &[SourceCredit], context: &[SourceId], now: &Snapshot) -> Vec<v1::Notice> {
    let mut ids: Vec<&SourceId> = Vec::new();
    for id in sources.iter().map(|credit| &credit.source).chain(context) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let notice = |id: &SourceId| {
        let view = now.shards.iter().find(|view| view.source.id == *id)?;
        Some(v1::Notice { source: id.to_string(), text: view.source.notice()? })
    };
    ids.into_iter().filter_map(notice).collect()
}

/// `now` is the store as it is.
pub(crate) fn finished(f: Finished, card: &silo_core::ModelCard, asked: &Asked, now: &Snapshot) -> v1::Finished {
    let reason = match f.reason {
        FinishReason::Length => v1::FinishReason::Length,
        FinishReason::Stop => v1::FinishReason::Stop,
        FinishReason::EndOfText => v1::FinishReason::EndOfText,
        FinishReason::ContextFull => v1::FinishReason::ContextFull,
        FinishReason::TimeLimit => v1::FinishReason::TimeLimit,
        FinishReason::SourceRemoved => v1::FinishReason::SourceRemoved,
        FinishReason::VerbatimLimit => v1::FinishReason::VerbatimLimit,
    };
    let mut totals = f.credit.sources;
    totals.sort_by(|a, b| b.total.total_cmp(&a.total).then_with(|| a.source.cmp(&b.source)));
    let capped = capped(totals.iter().filter(|t| t.n_capped > 0).map(|t| (t.source.clone(), t.n_capped)));
    totals.retain(|t| t.n_tokens > 0);
    let notices = notices(&totals, &f.context_sources, now);
    let asked_for = asked.attribution != Attribution::None;
    let mut of_documents: Vec<(DocumentId, f64)> = f.credit.documents.into_iter().collect();
    of_documents.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let total = |credit: SourceCredit| {
        let source = now.shards.iter().map(|view| &view.source).find(|s| s.id == credit.source);
        v1::SourceTotal {
            source: credit.source.into(),
            total: credit.total,
            owner: source.map(|s| s.owner.clone()).unwrap_or_default(),
            licence: source.map(|s| s.licence.clone()).unwrap_or_default(),
            tier: source.map_or(v1::Tier::Unspecified, |s| tier(s.tier)).into(),
        }
    };
    v1::Finished {
        reason: reason.into(),
        text: f.text,
        usage: Some(v1::Usage {
            prompt_tokens: f.usage.prompt_tokens,
            new_tokens: f.usage.new_tokens,
            neighbor_searches: f.usage.neighbor_searches,
            passage_searches: f.usage.passage_searches,
            refused_tokens: f.usage.refused_tokens,
        }),
        provenance: Some(provenance(&f.view.snapshot, card)),
        in_force: Some(in_force(&f.in_force)),
        sources: totals.into_iter().filter(|_| asked_for).map(total).collect(),
        parametric_total: if asked_for { f.credit.parametric } else { 0.0 },
        context_sources: f.context_sources.into_iter().map(String::from).collect(),
        seed: asked.seed,
        notices,
        response_id: asked.id.clone(),
        documents: if asked_for && asked.depth >= Depth::Documents { documents(of_documents) } else { Vec::new() },
        passages: passages(f.credit.passages),
        capped,
    }
}

pub(crate) fn score(
    s: Score,
    tokens: &[u32],
    (tokenizer, caller): (&dyn Tokenizer, &Caller),
    card: &silo_core::ModelCard,
) -> v1::ScoreResponse {
    let log_probability = s.tokens.iter().map(|t| t.log_probability).sum();
    let n_bytes = s.tokens.iter().map(|t| tokenizer.bytes(tokens[t.position]).len() as u64).sum();
    let mut n_capped: BTreeMap<SourceId, u64> = BTreeMap::new();
    s.tokens.iter().flat_map(|t| &t.capped).for_each(|source| *n_capped.entry(source.clone()).or_default() += 1);
    let scored = |t: silo_engine::ScoredToken| {
        let credit = t.credit.unwrap_or_default();
        v1::ScoredToken {
            id: tokens[t.position],
            position: t.position as u32,
            log_probability: t.log_probability,
            parametric_log_probability: t.parametric_log_probability,
            knn_weight: t.knn_weight,
            shares: shares(credit.sources),
            documents: documents(credit.documents),
            neighbors: neighbors(credit.neighbors, caller),
            capped_sources: names(t.capped),
            left_out: left_out(t.left_out),
        }
    };
    v1::ScoreResponse {
        provenance: Some(provenance(&s.snapshot, card)),
        in_force: Some(in_force(&s.in_force)),
        capped: capped(n_capped.into_iter()),
        tokens: s.tokens.into_iter().map(scored).collect(),
        log_probability,
        n_bytes,
    }
}

pub(crate) fn model(card: &silo_core::ModelCard) -> v1::Model {
    v1::Model {
        name: card.name.clone(),
        hash: card.hash.to_string(),
        architecture: card.architecture.clone(),
        n_parameters: card.n_parameters,
        vocab_size: card.vocab_size as u32,
        context_tokens: card.context_tokens as u32,
        key_dim: card.key_dim as u32,
        key_site: card.key_site.to_string(),
        training_tiers: tiers(card),
    }
}

fn permissions(p: Permissions) -> v1::Permissions {
    let Permissions { train, knn, context, verbatim, display } = p;
    v1::Permissions { train, knn, context, verbatim, display }
}

/// A source with what is said about it.
pub(crate) fn source_state(s: &SourceState) -> v1::Source {
    let signal = |signal: &silo_core::Signal| v1::Signal {
        kind: signal.kind.clone(),
        statements: signal.statements.clone(),
        permits: Some(permissions(signal.permits)),
        path: signal.path.clone(),
        found_at: signal.found_at.clone(),
        sha256: signal.sha256.to_string(),
        recorded_unix_ms: signal.recorded_unix_ms,
    };
    let silo_core::Term { starts_unix_ms, ends_unix_ms } = s.policy.term;
    v1::Source {
        declared_permissions: Some(permissions(s.declared)),
        stated_permissions: s.policy.permissions.map(permissions),
        term: Some(v1::Term { starts_unix_ms, ends_unix_ms }),
        signals: s.policy.signals.iter().map(signal).collect(),
        ..source(&s.source)
    }
}

pub(crate) fn source(s: &Source) -> v1::Source {
    v1::Source {
        name: s.id.to_string(),
        owner: s.owner.clone(),
        licence: s.licence.clone(),
        licence_stated_at: s.licence_stated_at.clone(),
        notice: s.notice.clone(),
        tier: tier(s.tier).into(),
        permissions: Some(permissions(s.permissions)),
        ..v1::Source::default()
    }
}

/// `unavailable` says why a live shard is not retrieved from.
pub(crate) fn shard(detail: &ShardDetail) -> v1::Shard {
    let r = &detail.record;
    let state = match (r.state, &detail.unavailable) {
        (ShardState::Removed, _) => v1::ShardState::Removed,
        (_, Some(_)) => v1::ShardState::Unavailable,
        (ShardState::Live, None) => v1::ShardState::Live,
        (ShardState::Suspended, None) => v1::ShardState::Suspended,
    };
    let files = v1::ShardFiles {
        n_documents: r.n_documents,
        n_tokens: r.n_tokens,
        n_entries: r.n_entries,
        n_withdrawn_documents: if r.state == ShardState::Removed { r.n_documents } else { r.withdrawn.len() },
    };
    v1::Shard {
        id: r.id.0,
        source: r.source.to_string(),
        state: state.into(),
        reason: detail.unavailable.clone().unwrap_or_default(),
        n_documents: detail.n_documents,
        n_tokens: detail.n_tokens,
        n_entries: detail.n_entries,
        added_epoch: r.added_epoch.0,
        removed_epoch: r.removed_epoch.map(|e| e.0),
        model_hash: r.model_hash.clone(),
        recipe_hash: r.recipe_hash.clone(),
        n_bytes: detail.n_bytes,
        n_duplicates: 0,
        n_withheld: detail.n_withheld,
        files: (r.state != ShardState::Removed || detail.n_bytes > 0).then_some(files),
    }
}

pub(crate) fn parts(parts: &[RemovalPart]) -> Vec<v1::RemovedPart> {
    let part = |p: &RemovalPart| v1::RemovedPart {
        shard: p.shard.0,
        whole_shard: p.numbers.is_none(),
        n_documents: p.n_documents,
    };
    parts.iter().map(part).collect()
}

pub(crate) fn removal(removal: &Removal, purge_operation: String, backups: Vec<String>) -> v1::Removal {
    v1::Removal {
        id: removal.record.id,
        epoch: removal.epoch().0,
        root_before: removal.root_before.to_string(),
        root_after: removal.root_after.to_string(),
        parts: parts(&removal.record.parts),
        durable_ms: removal.durable_ms,
        effective_ms: removal.effective_ms,
        purge_operation,
        backups,
    }
}

pub(crate) fn backup(b: &BackupRecord) -> v1::Backup {
    v1::Backup { name: b.name.clone(), epoch: b.epoch.0, at_unix_ms: b.at_unix_ms }
}

pub(crate) fn found(found: Found, card: &silo_core::ModelCard) -> v1::SearchResponse {
    let provenance = Some(provenance(&found.snapshot, card));
    let (neighbors, passages) = hits(found);
    v1::SearchResponse { provenance, neighbors, passages }
}

/// What was retrieved for a text.
pub(crate) fn hits(found: Found) -> (Vec<v1::NeighborHit>, Vec<v1::PassageHit>) {
    let neighbor = |n: silo_govern::FoundNeighbor| v1::NeighborHit {
        source: n.entry.source.into(),
        document: n.entry.document.to_string(),
        position: n.value.map(|_| n.entry.position),
        distance: n.distance,
        token: n.value,
        uri: n.entry.uri,
        title: n.entry.title,
        context: n.entry.context,
        continuation: n.entry.continuation,
    };
    let passage = |p: silo_govern::FoundPassage| v1::PassageHit {
        source: p.source.id.to_string(),
        document: p.passage.document.to_string(),
        start: p.passage.start,
        score: p.passage.score,
        uri: p.passage.uri,
        title: p.passage.title,
        text: p.text.unwrap_or_default(),
    };
    (found.neighbors.into_iter().map(neighbor).collect(), found.passages.into_iter().map(passage).collect())
}
