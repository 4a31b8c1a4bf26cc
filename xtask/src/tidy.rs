//! `cargo xtask tidy`: rules of the code that neither rustc nor clippy knows.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Lines of a file that are not tests, at most.
const MAX_LINES: usize = 800;

/// Words that mark unfinished work; split so that this file does not contain them.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
];

/// Checks every Rust file of the workspace.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut files = Vec::new();
    for folder in ["crates", "xtask"] {
        collect(&root.join(folder), &mut files)?;
    }
    let mut problems = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let name = file
            .strip_prefix(root)
            .unwrap_or(file)
            .display()
            .to_string();
        problems.extend(
            check(&name, &text)
                .into_iter()
                .map(|problem| format!("{name}{problem}")),
        );
    }
    if !problems.is_empty() {
        bail!(
            "{}\n{} problems in {} files",
            problems.join("\n"),
            problems.len(),
            files.len()
        );
    }
    println!("tidy: {} files", files.len());
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "generated") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The problems of one file, each beginning with `:line: `.
fn check(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if !text.starts_with("//!") {
        problems.push(":1: the file does not open with a //! header".to_owned());
    }
    let is_test = name.contains("/tests/") || name.ends_with("tests.rs");
    let product = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text);
    let lines = product.lines().count();
    if !is_test && lines > MAX_LINES {
        problems.push(format!(
            ":{lines}: more than {MAX_LINES} lines without tests; split it"
        ));
    }
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        for word in UNFINISHED {
            if line.contains(word) {
                problems.push(format!(":{number}: unfinished work ({word})"));
            }
        }
        if line.contains("#[error(")
            && ["{source}", "{0:#}", "{source:"]
                .iter()
                .any(|s| line.contains(s))
        {
            problems.push(format!(":{number}: an error text repeats its source"));
        }
        if line.ends_with(' ') {
            problems.push(format!(":{number}: space at the end of the line"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_file_has_no_problems() {
        assert_eq!(
            check(
                "crates/a/src/lib.rs",
                "//! What it is for.\n\nfn main() {}\n"
            ),
            [""; 0]
        );
    }

    #[test]
    fn problems_are_found_with_their_lines() {
        let text = format!("fn main() {{}}\n// {} later\nlet x = 1; \n", UNFINISHED[0]);
        let problems = check("crates/a/src/lib.rs", &text);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[1].starts_with(":2:"));
    }

    #[test]
    fn a_long_file_is_a_problem() {
        let text = format!("//! Long.\n{}", "fn f() {}\n".repeat(MAX_LINES));
        assert_eq!(check("crates/a/src/lib.rs", &text).len(), 1);
    }
}
