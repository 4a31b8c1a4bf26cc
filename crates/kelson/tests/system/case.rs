//! A system test, what it needs, and how it becomes a trial.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;

use libtest_mimic::{Failed, Trial};

use crate::node::Node;

/// What a case returns: any error fails it.
pub(crate) type Outcome = anyhow::Result<()>;

type Body = Box<dyn FnOnce() -> Outcome + Send>;

/// A system test.
pub(crate) struct Case {
    name: &'static str,
    needs: Vec<Need>,
    body: Body,
}

/// Something that a machine may lack.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    /// A program at this path, from this Debian package.
    Program(&'static str, &'static str),
    /// systemd as the machine's process 1, and cgroup v2 alone.
    Systemd,
    /// SELinux with a policy.
    Selinux,
    /// crictl, whose path is in the environment.
    Crictl,
    /// CRIU, whose path is in the environment.
    Criu,
}

impl Need {
    /// Why it is not there; `None` when it is.
    fn missing(self) -> Option<String> {
        match self {
            Self::Program(path, package) => (!Path::new(path).exists())
                .then(|| format!("needs {path} (Debian package {package})")),
            Self::Systemd => (!Path::new("/run/systemd/system").exists()
                || !Path::new("/sys/fs/cgroup/cgroup.controllers").exists())
            .then(|| "needs systemd with cgroup v2 (as in cargo xtask machine)".to_owned()),
            Self::Selinux => (!Path::new("/sys/fs/selinux/policy").exists())
                .then(|| "needs SELinux with a policy for containers".to_owned()),
            Self::Crictl => std::env::var_os("KELSON_TEST_CRICTL")
                .is_none()
                .then(|| "needs crictl (run by cargo xtask test, built with Go)".to_owned()),
            Self::Criu => std::env::var_os("KELSON_TEST_CRIU")
                .is_none()
                .then(|| "needs a CRIU that works here (found by cargo xtask test)".to_owned()),
        }
    }
}

/// A case that works on a node of its own.
pub(crate) fn on_node<F>(name: &'static str, body: F) -> Case
where
    F: for<'a> FnOnce(&'a mut Node) -> Pin<Box<dyn Future<Output = Outcome> + 'a>> + Send + 'static,
{
    let body: Body = Box::new(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut node = Node::start().await?;
            let outcome = body(&mut node).await;
            let log = node.log();
            match outcome.and(node.end().await) {
                Ok(()) => Ok(()),
                Err(error) => Err(error.context(format!("the daemon's log ends with:\n{log}\n"))),
            }
        })
    });
    Case {
        name,
        needs: vec![Need::Program("/bin/busybox", "busybox-static")],
        body,
    }
}

impl Case {
    /// What it is called.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The case needs something more.
    pub(crate) fn needs(mut self, need: Need) -> Self {
        self.needs.push(need);
        self
    }

    /// The trial of this case, told as skipped when the machine lacks something.
    #[expect(clippy::print_stdout, reason = "the test command counts these lines")]
    pub(crate) fn trial(self) -> Trial {
        let root = rustix::process::geteuid().is_root();
        let reason = match root {
            false => Some("needs root".to_owned()),
            true => self.needs.iter().find_map(|need| need.missing()),
        };
        if let Some(reason) = &reason {
            println!("not run: {reason} ({})", self.name);
        }
        let body = self.body;
        Trial::test(self.name, move || {
            body().map_err(|error| Failed::from(format!("{error:?}")))
        })
        .with_ignored_flag(reason.is_some())
    }
}
