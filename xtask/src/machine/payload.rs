//! The disk with what is tested: the workspace without its history, the built programs without debug
//! information, and what to do with them. It is mounted in the machine where the workspace is here,
//! so that paths which programs were built with are right there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Options, Suite, image};
use crate::setup;

/// Where the program for the inside is, beneath the workspace.
const PROGRAM: &str = "target/machine-guest";
/// Its arguments, one a line.
const ARGUMENTS: &str = "target/machine-arguments";
/// The test programs, as `Tests` writes them.
const TESTS: &str = "target/machine-tests";

/// A disk, without a name: it goes with the last who has it open.
pub(crate) struct Payload {
    /// Where it is mounted in the machine.
    pub(crate) root: PathBuf,
    pub(crate) disk: File,
}

/// A test program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Test {
    /// Package and target, such as `kelson-cgroup/real`.
    pub(crate) name: String,
    /// Its directory to run in.
    pub(crate) dir: PathBuf,
    pub(crate) program: PathBuf,
}

/// Builds everything and puts it on a disk.
pub(crate) fn make(root: &Path, options: &Options) -> Result<Payload> {
    println!("building the tests");
    let built = build(root)?;
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).context("cannot make a directory")?;
    sources(root, &tree)?;
    for program in built
        .programs
        .iter()
        .chain(built.tests.iter().map(|test| &test.program))
    {
        add(root, &tree, program, Strip::Yes)?;
    }
    let mut tools = vec![setup::crictl(root)?];
    if options.has(Suite::Critest) || options.shell {
        tools.extend([setup::critest(root)?, setup::busybox(root)?]);
    }
    for tool in &tools {
        add(root, &tree, tool, Strip::No)?;
    }
    let own = std::env::current_exe().context("cannot find this program")?;
    strip(&own, &tree.join(PROGRAM))?;
    let write = |name: &str, text: String| {
        fs::write(tree.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    write(ARGUMENTS, options.arguments().join("\n"))?;
    write(TESTS, listed(&built.tests))?;
    let disk = dir.path().join("tests.img");
    image::disk(&tree, &disk, "4G")?;
    let disk = File::open(disk).context("cannot open the disk")?;
    dir.close()
        .context("cannot remove what is on the disk now")?;
    Ok(Payload {
        root: root.to_owned(),
        disk,
    })
}

/// The test programs on this machine's disk, which [`make`] wrote.
pub(crate) fn tests(root: &Path) -> Result<Vec<Test>> {
    let path = root.join(TESTS);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("no {}; this is for the virtual machine", path.display()))?;
    let test = |line: &str| {
        let mut words = line.split('\t');
        Some(Test {
            name: words.next()?.to_owned(),
            dir: words.next()?.into(),
            program: words.next()?.into(),
        })
    };
    Ok(text.lines().filter_map(test).collect())
}

fn listed(tests: &[Test]) -> String {
    let line = |test: &Test| {
        format!(
            "{}\t{}\t{}\n",
            test.name,
            test.dir.display(),
            test.program.display()
        )
    };
    tests.iter().map(line).collect()
}

/// What cargo has built.
#[derive(Debug, Default, PartialEq, Eq)]
struct Built {
    programs: Vec<PathBuf>,
    tests: Vec<Test>,
}

fn build(root: &Path) -> Result<Built> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root)
        .args([
            "test",
            "--workspace",
            "--no-run",
            "--quiet",
            "--message-format=json",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the tests do not build");
    }
    Ok(built(&String::from_utf8_lossy(&output.stdout)))
}

/// The programs in cargo's messages: binaries and examples, and the tests beside the sources' own.
fn built(messages: &str) -> Built {
    let mut built = Built::default();
    for message in messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let (Some(program), Some(manifest)) = (
            message["executable"].as_str(),
            message["manifest_path"].as_str(),
        ) else {
            continue;
        };
        let dir = Path::new(manifest).parent().unwrap_or(Path::new("/"));
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        let package = dir.file_name().unwrap_or_default().to_string_lossy();
        let target = message["target"]["name"].as_str().unwrap_or_default();
        match (kind, message["profile"]["test"].as_bool()) {
            ("test", Some(true)) => built.tests.push(Test {
                name: format!("{package}/{target}"),
                dir: dir.to_owned(),
                program: program.into(),
            }),
            ("bin" | "example", Some(false)) if package != "xtask" => {
                built.programs.push(program.into())
            }
            _ => {}
        }
    }
    built.tests.sort_by(|one, other| one.name.cmp(&other.name));
    built
}

/// Copies the workspace's files: tests read some.
fn sources(root: &Path, tree: &Path) -> Result<()> {
    let mut pack = Command::new("tar")
        .current_dir(root)
        .args(["--exclude=./target", "--exclude=./.git", "-cf", "-", "."])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run tar")?;
    let packed = pack.stdout.take().context("tar's output is not piped")?;
    image::run(
        Command::new("tar")
            .arg("-xf")
            .arg("-")
            .arg("-C")
            .arg(tree)
            .stdin(packed),
    )?;
    let status = pack.wait().context("cannot wait for tar")?;
    if !status.success() {
        bail!("tar cannot read {}", root.display());
    }
    fs::create_dir_all(tree.join("target")).context("cannot make a directory")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Strip {
    Yes,
    No,
}

/// Puts a file of the workspace at its place in the tree, as old as it is.
fn add(root: &Path, tree: &Path, file: &Path, how: Strip) -> Result<()> {
    let place = file
        .strip_prefix(root)
        .with_context(|| format!("{} is not in {}", file.display(), root.display()))?;
    let to = tree.join(place);
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    match how {
        Strip::Yes => strip(file, &to),
        Strip::No => image::run(
            Command::new("cp")
                .arg("--preserve=mode,timestamps")
                .arg(file)
                .arg(to),
        ),
    }
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    image::run(
        Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(to)
            .arg(from),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_the_messages_of_cargo() {
        let message = |kind: &str, test: bool, program: &str| {
            serde_json::json!({
                "manifest_path": "/w/crates/kelson/Cargo.toml",
                "target": { "kind": [kind], "name": "system" },
                "profile": { "test": test }, "executable": program,
            })
            .to_string()
        };
        let messages = [
            message("bin", false, "/w/target/debug/kelson"),
            message("bin", true, "/w/target/debug/deps/kelson-1"),
            message("lib", true, "/w/target/debug/deps/kelson-2"),
            message("test", true, "/w/target/debug/deps/system-3"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
            "not a message".to_owned(),
        ];
        let built = built(&messages.join("\n"));
        assert_eq!(built.programs, [Path::new("/w/target/debug/kelson")]);
        let test = Test {
            name: "kelson/system".to_owned(),
            dir: "/w/crates/kelson".into(),
            program: "/w/target/debug/deps/system-3".into(),
        };
        assert_eq!(built.tests, std::slice::from_ref(&test));
        let root = tempfile::tempdir().unwrap();
        assert!(super::tests(root.path()).is_err());
        fs::create_dir(root.path().join("target")).unwrap();
        fs::write(root.path().join(TESTS), listed(&built.tests)).unwrap();
        assert_eq!(super::tests(root.path()).unwrap(), [test]);
    }
}
