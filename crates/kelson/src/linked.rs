//! Programs of this machine for an image: the file itself and the libraries it is linked with.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use kelson_image::layout::ImageBuilder;

/// Adds `program` at `path`, and its libraries where it looks for them. `harmless` is an argument with which
/// the program ends at once and well.
pub(crate) fn add(
    builder: ImageBuilder,
    path: &str,
    program: &Path,
    harmless: &str,
) -> anyhow::Result<ImageBuilder> {
    let mut builder = builder.file(path, program, 0o755)?;
    for library in libraries(program, harmless)? {
        let path = library.to_str().context("a library's path is not UTF-8")?;
        builder = builder.file(path, &library, 0o755)?;
    }
    Ok(builder)
}

/// The files that the program needs to run, with the places where it looks for them.
pub(crate) fn libraries(program: &Path, harmless: &str) -> anyhow::Result<Vec<PathBuf>> {
    // The dynamic linker itself lists what it would load; a static program just has nothing to list.
    let output = Command::new(program)
        .arg(harmless)
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
    fn libraries_of_programs_of_this_machine() {
        let found = libraries(Path::new("/bin/ls"), "--version").unwrap();
        assert!(!found.is_empty() && found.iter().all(|path| path.exists()));
        // This test itself is static, as the program is, unless somebody built it otherwise.
        let own = std::env::current_exe().unwrap();
        let found = libraries(&own, "--list").unwrap();
        assert_eq!(found.is_empty(), cfg!(target_feature = "crt-static"));
    }
}
