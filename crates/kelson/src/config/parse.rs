//! Reading the files: every mistake of every file is found before anything is reported.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::keys::{KEYS, defaults};
use super::{Config, DEFAULT_PATH};

/// Largest configuration file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One mistake in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// The file.
    pub(crate) file: PathBuf,
    /// Line, counted from 1.
    pub(crate) line: usize,
    /// What is wrong and what was expected.
    pub(crate) text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.text)
    }
}

/// Why no configuration could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A file or the drop-in directory could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file is too large to be a configuration.
    #[error("{path} is larger than {MAX_FILE_BYTES} bytes; a configuration file is not")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The files were read and hold mistakes.
    #[error("{}\n{} in the configuration; `kelson config default` documents every key",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        count(.0.len()))]
    Mistakes(Vec<Mistake>),
}

fn count(mistakes: usize) -> String {
    if mistakes == 1 {
        "1 mistake".into()
    } else {
        format!("{mistakes} mistakes")
    }
}

/// Reads `explicit`, which must exist, or the file at the default path, which need not.
pub(crate) fn load_or_default(explicit: Option<&Path>) -> Result<Config, ConfigError> {
    match explicit {
        Some(path) => load(path, true),
        None => load(Path::new(DEFAULT_PATH), false),
    }
}

/// Reads `main` and its drop-ins. A main file that is missing is an error when `required`.
pub(crate) fn load(main: &Path, required: bool) -> Result<Config, ConfigError> {
    let mut config = defaults();
    let mut mistakes = Vec::new();
    let mut places = Places::new();
    for file in files(main, required)? {
        let text = read(&file)?;
        apply(&mut config, &file, &text, &mut places, &mut mistakes);
    }
    mistakes.extend(alone(&config, &places));
    if mistakes.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::Mistakes(mistakes))
    }
}

fn files(main: &Path, required: bool) -> Result<Vec<PathBuf>, ConfigError> {
    let mut found = Vec::new();
    if required || main.exists() {
        found.push(main.to_owned());
    }
    let dir = Config::drop_in_dir(main);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(source) => return Err(ConfigError::Read { path: dir, source }),
    };
    let mut drop_ins = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| ConfigError::Read {
            path: dir.clone(),
            source,
        })?;
        let path = entry.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            drop_ins.push(path);
        }
    }
    drop_ins.sort();
    found.append(&mut drop_ins);
    Ok(found)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

/// File and line where each key was set last.
type Places = HashMap<&'static str, (PathBuf, usize)>;

/// Keys that have no effect without each other, which may be in different files.
fn alone(config: &Config, places: &Places) -> Option<Mistake> {
    let (set, missing) = match (&config.streaming_tls_cert, &config.streaming_tls_key) {
        (Some(_), None) => ("streaming.tls_cert", "streaming.tls_key"),
        (None, Some(_)) => ("streaming.tls_key", "streaming.tls_cert"),
        _ => return None,
    };
    let (file, line) = places.get(set)?.clone();
    let text = format!("{set}: has no use without {missing}; set both or neither");
    Some(Mistake { file, line, text })
}

/// Applies one file's text to `config` and adds its mistakes.
fn apply(
    config: &mut Config,
    file: &Path,
    text: &str,
    places: &mut Places,
    mistakes: &mut Vec<Mistake>,
) {
    let line_of = |offset: usize| {
        let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    };
    let mut report = |offset: usize, text: String| {
        mistakes.push(Mistake {
            file: file.to_owned(),
            line: line_of(offset),
            text,
        });
    };
    let (document, errors) = DeTable::parse_recoverable(text);
    let broken = !errors.is_empty();
    for error in errors {
        report(
            error.span().map_or(0, |span| span.start),
            error.message().to_owned(),
        );
    }
    if broken {
        return;
    }
    for (table, entries) in document.get_ref() {
        let table_name = table.get_ref().as_ref();
        let known_table = KEYS
            .iter()
            .any(|key| key.name.split('.').next() == Some(table_name));
        if !known_table {
            report(table.span().start, unknown("table", table_name, tables()));
            continue;
        }
        let Some(entries) = entries.get_ref().as_table() else {
            report(
                table.span().start,
                format!("`{table_name}` is a table: write [{table_name}]"),
            );
            continue;
        };
        for (name, value) in entries {
            let full = format!("{table_name}.{}", name.get_ref());
            match KEYS.iter().find(|key| key.name == full) {
                Some(key) => {
                    let offset = value.span().start;
                    places.insert(key.name, (file.to_owned(), line_of(offset)));
                    if let Err(problem) = (key.set)(config, value.get_ref()) {
                        report(offset, format!("{full}: {problem}"));
                    }
                }
                None => report(name.span().start, unknown("key", &full, names(table_name))),
            }
        }
    }
}

