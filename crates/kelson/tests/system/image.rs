//! A registry in the test's own process, with a busybox image.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use kelson_image::layout::ImageBuilder;
use kelson_image::serve::{self, Registry as Content};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A registry on loopback; ends when dropped.
pub(crate) struct Registry {
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// Programs that the tests use by name.
const APPLETS: &[&str] = &[
    "awk", "cat", "echo", "false", "grep", "head", "hostname", "httpd", "id", "kill", "ls",
    "mkdir", "mount", "nc", "printf", "ps", "pwd", "readlink", "seq", "setsid", "sh", "sleep",
    "tail", "tar", "test", "touch", "tr", "true", "tty", "umount", "unshare", "wc",
];

impl Registry {
    /// Starts it.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let mut content = Content::new();
        content.add_image("busybox", "latest", &busybox()?.build());
        let declaring = busybox()?
            .directory("/data", 0o750)?
            .bytes("/data/file", b"of the image", 0o640)?
            .symlink("/data/link", "/etc/passwd")?
            .volumes(&["/data", "/none/yet", "/covered/below"]);
        content.add_image("declaring", "latest", &declaring.build());
        for (name, volume) in [
            ("hostile-up", "/../etc"),
            ("hostile-empty", "/./"),
            ("hostile-proc", "//proc/"),
        ] {
            let image = busybox()?.volumes(&[volume]).build();
            content.add_image(name, "latest", &image);
        }
        let content_only = ImageBuilder::new()
            .bytes("/docs/page", b"a page", 0o644)?
            .bytes("/docs/deep/leaf", b"a leaf", 0o644)?
            .file("/bin/run", Path::new("/bin/busybox"), 0o755)?
            .symlink("/out", "/../../../../etc")?;
        content.add_image("content", "latest", &content_only.build());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(serve::serve(listener, Arc::new(content)));
        Ok(Self { address, task })
    }

    /// The full reference of an image here.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Debian's static busybox with two users, one of them in a second group.
fn busybox() -> anyhow::Result<ImageBuilder> {
    let mut builder = ImageBuilder::new().file("/bin/busybox", Path::new("/bin/busybox"), 0o755)?;
    for applet in APPLETS {
        builder = builder.symlink(&format!("/bin/{applet}"), "busybox")?;
    }
    for folder in ["/proc", "/sys", "/dev", "/mnt", "/root"] {
        builder = builder.directory(folder, 0o755)?;
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nsailor:x:1000:1000::/home/sailor:/bin/sh\n";
    let groups = "root:x:0:\nsailor:x:1000:\ndeck:x:1001:sailor\n";
    Ok(builder
        .directory("/tmp", 0o1777)?
        .bytes("/etc/passwd", users.as_bytes(), 0o644)?
        .bytes("/etc/group", groups.as_bytes(), 0o644)?
        .env(&["PATH=/bin"])
        .entrypoint(&["/bin/sh"]))
}
