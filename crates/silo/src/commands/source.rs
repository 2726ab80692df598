//! `silo source`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use silo_corpus::SourceDeclaration;
use silo_proto::v1;

use super::source_update::{Show, Update};
use super::{tier_name, tier_number};
use crate::client::{Target, refused};
use crate::output;

/// Sources: declare and list.
#[derive(Debug, Subcommand)]
pub enum Source {
    /// Declare a source. Its tier follows from its licence.
    Create(Create),
    /// Change what a source may be used for: permissions, a term, machine-readable reservations of rights.
    Update(Update),
    /// Show a source with what is said about it.
    Show(Show),
    /// List the sources.
    Ls(List),
}

/// Declares a source.
#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    target: Target,
    /// Its name: 1 to 63 of a-z, 0-9, '-', '_', '.'.
    #[arg(required_unless_present = "declaration")]
    name: Option<String>,
    /// Who holds the rights, or gave the collection out.
    #[arg(long, required_unless_present = "declaration")]
    owner: Option<String>,
    /// SPDX licence expression.
    #[arg(long, required_unless_present = "declaration")]
    licence: Option<String>,
    /// Where the licence is stated.
    #[arg(long)]
    licence_stated_at: Option<String>,
    /// What the licence asks to be given with what is made from it, word for word.
    #[arg(long)]
    notice: Option<String>,
    /// Take all of this from a declaration, as those in `datastore/`.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["name", "owner", "licence", "licence_stated_at", "notice"])]
    declaration: Option<PathBuf>,
}

impl Create {
    fn source(self) -> Result<v1::Source> {
        let Some(path) = &self.declaration else {
            return Ok(v1::Source {
                name: self.name.unwrap_or_default(),
                owner: self.owner.unwrap_or_default(),
                licence: self.licence.unwrap_or_default(),
                licence_stated_at: self.licence_stated_at.unwrap_or_default(),
                notice: self.notice.unwrap_or_default(),
                ..v1::Source::default()
            });
        };
        let d = SourceDeclaration::read(path)?;
        let permissions = d.permissions.map(|p| v1::Permissions {
            train: p.train,
            knn: p.knn,
            context: p.context,
            verbatim: p.verbatim,
            display: p.display,
        });
        Ok(v1::Source {
            name: d.name.to_string(),
            owner: d.owner,
            licence: d.licence,
            licence_stated_at: d.licence_stated_at,
            notice: d.notice,
            tier: d.tier.map_or(0, tier_number),
            permissions,
            ..v1::Source::default()
        })
    }
}

/// Lists the sources.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    target: Target,
}

pub(super) fn describe(s: &v1::Source) -> Value {
    let p = s.permissions.unwrap_or_default();
    json!({
        "name": s.name, "owner": s.owner, "licence": s.licence, "licence_stated_at": s.licence_stated_at, "notice": s.notice,
        "tier": tier_name(s.tier),
        "permissions": {"train": p.train, "knn": p.knn, "context": p.context, "verbatim": p.verbatim, "display": p.display},
    })
}

pub(super) fn permitted(p: Option<v1::Permissions>) -> String {
    let p = p.unwrap_or_default();
    let all =
        [(p.train, "train"), (p.knn, "knn"), (p.context, "context"), (p.verbatim, "verbatim"), (p.display, "display")];
    all.iter().filter(|(yes, _)| *yes).map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
}

impl Source {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        match self {
            Self::Create(c) => {
                let connection = c.target.connect().await?;
                let source = c.source()?;
                let request = v1::CreateSourceRequest { source: Some(source), validate_only: false };
                let created = connection.datastore().create_source(request).await.map_err(refused)?.into_inner();
                if as_json {
                    output::json(&describe(&created))?;
                } else {
                    println!(
                        "{} is {}; permitted: {}",
                        created.name,
                        tier_name(created.tier),
                        permitted(created.permissions)
                    );
                }
                connection.close().await
            }
            Self::Update(c) => c.run(as_json).await,
            Self::Show(c) => c.run(as_json).await,
            Self::Ls(c) => {
                let connection = c.target.connect().await?;
                let sources = all(&connection).await?;
                if as_json {
                    output::json(&sources.iter().map(describe).collect::<Vec<_>>())?;
                } else {
                    let row = |s: &v1::Source| {
                        vec![
                            s.name.clone(),
                            tier_name(s.tier).into(),
                            s.licence.clone(),
                            permitted(s.permissions),
                            s.owner.clone(),
                        ]
                    };
                    output::table(
                        &["name", "tier", "licence", "permitted", "owner"],
                        &sources.iter().map(row).collect::<Vec<_>>(),
                    );
                }
                connection.close().await
            }
        }
    }
}

async fn all(connection: &crate::client::Connection) -> Result<Vec<v1::Source>> {
    let (mut out, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListSourcesRequest { page_size: 1000, page_token };
        let page = connection.datastore().list_sources(request).await.map_err(refused)?.into_inner();
        out.extend(page.sources);
        if page.next_page_token.is_empty() {
            return Ok(out);
        }
        page_token = page.next_page_token;
    }
}