fn tables() -> Vec<&'static str> {
    let mut tables: Vec<_> = KEYS
        .iter()
        .filter_map(|key| key.name.split('.').next())
        .collect();
    tables.dedup();
    tables
}

fn names(table: &str) -> Vec<&'static str> {
    KEYS.iter()
        .map(|key| key.name)
        .filter(|name| name.split('.').next() == Some(table))
        .collect()
}

fn unknown(what: &str, name: &str, known: Vec<&'static str>) -> String {
    format!("unknown {what} `{name}`; known here: {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NetworkFallback, default_text};

    fn parse(text: &str) -> (Config, Vec<Mistake>) {
        let mut config = defaults();
        let (mut mistakes, mut places) = (Vec::new(), Places::new());
        let file = Path::new("config.toml");
        apply(&mut config, file, text, &mut places, &mut mistakes);
        mistakes.extend(alone(&config, &places));
        (config, mistakes)
    }

    #[test]
    fn the_printed_default_is_the_default() {
        let (config, mistakes) = parse(&default_text());
        assert_eq!(mistakes, []);
        assert_eq!(config, defaults());
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let (_, mistakes) = parse("[streaming]\n\ntls_cert = \"/a\"\n");
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert_eq!(mistakes[0].line, 3);
        assert!(mistakes[0].text.contains("streaming.tls_key"));
        let (_, mistakes) = parse("[streaming]\ntls_cert = \"/a\"\ntls_key = \"/b\"\n");
        assert_eq!(mistakes, []);
    }

    #[test]
    fn all_mistakes_are_reported_with_their_lines() {
        let (_, mistakes) = parse(
            "[network]\nfallback = \"bridges\"\n\n[daemon]\nroot = \"relative\"\nrot = 1\n[colour]\n",
        );
        let found: Vec<_> = mistakes.iter().map(|m| (m.line, m.text.as_str())).collect();
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(
            found
                .iter()
                .any(|(line, text)| *line == 2 && text.contains("\"bridge\""))
        );
        assert!(
            found
                .iter()
                .any(|(line, text)| *line == 5 && text.contains("absolute path"))
        );
        assert!(
            found
                .iter()
                .any(|(line, text)| *line == 6 && text.contains("daemon.root"))
        );
        assert!(
            found
                .iter()
                .any(|(line, text)| *line == 7 && text.contains("unknown table"))
        );
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let (_, mistakes) = parse("[daemon]\nroot = \n");
        assert_eq!(mistakes.len(), 1);
        assert_eq!(mistakes[0].line, 2);
    }

    #[test]
    fn drop_ins_win_in_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        std::fs::write(&main, "[network]\nfallback = \"none\"\n").unwrap();
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        std::fs::write(
            dir.path().join("conf.d/20.toml"),
            "[network]\nfallback = \"bridge\"\n",
        )
        .unwrap();
        std::fs::write(
            dir.path().join("conf.d/10.toml"),
            "[network]\nfallback = \"none\"\n",
        )
        .unwrap();
        let config = load(&main, true).unwrap();
        assert_eq!(config.network_fallback, NetworkFallback::Bridge);
    }

    #[test]
    fn a_missing_main_file_is_the_default_unless_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        assert_eq!(load(&main, false).unwrap(), defaults());
        assert!(matches!(load(&main, true), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn limits_of_processes() {
        let text =
            "[container]\nrlimits = [\"nofile=1024:524288\", \"core=0\", \"memlock=unlimited\"]\n";
        let (config, mistakes) = parse(text);
        assert_eq!(mistakes, []);
        let limits = [
            ("RLIMIT_NOFILE".to_owned(), 1024, 524_288),
            ("RLIMIT_CORE".to_owned(), 0, 0),
            ("RLIMIT_MEMLOCK".to_owned(), u64::MAX, u64::MAX),
        ];
        assert_eq!(config.rlimits, limits);
        for wrong in ["nofile", "nofile=2:1", "files=1", "nofile=-1"] {
            let (_, mistakes) = parse(&format!("[container]\nrlimits = [\"{wrong}\"]\n"));
            assert_eq!(mistakes.len(), 1, "{wrong}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let (_, mistakes) =
            parse("[image]\nmax_concurrent_downloads = 0\nmax_layer_bytes = \"1\"\n");
        assert_eq!(mistakes.len(), 2);
    }
}
