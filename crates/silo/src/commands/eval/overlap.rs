//! `silo eval overlap`.

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use silo_core::KnnParameters;
use silo_engine::{Evidence, Mode, Sums};
use silo_eval::{Gathered, Loss, OverlapConfig, Scope, overlaps, without_matches};

use super::page::{Measured, Table, bits, sum};
use super::plot::{Axis, Line, Plot};
use super::reference::{Reference, references};
use super::{Ground, Run, parameters};

const WHAT: &str = "Bits per byte on test text of the model alone, with neighbours from the whole store as it is calibrated once for all domains, and of models that have learnt \
    the domains. *Overlap*: the share of a test text's 13-grams of words that stand in the text for the store, of any domain. *Left out*: neighbours that have so many tokens or more \
    before them in common with the text do not count and are not replaced, as if the store had no copy of that passage; the parameters stay.";

/// A way to score, with the loss of each domain's test texts.
#[derive(Debug, Serialize)]
struct Way {
    name: String,
    texts: Vec<Vec<Loss>>,
}

/// The ways to score, and what each text has in common with the store.
struct Scored {
    ways: Vec<Way>,
    shares: Vec<Vec<f64>>,
}

/// Neighbours with something left out.
#[derive(Debug, Serialize)]
struct LeftOut {
    /// So many tokens or more in common; `None`: nothing is left out.
    matched: Option<u16>,
    /// Share of tokens that lose a neighbour.
    touched: f64,
    test: Loss,
    /// In the order of the domains.
    domains: Vec<Loss>,
}

pub fn run(run: &Run) -> Result<Measured<'static>> {
    let ground = Ground::open(&run.config)?;
    let knn = ground.chosen()?.parameters;
    let with = ground.gatherer();
    let test = |domain| with.gather(domain, &domain.test, Scope::Mixed, Mode::Knn);
    let test: Vec<Gathered> = ground.domains.iter().map(test).collect::<Result<_, _>>()?;
    let scored = scored(&ground, &test, &knn)?;
    let config = &ground.config.eval.overlap;
    let left_out: Vec<LeftOut> = std::iter::once(None)
        .chain(config.matches.iter().copied().map(Some))
        .map(|matched| leave_out(&test, matched, &knn))
        .collect();
    let buckets = scored.buckets(config);
    let axis = Axis::Names((0..config.n_buckets()).map(|b| label(config, b)).collect());
    let plot = Plot {
        title: "Overlap with the store",
        labels: ["share of 13-grams that stand in the store", "bits per byte on test text"],
        axis,
    };
    Ok(Measured {
        name: "overlap",
        title: "Overlap with the store",
        what: WHAT,
        finding: finding(&buckets, &left_out),
        whole: json!({
            "made": ground.facts(&run.config), "parameters": knn, "overlap": config, "shares": scored.shares, "ways": scored.ways, "left_out": left_out,
        }),
        raw: raw(&ground, &scored, &left_out),
        tables: format!(
            "{}\nNeighbours: {}.\n\n## Without what matches\n\n{}",
            bucket_table(config, &scored, &buckets).markdown(),
            parameters(&knn),
            left_out_table(&left_out, &sum(scored.ways[0].texts.iter().flatten())).markdown()
        ),
        picture: Some((plot, lines(&scored, &buckets))),
    })
}

fn scored(ground: &Ground, test: &[Gathered], knn: &KnnParameters) -> Result<Scored> {
    let mut sums = Sums::default();
    let texts = |log_p: &mut dyn FnMut(&Evidence) -> f64| test.iter().map(|g| g.losses_by(&mut *log_p)).collect();
    let mut ways = vec![
        Way { name: "the model alone".into(), texts: texts(&mut |e| e.parametric_log_probability) },
        Way { name: "with neighbours".into(), texts: texts(&mut |e| e.log_probability(knn, &mut sums)) },
    ];
    let alone = ways[0].tokens();
    let known = references(ground)?.into_iter().filter(|r| r.knows_domains && r.temperatures.is_none());
    let known = known.map(|Reference { name, texts, .. }| Way { name, texts });
    // A model of another tokenizer has other tokens in the last text, which is cut by them.
    ways.extend(known.filter(|way| way.tokens() == alone));
    Ok(Scored { ways, shares: overlaps(&ground.domains, &*ground.tokenizer) })
}

impl Way {
    fn tokens(&self) -> Vec<u64> {
        self.texts.iter().flatten().map(|loss| loss.n_tokens).collect()
    }
}

/// The texts of a bucket.
struct Bucket {
    n_texts: usize,
    /// In the order of the ways.
    losses: Vec<Loss>,
}

impl Scored {
    fn buckets(&self, config: &OverlapConfig) -> Vec<Bucket> {
        let in_bucket = |bucket: usize| {
            let is_in = move |share: &f64| config.bucket(*share) == bucket;
            let loss = |way: &Way| {
                let texts = way.texts.iter().flatten().zip(self.shares.iter().flatten());
                sum(texts.filter(|(_, share)| is_in(share)).map(|(loss, _)| loss))
            };
            let n_texts = self.shares.iter().flatten().filter(|share| is_in(share)).count();
            Bucket { n_texts, losses: self.ways.iter().map(loss).collect() }
        };
        (0..config.n_buckets()).map(in_bucket).collect()
    }
}

