//! Debian's docker-registry on loopback, and skopeo and umoci, which make and push images for it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

use crate::case::Need;
use crate::node::PATIENCE;
use crate::tool;

/// What a case needs to use it.
pub(crate) const NEEDS: [Need; 3] = [
    Need::Program("/usr/bin/docker-registry", "docker-registry"),
    Need::Program("/usr/bin/skopeo", "skopeo"),
    Need::Program("/usr/bin/umoci", "umoci"),
];

/// The user of a registry with a password.
pub(crate) const USER: &str = "skipper";
/// The user's password, which no log may show.
pub(crate) const PASSWORD: &str = "kielholer-7f3a";
/// The same as docker-registry wants it: bcrypt with its least cost.
const HTPASSWD: &str = "skipper:$2b$04$7p7N0Ln1Hbh4p5Ua3LzeweuBz1fk8X92pUWre0jup1h8DAO1xbDoq\n";

/// A running registry; ends when dropped.
pub(crate) struct DebianRegistry {
    dir: PathBuf,
    address: String,
    password: bool,
    _process: Child,
}

impl DebianRegistry {
    /// Starts it with its files in `dir`, which must not exist.
    pub(crate) async fn start(dir: &Path, password: bool) -> anyhow::Result<Self> {
        std::fs::create_dir(dir)?;
        let shown = dir.display();
        std::fs::write(dir.join("htpasswd"), HTPASSWD)?;
        let auth = match password {
            true => format!("auth: {{htpasswd: {{realm: sea, path: {shown}/htpasswd}}}}\n"),
            false => String::new(),
        };
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0', secret: unused}}\n\
             storage: {{filesystem: {{rootdirectory: {shown}/data}}}}\n{auth}"
        );
        std::fs::write(dir.join("config.yml"), text)?;
        let log = File::create(dir.join("log"))?;
        let process = Command::new("/usr/bin/docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let deadline = Instant::now() + PATIENCE;
        let address = loop {
            let text = std::fs::read_to_string(dir.join("log"))?;
            let rest = text.split_once("listening on ").map(|(_, rest)| rest);
            if let Some((address, _)) = rest.and_then(|rest| rest.split_once('"')) {
                break address.to_owned();
            }
            if Instant::now() > deadline {
                bail!("docker-registry does not start: {text}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        Ok(Self {
            dir: dir.to_owned(),
            address,
            password,
            _process: process,
        })
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The full reference of an image here.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// What the registry has logged, among it one line for each answered request.
    pub(crate) fn log(&self) -> anyhow::Result<String> {
        std::fs::read_to_string(self.dir.join("log")).context("cannot read the registry's log")
    }

    /// Copies an image of an OCI layout (`directory:tag`) to `name` with skopeo.
    pub(crate) async fn push(
        &self,
        layout: &str,
        name: &str,
        options: &[&str],
    ) -> anyhow::Result<()> {
        let credentials = format!("--dest-creds={USER}:{PASSWORD}");
        let mut arguments = vec!["copy", "--quiet", "--dest-tls-verify=false"];
        if self.password {
            arguments.push(&credentials);
        }
        arguments.extend(options);
        let (from, to) = (
            format!("oci:{layout}"),
            format!("docker://{}", self.reference(name)),
        );
        arguments.extend([from.as_str(), to.as_str()]);
        skopeo(&self.dir, &arguments).await?;
        Ok(())
    }

    /// The manifest or index of an image as the registry has it.
    pub(crate) async fn manifest(&self, name: &str) -> anyhow::Result<String> {
        let from = format!("docker://{}", self.reference(name));
        skopeo(
            &self.dir,
            &["inspect", "--raw", "--tls-verify=false", &from],
        )
        .await
    }
}

/// Runs skopeo with temporary files in `dir`.
pub(crate) async fn skopeo(dir: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let dir = dir.display().to_string();
    let fixed = ["--insecure-policy", "--tmpdir", &dir];
    tool::output("/usr/bin/skopeo", fixed.iter().chain(arguments)).await
}

/// Runs umoci.
pub(crate) async fn umoci(arguments: &[&str]) -> anyhow::Result<()> {
    tool::output("/usr/bin/umoci", arguments).await?;
    Ok(())
}
