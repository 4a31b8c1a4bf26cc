//! The images that the suite pulls, made from Debian packages.
//!
//! The suite knows them by the names of public registries; here they hold a busybox, a few other
//! programs of Debian with their libraries, and shell scripts. None is a copy of the real image.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use kelson_image::layout::{BuiltImage, ImageBuilder};
use kelson_image::serve::Registry;
use kelson_snapshot::Digest;

/// Where the suite's own images are.
const STAGING: &str = "k8s-staging-cri-tools";
/// Where the images are that it shares with Kubernetes' end-to-end tests.
const SHARED: &str = "e2e-test-images";

/// Programs that the suite runs and busybox lacks.
const PROGRAMS: &[(&str, &str)] = &[
    ("/usr/bin/pgrep", "/bin/pgrep"),
    ("/usr/bin/ipcs", "/bin/ipcs"),
];

/// A program that tells whom it runs as; busybox's own gives privileges up first.
const IDENTITY: &str = "/usr/bin/id";

const USERS: &str = "root:x:0:0:root:/root:/bin/sh\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\n\
    default-user:x:1000:1000::/home/default-user:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUPS: &str = "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\n\
    users:x:100:\n\
    group-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n";

/// A web server that looks like nginx: by the name of its process, by its pid file, and by the
/// words `master process` in its command line.
const NGINX: &str = "#!/bin/sh\n\
    trap 'kill $!; exit 0' TERM QUIT INT\n\
    echo $$ > /var/run/nginx.pid\n\
    httpd -f -p $PORT -h /var/www &\n\
    wait\n";
/// A web server that says its name in its log.
const HTTPD: &str = "#!/bin/sh\n\
    trap 'kill $!; exit 0' TERM QUIT INT\n\
    echo httpd: serving port 80\n\
    httpd -f -p 80 -h /var/www &\n\
    wait\n";

/// All images, and the digest of the one that the suite pulls by digest. The shell of `busybox` has
/// to execute `ls` as a program: the suite looks whether a masked `/bin/ls` can be run.
pub(crate) fn registry(busybox: &Path) -> Result<(Registry, Digest)> {
    let base = base(busybox)?;
    let mut content = Registry::new();
    let mut add = |folder: &str, name: &str, tag: &str, image: &BuiltImage| {
        content.add_image(
            format!("{folder}/{name}").trim_start_matches('/'),
            tag,
            image,
        );
    };
    let shell = base.clone().cmd(&["sh"]).build();
    add(SHARED, "busybox", "1.29-2", &shell);
    add(SHARED, "nginx", "1.14-2", &nginx(&base, 80)?);
    let hostnet = format!("hostnet-nginx-{}", go_architecture());
    add(STAGING, &hostnet, "latest", &nginx(&base, 12003)?);
    let httpd = base
        .clone()
        .bytes("/bin/httpd-foreground", HTTPD.as_bytes(), 0o755)?;
    add(
        SHARED,
        "httpd",
        "2.4.39-4",
        &httpd.entrypoint(&["/bin/httpd-foreground"]).build(),
    );
    add(SHARED, "nonewprivs", "1.3", &no_new_privileges(&base)?);

    let pause = Path::new("/bin/busybox");
    let pause = ImageBuilder::new().file("/bin/sleep", pause, 0o755)?;
    let pause = pause.entrypoint(&["/bin/sleep", "infinity"]);
    for version in ["3.1", "3.9", "3.10"] {
        let image = pause.clone().env(&[&format!("PAUSE={version}")]).build();
        add("", "pause", version, &image);
    }

    for (name, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:users"),
        ("username-group", "www-data:100"),
    ] {
        let image = base.clone().user(user).cmd(&["sh"]).build();
        add(
            STAGING,
            &format!("test-image-user-{name}"),
            "latest",
            &image,
        );
    }
    let group = base.clone().user("1000").cmd(&["sh"]).build();
    add(STAGING, "test-image-predefined-group", "latest", &group);

    let different = |name: &str| -> Result<BuiltImage> {
        let image = base.clone().bytes("/name", name.as_bytes(), 0o644)?;
        Ok(image.cmd(&["sleep", "infinity"]).build())
    };
    for name in [
        "test-image-1",
        "test-image-2",
        "test-image-3",
        "test-image-latest",
    ] {
        add(STAGING, name, "latest", &different(name)?);
    }
    for tag in ["test", "all"] {
        add(STAGING, "test-image-tag", tag, &different(tag)?);
    }
    let same = different("tags")?;
    for tag in ["1", "2", "3"] {
        add(STAGING, "test-image-tags", tag, &same);
    }
    let by_digest = different("digest")?;
    add(STAGING, "test-image-digest", "latest", &by_digest);
    Ok((content, Digest::of(&by_digest.manifest)))
}

/// Busybox, the programs that the suite needs beside it, users and groups.
pub(crate) fn base(busybox: &Path) -> Result<ImageBuilder> {
    let listed = Command::new(busybox)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {}", busybox.display()))?;
    let mut image = ImageBuilder::new().file("/bin/busybox", busybox, 0o755)?;
    let mut libraries = libraries_of(busybox)?;
    for applet in String::from_utf8_lossy(&listed.stdout).lines() {
        if !["busybox", "ls"].contains(&applet) {
            image = image.symlink(&format!("/bin/{applet}"), "busybox")?;
        }
    }
    // A mask of a link would cover all of busybox.
    image = image.file("/bin/ls", busybox, 0o755)?;
    for (program, path) in PROGRAMS {
        image = image.file(path, Path::new(program), 0o755)?;
        libraries.extend(libraries_of(Path::new(program))?);
    }
    libraries.extend(libraries_of(Path::new(IDENTITY))?);
    for library in libraries {
        image = image.file(&library.display().to_string(), &library, 0o755)?;
    }
    for folder in [
        "/proc",
        "/sys",
        "/dev",
        "/mnt",
        "/root",
        "/var/run",
        "/home/default-user",
    ] {
        image = image.directory(folder, 0o755)?;
    }
    Ok(image
        .directory("/tmp", 0o1777)?
        .bytes("/etc/passwd", USERS.as_bytes(), 0o644)?
        .bytes("/etc/group", GROUPS.as_bytes(), 0o644)?
        .bytes("/var/www/index.html", b"a page\n", 0o644)?
        .env(&["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]))
}

fn nginx(base: &ImageBuilder, port: u16) -> Result<BuiltImage> {
    let script = NGINX.replace("$PORT", &port.to_string());
    let image = base
        .clone()
        .bytes("/usr/sbin/nginx", script.as_bytes(), 0o755)?;
    Ok(image
        .entrypoint(&["/usr/sbin/nginx", "master process"])
        .build())
}

/// A program with the set-user-ID bit tells whom it runs as.
fn no_new_privileges(base: &ImageBuilder) -> Result<BuiltImage> {
    let image = base
        .clone()
        .file("/usr/bin/raised-id", Path::new(IDENTITY), 0o4755)?;
    let script = "echo Effective uid: $(/usr/bin/raised-id -u)";
    Ok(image.cmd(&["sh", "-c", script]).build())
}

/// The libraries that a program of this machine is linked with, and its loader.
fn libraries_of(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("cannot run ldd; install libc-bin")?;
    if !output.status.success() {
        bail!(
            "{} is not there; install procps, util-linux and coreutils",
            program.display()
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words
        .map(PathBuf::from)
        .filter(|path| path.is_file())
        .collect())
}

/// What Go calls this architecture; the suite builds a name with it.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
