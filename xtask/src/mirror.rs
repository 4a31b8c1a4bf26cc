//! A registry on loopback that is the mirror of every registry.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kelson_image::serve::{self, Registry};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// The file that makes a registry the mirror of all; gone when dropped.
pub(crate) struct Mirror {
    file: PathBuf,
    text: String,
}

impl Mirror {
    /// Serves `content` as long as `runtime` lives, and says so in `certs_dir`.
    pub(crate) fn serve(runtime: &Runtime, content: Registry, certs_dir: &Path) -> Result<Self> {
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .context("cannot listen on loopback")?;
        let address = listener
            .local_addr()
            .context("the registry has no address")?;
        runtime.spawn(serve::serve(listener, Arc::new(content)));
        let file = certs_dir.join("_default/hosts.toml");
        if file.exists() {
            bail!("{} exists; this command would replace it", file.display());
        }
        let text = format!("[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
        let mirror = Self { file, text };
        mirror.show()?;
        Ok(mirror)
    }

    /// Makes it known (again).
    pub(crate) fn show(&self) -> Result<()> {
        let folder = self.file.parent().context("the file is in no directory")?;
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        std::fs::write(&self.file, &self.text)
            .with_context(|| format!("cannot write {}", self.file.display()))
    }

    /// Makes it unknown: from now on no image can be pulled.
    pub(crate) fn hide(&self) -> Result<()> {
        std::fs::remove_file(&self.file)
            .with_context(|| format!("cannot remove {}", self.file.display()))
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // With the directory of the run it is gone already.
        let _ = std::fs::remove_file(&self.file);
        let _ = self.file.parent().map(std::fs::remove_dir);
    }
}
