//! The demo's image: this program, the libraries it is linked with, and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use kelson_image::layout::ImageBuilder;
use kelson_image::serve::Registry;

use super::steps::PROGRAM;

/// A registry that has the image as `demo:latest`.
pub(super) fn registry() -> anyhow::Result<Registry> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut builder = ImageBuilder::new().file(PROGRAM, &program, 0o755)?;
    for library in libraries(&program)? {
        let path = library.to_str().context("a library's path is not UTF-8")?;
        builder = builder.file(path, &library, 0o755)?;
    }
    for folder in ["/proc", "/sys", "/dev", "/tmp"] {
        builder = builder.directory(folder, 0o755)?;
    }
    let mut registry = Registry::new();
    registry.add_image("demo", "latest", &builder.entrypoint(&[PROGRAM]).build());
    Ok(registry)
}

/// The files that the program needs to run, with the places where it looks for them.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    // The dynamic linker itself lists what it would load; a static program just has nothing to list.
    let output = Command::new(program)
        .arg("--version")
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!("cannot list the libraries of {}", program.display());
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Takes the paths out of lines such as `libc.so.6 => /lib/libc.so.6 (0x7f…)` and
/// `/lib64/ld-linux-x86-64.so.2 (0x7f…)`.
fn parse(list: &str) -> Vec<PathBuf> {
    list.lines()
        .filter_map(|line| {
            let line = line.split_once("=>").map_or(line, |(_, path)| path).trim();
            let path = line.split_once(" (").map_or(line, |(path, _)| path);
            path.starts_with('/').then(|| PathBuf::from(path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_the_linkers_list() {
        let list = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld.so.2 (0x7f)\n";
        assert_eq!(
            parse(list),
            [
                PathBuf::from("/lib/libc.so.6"),
                PathBuf::from("/lib64/ld.so.2")
            ]
        );
    }

    #[test]
    fn this_test_itself_has_libraries() {
        let own = std::env::current_exe().unwrap();
        assert!(libraries(&own).unwrap().iter().any(|path| path.exists()));
    }
}
