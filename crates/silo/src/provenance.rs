//! What a result was made by: command, commit and machine.

use std::path::Path;
use std::process::Command;

use crate::sources;

/// The program with these arguments, as a shell takes it.
pub fn command(arguments: impl Iterator<Item = String>) -> String {
    let quoted = arguments.map(|argument| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@".contains(c);
        if !argument.is_empty() && argument.chars().all(plain) {
            argument
        } else {
            format!("'{}'", argument.replace('\'', "'\\''"))
        }
    });
    std::iter::once("silo".to_owned()).chain(quoted).collect::<Vec<_>>().join(" ")
}

/// The commit of the working directory, whether it differs from it, pages aside, and whether the program is made of what lies there.
pub fn commit() -> String {
    let commit = checked_out().unwrap_or_else(|| "unknown".to_owned());
    match sources::hash(Path::new(".")) {
        Ok(hash) if hash == env!("SILO_SOURCES") => commit,
        _ => format!("{commit}, by a program of other sources (SHA-256 {}…)", &env!("SILO_SOURCES")[..12]),
    }
}

fn checked_out() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!*.md"])?;
    let new = git(&[
        "ls-files",
        "--others",
        "--exclude-standard",
        "--",
        "crates",
        "proto",
        "configs",
        "indexes",
        "datastore",
    ])?;
    Some(if changes.is_empty() && new.is_empty() { commit } else { format!("{commit}, with changes") })
}

/// What the machine is, without its name.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':')).map_or("", |(_, m)| m.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} cores, {model}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_given_to_a_shell_again() {
        let arguments = ["eval", "--set", "a=[1, 'x']", "--output", "docs/results", ""];
        let shell = Command::new("sh")
            .args([
                "-c",
                &format!("set -- {}; printf '%s\\n' \"$@\"", command(arguments.map(str::to_owned).into_iter())),
            ])
            .output()
            .unwrap();
        let expected = ["silo"].into_iter().chain(arguments).collect::<Vec<_>>().join("\n") + "\n";
        assert_eq!(String::from_utf8(shell.stdout).unwrap(), expected);
    }

    #[test]
    fn a_program_knows_its_sources() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        assert_eq!(sources::hash(&root).unwrap(), env!("SILO_SOURCES"));
        let other = tempfile::tempdir().unwrap();
        for name in ["Cargo.lock", "Cargo.toml"] {
            std::fs::copy(root.join(name), other.path().join(name)).unwrap();
        }
        std::fs::create_dir_all(other.path().join("crates/one/src")).unwrap();
        std::fs::create_dir_all(other.path().join("proto")).unwrap();
        let file = other.path().join("crates/one/src/lib.rs");
        let hash = |text: &str| {
            std::fs::write(&file, text).unwrap();
            sources::hash(other.path()).unwrap()
        };
        assert!(hash("a") != hash("b") && hash("a") == hash("a"));
    }
}
