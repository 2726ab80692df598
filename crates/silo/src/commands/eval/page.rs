//! A result as files: JSON, CSV, a page, pictures.

use anyhow::{Context, Result};
use serde_json::Value;
use silo_eval::Loss;

use super::Run;
use super::plot::{Line, Plot};
use crate::output;

/// Rows under a head.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table of which each row has as many cells as the head.
    pub fn new<S: Into<String>>(head: impl IntoIterator<Item = S>, rows: Vec<Vec<String>>) -> Self {
        Self { head: head.into_iter().map(Into::into).collect(), rows }
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let cell = |text: &String| output::plain(text).replace('|', "\\|");
        let line = |cells: &[String]| format!("| {} |\n", cells.iter().map(cell).collect::<Vec<_>>().join(" | "));
        let ruler = vec!["---".to_owned(); self.head.len()];
        [line(&self.head), line(&ruler)].into_iter().chain(self.rows.iter().map(|row| line(row))).collect()
    }

    /// As CSV (RFC 4180).
    pub fn csv(&self) -> Result<String> {
        let mut out = csv::Writer::from_writer(Vec::new());
        for row in std::iter::once(&self.head).chain(&self.rows) {
            out.write_record(row).context("a row of a table")?;
        }
        Ok(String::from_utf8(out.into_inner().context("a table")?)?)
    }
}

/// A measurement that is done.
pub struct Measured<'a> {
    /// What its files are called.
    pub name: &'a str,
    /// Above its page.
    pub title: &'a str,
    /// What was measured, and how.
    pub what: &'a str,
    /// What came out, in a sentence or two.
    pub finding: String,
    /// All of it; under `made` what it was made with.
    pub whole: Value,
    /// Raw figures.
    pub raw: Table,
    /// What a reader sees: Markdown.
    pub tables: String,
    /// And a picture, with its lines.
    pub picture: Option<(Plot<'a>, Vec<Line>)>,
}

impl Measured<'_> {
    /// Writes the files, and prints the tables, or all as JSON.
    pub fn publish(&self, run: &Run, as_json: bool) -> Result<()> {
        self.write(run)?;
        if as_json {
            return output::json(&self.whole);
        }
        print!("{}", self.tables);
        Ok(())
    }

    /// Writes the files.
    pub fn write(&self, run: &Run) -> Result<()> {
        // Whatever can fail comes before the first file.
        let picture = self.picture.as_ref().map(|(plot, lines)| {
            let svg = plot.svg(lines)?;
            anyhow::Ok((plot.png(&svg)?, svg))
        });
        let (picture, csv) = (picture.transpose()?, self.raw.csv()?);
        let path = |ending: &str| run.output.join(format!("{}.{ending}", self.name));
        output::file(&path("json"), format!("{:#}\n", self.whole))?;
        output::file(&path("csv"), csv)?;
        if let Some((png, svg)) = picture {
            output::file(&path("png"), png)?;
            output::file(&path("svg"), svg)?;
        }
        output::file(&path("md"), self.page())
    }

    fn page(&self) -> String {
        let Self { name, title, what, finding, tables, .. } = self;
        let picture = if self.picture.is_some() { format!("![{title}]({name}.svg)\n\n") } else { String::new() };
        let made_with = self.made_with();
        format!(
            "# {title}\n\n{what}\n{made_with}* Raw data: `{name}.csv`, `{name}.json`\n\n{finding}\n\n{picture}{tables}"
        )
    }

    /// Command, commit, machine, model and store, as a list.
    pub fn made_with(&self) -> String {
        let facts = &self.whole["made"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let passed_over =
            ["passed_over_bytes", "passed_over_tokens"].map(|key| facts["sizes"][key].as_u64().unwrap_or(0));
        let [bytes, tokens] = passed_over;
        let mut test_text = String::new();
        if bytes > 0 {
            test_text += &format!(
                "* Test text: documents that begin in the first {bytes} bytes of a domain's are passed over\n"
            );
        }
        if tokens > 0 {
            test_text += &format!(
                "* Of each test document the first {tokens} tokens are passed over, and what follows is scored as if it began there\n"
            );
        }
        format!(
            "\n* Command: `{}`\n* Commit: {}\n* Machine: {}\n* Model: {}, {} parameters\n* Store: {} entries, recipe {}\n{test_text}",
            text(&facts["command"]),
            text(&facts["commit"]),
            text(&facts["machine"]),
            text(&facts["model"]["name"]),
            facts["model"]["n_parameters"],
            facts["n_entries"],
            text(&facts["recipe"]["name"]),
        )
    }
}

/// Bits per byte, as tables show them.
pub fn bits(loss: &Loss) -> String {
    format!("{:.4}", loss.bits_per_byte())
}

/// All text of some losses.
pub fn sum<'a>(losses: impl IntoIterator<Item = &'a Loss>) -> Loss {
    losses.into_iter().copied().fold(Loss::default(), Loss::and)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_break_no_table() {
        let table = Table::new(["a name"], vec![vec!["a | b\nc".into()]]);
        assert_eq!(table.markdown(), "| a name |\n| --- |\n| a \\| b c |\n");
    }

    #[test]
    fn tables_are_markdown_and_csv() {
        let table = Table::new(["rule", "bits"], vec![vec!["kNN, own \"shard\"".into(), "1.5".into()]]);
        assert_eq!(table.markdown(), "| rule | bits |\n| --- | --- |\n| kNN, own \"shard\" | 1.5 |\n");
        assert_eq!(table.csv().unwrap(), "rule,bits\n\"kNN, own \"\"shard\"\"\",1.5\n");
    }
}
