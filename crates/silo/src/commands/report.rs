//! `silo report`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use silo_log::{LedgerHour, LedgerReport, Statement, read_public, with_rotations};
use silo_proto::v1;
use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime};

use crate::client::{Connection, Target, refused};
use crate::output;

/// What a source gave to answers, day by day.
#[derive(Debug, Args)]
pub struct Report {
    #[command(flatten)]
    target: Target,
    /// The source.
    #[arg(required_unless_present = "verify", default_value = "")]
    source: String,
    /// From this day on (YYYY-MM-DD, UTC) or time (RFC 3339) [default: the first].
    #[arg(long)]
    from: Option<String>,
    /// To before this day or time [default: now].
    #[arg(long)]
    to: Option<String>,
    /// Hours instead of days.
    #[arg(long)]
    hours: bool,
    /// Print comma-separated values.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Also draw the shares as an SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Instead: have it signed, of hours that are over, and write the statement to this file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["csv", "plot", "verify", "hours"])]
    statement: Option<PathBuf>,
    /// Instead: verify such a statement, without a server.
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with_all = ["source", "plot", "csv", "from", "to"])]
    verify: Option<PathBuf>,
    /// The public keys of the one who issued it.
    #[arg(long, value_name = "FILE", conflicts_with = "source")]
    key: Option<PathBuf>,
    /// Statements about keys that took the place of these.
    #[arg(long, value_name = "FILE", conflicts_with = "source")]
    rotations: Option<PathBuf>,
}

/// A day or an hour.
#[derive(Debug, Clone, Default, PartialEq)]
struct Row {
    start: String,
    n_responses: u64,
    n_tokens: u64,
    share: f64,
    n_passage_responses: u64,
    n_verbatim_tokens: u64,
}

const COLUMNS: [&str; 6] = ["from", "responses", "tokens", "share", "passages", "verbatim"];

impl Row {
    fn cells(&self) -> Vec<String> {
        vec![
            self.start.clone(),
            self.n_responses.to_string(),
            self.n_tokens.to_string(),
            format!("{:.3}", self.share),
            self.n_passage_responses.to_string(),
            self.n_verbatim_tokens.to_string(),
        ]
    }

    fn add(&mut self, hour: &v1::SourceHour) {
        let add = |sum: &mut u64, n: u64| *sum = sum.saturating_add(n);
        add(&mut self.n_responses, hour.n_responses);
        add(&mut self.n_tokens, hour.n_tokens);
        self.share += hour.share;
        add(&mut self.n_passage_responses, hour.n_passage_responses);
        add(&mut self.n_verbatim_tokens, hour.n_verbatim_tokens);
    }

    fn json(&self) -> Value {
        json!({
            "from": self.start, "n_responses": self.n_responses, "n_tokens": self.n_tokens, "share": self.share,
            "n_passage_responses": self.n_passage_responses, "n_verbatim_tokens": self.n_verbatim_tokens,
        })
    }
}

fn unix_ms(text: &str) -> Result<i64> {
    let day = || {
        Date::parse(text, &time::format_description::well_known::Iso8601::DATE).ok().map(|d| d.midnight().assume_utc())
    };
    let at = OffsetDateTime::parse(text, &Rfc3339).ok().or_else(day);
    let at = at.with_context(|| format!("'{text}' is no day (2026-11-22) and no time (2026-11-22T10:00:00Z)"))?;
    Ok(at.unix_timestamp() * 1000)
}

fn rows(report: &v1::SourceReport, by_hour: bool) -> Vec<Row> {
    let mut out: Vec<Row> = Vec::new();
    for hour in &report.hours {
        let time = output::time(hour.start_unix_ms);
        let start = if by_hour { time } else { time.get(..10).unwrap_or_default().to_owned() };
        if out.last().is_none_or(|row| row.start != start) {
            out.push(Row { start, ..Row::default() });
        }
        if let Some(row) = out.last_mut() {
            row.add(hour);
        }
    }
    out
}

impl Report {
    /// Runs the command.
    pub async fn run(self, as_json: bool) -> Result<()> {
        if let Some(path) = &self.verify {
            return self.show_statement(path, as_json);
        }
        let to_unix_ms = self.to.as_deref().map(unix_ms).transpose()?;
        let from_unix_ms = self.from.as_deref().map(unix_ms).transpose()?.unwrap_or(0);
        let request = v1::GetSourceReportRequest { source: self.source.clone(), from_unix_ms, to_unix_ms };
        let connection = self.target.connect().await?;
        if let Some(path) = &self.statement {
            self.sign(&connection, request, path, as_json).await?;
            return connection.close().await;
        }
        let report = connection.attribution().get_source_report(request).await.map_err(refused)?.into_inner();
        self.show(&report, as_json)?;
        connection.close().await
    }

    /// Has a report signed. A file that cannot be written is found before, for a statement is an entry of the log.
    async fn sign(
        &self,
        connection: &Connection,
        request: v1::GetSourceReportRequest,
        path: &Path,
        as_json: bool,
    ) -> Result<()> {
        let failed = || format!("cannot write {}", path.display());
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
        let until = request.to_unix_ms;
        let signed = connection.attribution().sign_source_report(request).await.map_err(refused)?.into_inner();
        file.write_all(signed.text.as_bytes()).with_context(failed)?;
        file.persist(path).with_context(failed)?;
        let report = Statement::read(&signed.text)?.report;
        let (from, to) = (output::time(report.from_unix_ms), output::time(report.to_unix_ms));
        if as_json {
            let path = path.display().to_string();
            return output::json(&json!({"source": signed.source, "from": from, "to": to, "path": path}));
        }
        let cut = until.is_none_or(|until| until > report.to_unix_ms);
        let rest = if cut { "; later hours are not over" } else { "" };
        println!("{}: {}, from {from} to before {to}{rest}", path.display(), signed.source);
        Ok(())
    }