fn leave_out(test: &[Gathered], matched: Option<u16>, knn: &KnnParameters) -> LeftOut {
    let mut sums = Sums::default();
    let least = matched.unwrap_or(u16::MAX);
    let (mut n, mut n_touched) = (0usize, 0);
    let mut log_p = |e: &Evidence| {
        n += 1;
        n_touched += usize::from(e.neighbors.iter().take(knn.k).any(|n| n.matched >= least));
        without_matches(e, least, knn, &mut sums)
    };
    let domains: Vec<Loss> = test.iter().map(|g| g.loss_by(&mut log_p)).collect();
    LeftOut { matched, touched: n_touched as f64 / n.max(1) as f64, test: sum(&domains), domains }
}

fn gain(from: &Loss, to: &Loss) -> f64 {
    from.bits_per_byte() - to.bits_per_byte()
}

fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

fn label(config: &OverlapConfig, bucket: usize) -> String {
    match (config.shares.get(bucket), bucket.checked_sub(1).map(|before| config.shares[before])) {
        (Some(0.0), _) => "none".to_owned(),
        (Some(end), _) => format!("up to {}", percent(*end)),
        (None, Some(before)) => format!("above {}", percent(before)),
        (None, None) => "all".to_owned(),
    }
}

fn finding(buckets: &[Bucket], left_out: &[LeftOut]) -> String {
    let n: usize = buckets.iter().map(|b| b.n_texts).sum();
    let mut out = String::new();
    if let Some(first) = buckets.first().filter(|b| b.n_texts > 0) {
        out += &format!(
            "{} of {n} test texts are in the first bucket, where neighbours gain {:.4} bits per byte.",
            first.n_texts,
            gain(&first.losses[0], &first.losses[1])
        );
    }
    let alone = sum(buckets.iter().map(|b| &b.losses[0]));
    let [all, .., least] = left_out else { return out };
    let (whole, rest) = (gain(&alone, &all.test), gain(&alone, &least.test));
    out + &format!(
        " Of the {whole:.4} that they gain in all, {rest:.4} are left without the neighbours that have {} or more tokens before them in common with the text.",
        least.matched.unwrap_or_default()
    )
}

fn bucket_table(config: &OverlapConfig, scored: &Scored, buckets: &[Bucket]) -> Table {
    let head = ["overlap", "texts", "tokens"].into_iter().chain(scored.ways.iter().map(|way| way.name.as_str()));
    let head = head.chain(["gain of neighbours"]);
    let row = |(i, bucket): (usize, &Bucket)| {
        let first = [label(config, i), bucket.n_texts.to_string(), bucket.losses[0].n_tokens.to_string()];
        let is_empty = bucket.n_texts == 0;
        let shown = |text: String| if is_empty { String::new() } else { text };
        let last = shown(format!("{:.4}", gain(&bucket.losses[0], &bucket.losses[1])));
        first.into_iter().chain(bucket.losses.iter().map(|loss| shown(bits(loss)))).chain([last]).collect()
    };
    Table::new(head, buckets.iter().enumerate().map(row).collect())
}

fn left_out_table(left_out: &[LeftOut], alone: &Loss) -> Table {
    let row = |of: &LeftOut| {
        let what = of.matched.map_or("nothing".to_owned(), |m| format!("{m} or more"));
        vec![what, percent(of.touched), bits(&of.test), format!("{:.4}", gain(alone, &of.test))]
    };
    let head = ["left out: in common", "tokens that lose a neighbour", "bits per byte", "gain over the model alone"];
    Table::new(head, left_out.iter().map(row).collect())
}

fn raw(ground: &Ground, scored: &Scored, left_out: &[LeftOut]) -> Table {
    let head = ["domain", "text", "overlap", "setting", "nats", "tokens", "bytes"];
    let mut rows = Vec::new();
    for (i, domain) in ground.domains.iter().enumerate() {
        let row = |text: String, overlap: String, setting: &str, loss: &Loss| {
            let of = [domain.source.to_string(), text, overlap, setting.to_owned()];
            of.into_iter().chain([loss.nats.to_string(), loss.n_tokens.to_string(), loss.n_bytes.to_string()]).collect()
        };
        for way in &scored.ways {
            let texts = way.texts[i].iter().zip(&scored.shares[i]).enumerate();
            rows.extend(texts.map(|(n, (loss, share))| row(n.to_string(), share.to_string(), &way.name, loss)));
        }
        for of in left_out {
            let setting =
                of.matched.map_or("nothing left out".to_owned(), |m| format!("left out: {m} or more in common"));
            rows.push(row("all".into(), String::new(), &setting, &of.domains[i]));
        }
    }
    Table::new(head, rows)
}

fn lines(scored: &Scored, buckets: &[Bucket]) -> Vec<Line> {
    let line = |(i, way): (usize, &Way)| {
        let filled = buckets.iter().enumerate().filter(|(_, bucket)| bucket.n_texts > 0);
        let points = filled.map(|(at, bucket)| (at as f64, bucket.losses[i].bits_per_byte())).collect();
        Line { name: way.name.clone(), points }
    };
    scored.ways.iter().enumerate().map(line).collect()
}
