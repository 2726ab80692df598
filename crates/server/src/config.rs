//! Limits of the server.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Address and limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerConfig {
    /// Address to listen at. One that others can reach needs tokens and TLS.
    pub listen: SocketAddr,
    /// The file of tokens that callers are known by; without it whoever reaches the server may do everything.
    pub tokens: Option<PathBuf>,
    /// Certificates; without them the server speaks plain text.
    pub tls: Option<TlsConfig>,
    /// Send tokens and texts over networks that others may listen at.
    pub plain_text_beyond_loopback: bool,
    /// Largest message that is read.
    pub max_message_bytes: usize,
    /// Greatest `max_new_tokens` of a request.
    pub max_new_tokens: usize,
    /// `max_new_tokens` of a request that does not say.
    pub default_new_tokens: usize,
    /// Greatest number of alternatives per token.
    pub max_alternatives: usize,
    /// Most stop strings of a request.
    pub max_stop_strings: usize,
    /// Neighbours of a Search that does not say.
    pub default_search_neighbors: usize,
    /// Passages of a Search that does not say.
    pub default_search_passages: usize,
    /// Searches (the call, not those of generation) at the same time; one more is refused.
    pub max_concurrent_searches: usize,
    /// Receipts and proofs of the log that may be made or wait at a time.
    pub max_concurrent_receipts: usize,
    /// Running streams get this long to end when the server is told to stop.
    pub drain_seconds: u64,
    /// Uploads at the same time, and additions that wait for their turn; one more is refused.
    pub max_queued_additions: usize,
    /// Finished operations that are remembered.
    pub max_finished_operations: usize,
    /// Share of the time in which purges may run: after one, the next waits so long that no more is used. 1 is no limit.
    pub purge_share: f64,
    /// Milliseconds from one look at the terms of sources to the next: so late may one that ends by itself be seen to have ended.
    pub terms_check_ms: u64,
    /// Hours from the end of one check of all files against their checksums to the next; 0 for one check, at the start.
    pub scrub_hours: u64,
}

/// Certificates and keys, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The server's certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority whose certificates callers must show (mTLS); they need none without it.
    #[serde(default)]
    pub client_authority: Option<PathBuf>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50061)),
            tokens: None,
            tls: None,
            plain_text_beyond_loopback: false,
            max_message_bytes: 32 << 20,
            max_new_tokens: 4096,
            default_new_tokens: 128,
            max_alternatives: 20,
            max_stop_strings: 16,
            default_search_neighbors: 8,
            default_search_passages: 3,
            max_concurrent_searches: 4,
            max_concurrent_receipts: 8,
            drain_seconds: 30,
            max_queued_additions: 16,
            max_finished_operations: 1000,
            purge_share: 0.05,
            terms_check_ms: 500,
            scrub_hours: 24,
        }
    }
}

/// A setting that the server does not accept.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages document the variants and their fields")]
pub enum InvalidSetting {
    #[error(
        "server.listen is {0}, which others can reach, and server.tokens names no file: everyone may do everything. Make tokens with \
         `silo token create`, or listen at a loopback address such as 127.0.0.1:50061"
    )]
    NoTokens(SocketAddr),
    #[error(
        "server.listen is {0}, which others can reach, without TLS: tokens and texts could be read on the way. Name certificates in \
         [server.tls], or say plain_text_beyond_loopback = true"
    )]
    PlainText(SocketAddr),
    #[error("server.terms_check_ms is 0; it must be 1 or more")]
    TermsCheck,
    #[error("server.purge_share is {0}; it must be over 0 and at most 1")]
    PurgeShare(f64),
}

impl ServerConfig {
    /// Whether all settings may stand.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        if self.terms_check_ms == 0 {
            return Err(InvalidSetting::TermsCheck);
        }
        let beyond = !self.listen.ip().is_loopback();
        if beyond && self.tokens.is_none() {
            return Err(InvalidSetting::NoTokens(self.listen));
        }
        if beyond && self.tls.is_none() && !self.plain_text_beyond_loopback {
            return Err(InvalidSetting::PlainText(self.listen));
        }
        // Also refuses what is no number.
        if !(self.purge_share > 0.0 && self.purge_share <= 1.0) {
            return Err(InvalidSetting::PurgeShare(self.purge_share));
        }
        Ok(())
    }
}