    /// Verifies a statement and prints it as the report that it is of.
    fn show_statement(&self, path: &Path, as_json: bool) -> Result<()> {
        let keys = match (&self.key, &self.rotations) {
            (Some(key), Some(rotations)) => with_rotations(read_public(key)?, rotations)?,
            (Some(key), None) => read_public(key)?,
            (None, _) => Vec::new(),
        };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let verified = Statement::verify(&text, &keys)?;
        if as_json {
            return output::json(&verified);
        }
        println!("The statement holds. It is signed by {}.", output::plain(&verified.signed_by));
        println!(
            "Entry {} of the log {}, of {}, asked for by {}; from {} to before {}",
            verified.position,
            output::plain(&verified.origin),
            output::time(verified.logged_at_unix_ms),
            output::plain(&verified.actor),
            output::time(verified.report.from_unix_ms),
            output::time(verified.report.to_unix_ms)
        );
        self.show(&message(verified.report), false)
    }

    fn show(&self, report: &v1::SourceReport, as_json: bool) -> Result<()> {
        let rows = rows(report, self.hours);
        let mut total = Row { start: "all".into(), ..Row::default() };
        report.hours.iter().for_each(|hour| total.add(hour));
        if as_json {
            let all: Vec<Value> = rows.iter().map(Row::json).collect();
            output::json(&json!({"source": report.source, "rows": all, "total": total.json()}))?;
        } else if self.csv {
            println!("{}", COLUMNS.join(","));
            rows.iter().for_each(|row| println!("{}", row.cells().join(",")));
        } else {
            println!("{}: shares are in tokens", report.source);
            output::table(&COLUMNS, &rows.iter().chain([&total]).map(Row::cells).collect::<Vec<_>>());
        }
        if let Some(path) = &self.plot {
            std::fs::write(path, plot(&report.source, &rows))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn message(report: LedgerReport) -> v1::SourceReport {
    let hour = |hour: LedgerHour| v1::SourceHour {
        start_unix_ms: hour.start_unix_ms,
        n_responses: hour.n_responses,
        n_tokens: hour.n_tokens,
        share: hour.share_millionths as f64 / 1e6,
        n_passage_responses: hour.n_passage_responses,
        n_verbatim_tokens: hour.n_verbatim_tokens,
    };
    v1::SourceReport {
        source: report.source.into(),
        from_unix_ms: report.from_unix_ms,
        to_unix_ms: report.to_unix_ms,
        hours: report.hours.into_iter().map(hour).collect(),
    }
}

/// A bar for each row.
fn plot(source: &str, rows: &[Row]) -> String {
    let (width, height_of_all, left, bottom) = (900.0, 320.0, 70.0, 40.0);
    let most = rows.iter().map(|row| row.share).fold(f64::MIN_POSITIVE, f64::max);
    let each = (width - left - 10.0) / rows.len().max(1) as f64;
    let mut bars = String::new();
    for (i, row) in rows.iter().enumerate() {
        let height = (height_of_all - bottom - 40.0) * row.share / most;
        let (x, y) = (left + each * i as f64, height_of_all - bottom - height);
        let _ = write!(
            bars,
            r##"<rect x="{x:.1}" y="{y:.1}" width="{:.1}" height="{height:.1}" fill="#1f77b4"/>"##,
            each * 0.8
        );
        // As many dates as there is room for.
        if i % rows.len().div_ceil(8).max(1) == 0 {
            let _ = write!(
                bars,
                r#"<text x="{x:.1}" y="{}" font-size="12">{}</text>"#,
                height_of_all - bottom + 18.0,
                row.start
            );
        }
    }
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height_of_all}" font-family="sans-serif">
<rect width="100%" height="100%" fill="white"/>
<text x="{left}" y="24" font-size="16">{source}: share in answers, in tokens</text>
<text x="8" y="48" font-size="12">{most:.1}</text><text x="8" y="{0}" font-size="12">0</text>
<line x1="{left}" y1="{0}" x2="{width}" y2="{0}" stroke="black"/>
{bars}
</svg>
"#,
        height_of_all - bottom
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_become_days() {
        let hour =
            |start_unix_ms, share| v1::SourceHour { start_unix_ms, share, n_tokens: 2, ..v1::SourceHour::default() };
        let hours = vec![hour(0, 0.5), hour(3_600_000, 1.0), hour(86_400_000, 2.0)];
        let report = v1::SourceReport { hours, ..v1::SourceReport::default() };
        let days: Vec<_> = rows(&report, false).into_iter().map(|row| (row.start, row.share, row.n_tokens)).collect();
        assert_eq!(days, [("1970-01-01".to_owned(), 1.5, 4), ("1970-01-02".to_owned(), 2.0, 2)]);
        assert_eq!(rows(&report, true).len(), 3);
        assert_eq!(unix_ms("1970-01-02").unwrap(), 86_400_000);
        assert!(unix_ms("tomorrow").unwrap_err().to_string().contains("'tomorrow' is no day"));
        assert_eq!(plot("s", &rows(&report, false)).matches("<rect x=").count(), 2);
    }
}
