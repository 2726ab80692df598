//! How much of the gap to a model that has learnt all text is closed, in three forms.

use serde::Serialize;

use crate::Loss;

/// Losses of one domain on the same tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GapLosses {
    /// Of the model alone.
    pub model: Loss,
    /// Of the model with the store.
    pub with_store: Loss,
    /// Of the model that has learnt all text.
    pub reference: Loss,
}

/// Parts of the gap that are closed: 1 where the store does as much as the reference, more where it does more; `None` where the gap is too
/// small to be divided by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GapClosed {
    /// (LM − x) / (LM − reference) of the mean perplexities, as SILO (Min et al. 2023, table 4) gives it.
    pub mean_perplexity: Option<f64>,
    /// The mean of each domain's own, at most 1 each; of domains with a gap.
    pub capped: Option<f64>,
    /// Of the mean log-perplexity, which no single domain with a large perplexity dominates.
    pub log_perplexity: Option<f64>,
    /// Domains in which model and store beat the reference.
    pub n_beaten: usize,
    /// Domains.
    pub n_domains: usize,
    /// Domains whose gap is too small to be divided by: they count in the other forms only.
    pub n_without_a_gap: usize,
}

impl GapClosed {
    /// The gap closed in some domains; `min_gap` is the least gap, in bits per byte, that is divided by. `None` without a domain, or
    /// where the texts were not of the same tokens.
    pub fn of(domains: &[GapLosses], min_gap: f64) -> Option<Self> {
        let same =
            |d: &GapLosses| d.model.n_tokens == d.reference.n_tokens && d.model.n_tokens == d.with_store.n_tokens;
        if domains.is_empty() || !domains.iter().all(same) {
            return None;
        }
        let mean = |of: &dyn Fn(&GapLosses) -> f64| domains.iter().map(of).sum::<f64>() / domains.len() as f64;
        let bits = |of: fn(&GapLosses) -> Loss| mean(&|d| of(d).bits_per_byte());
        let is_wide = bits(|d| d.model) - bits(|d| d.reference) >= min_gap;
        let closed = |of: &dyn Fn(&Loss) -> f64| {
            let (model, with_store) = (mean(&|d| of(&d.model)), mean(&|d| of(&d.with_store)));
            let gap = model - mean(&|d| of(&d.reference));
            (is_wide && gap > 0.0).then(|| (model - with_store) / gap)
        };
        let wide = |d: &&GapLosses| d.model.bits_per_byte() - d.reference.bits_per_byte() >= min_gap;
        let own = |d: &GapLosses| {
            let perplexity = |loss: &Loss| loss.perplexity();
            let (model, reference) = (perplexity(&d.model), perplexity(&d.reference));
            ((model - perplexity(&d.with_store)) / (model - reference)).min(1.0)
        };
        let each: Vec<f64> = domains.iter().filter(wide).map(own).collect();
        Some(Self {
            mean_perplexity: closed(&Loss::perplexity),
            capped: (!each.is_empty()).then(|| each.iter().sum::<f64>() / each.len() as f64),
            log_perplexity: closed(&|loss| loss.perplexity().ln()),
            n_beaten: domains.iter().filter(|d| d.with_store.nats < d.reference.nats).count(),
            n_domains: domains.len(),
            n_without_a_gap: domains.len() - each.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(perplexity: f64) -> Loss {
        Loss { nats: 10.0 * perplexity.ln(), n_tokens: 10, n_bytes: 20 }
    }

    fn losses([model, with_store, reference]: [f64; 3]) -> GapLosses {
        GapLosses { model: loss(model), with_store: loss(with_store), reference: loss(reference) }
    }

    /// Two rows of the paper's table 4: Enron and Books3.
    #[test]
    fn the_forms_are_those_of_their_formulas() {
        let domains = [losses([13.2, 5.9, 6.9]), losses([19.3, 17.4, 12.6])];
        let gap = GapClosed::of(&domains, 0.02).unwrap();
        let close = |found: Option<f64>, expected: f64| assert!((found.unwrap() - expected).abs() < 1e-9, "{gap:?}");
        close(gap.mean_perplexity, (32.5 - 23.3) / (32.5 - 19.5));
        close(gap.capped, (1.0 + 1.9 / 6.7) / 2.0);
        let ln = |a: f64, b: f64| a.ln() + b.ln();
        let log = (ln(13.2, 19.3) - ln(5.9, 17.4)) / (ln(13.2, 19.3) - ln(6.9, 12.6));
        close(gap.log_perplexity, log);
        assert_eq!((gap.n_beaten, gap.n_domains, gap.n_without_a_gap), (1, 2, 0));
        // A domain that the reference hardly knew counts for nothing where it would be divided by.
        let with_none = [domains[0], losses([10.0, 9.0, 9.99])];
        let gap = GapClosed::of(&with_none, 0.02).unwrap();
        assert_eq!((gap.capped, gap.n_without_a_gap), (Some(1.0), 1));
        // A reference that knows no more than the model leaves nothing to divide by.
        let none = GapClosed::of(&[losses([10.0, 9.0, 10.5])], 0.02).unwrap();
        assert_eq!((none.mean_perplexity, none.capped, none.log_perplexity), (None, None, None));
        assert_eq!((none.n_beaten, none.n_without_a_gap), (1, 1));
        assert_eq!(GapClosed::of(&[], 0.02), None);
        let other = GapLosses { reference: Loss { n_tokens: 9, ..loss(5.0) }, ..domains[0] };
        assert_eq!(GapClosed::of(&[other], 0.02), None);
    }
}
