//! Finds the pod or container that a user means: by id, by the beginning of an id, or by name.

use anyhow::{Result, bail};
use kelson_client::Client;
use kelson_cri::v1::{
    Container, ContainerState, ListContainersRequest, ListPodSandboxRequest, PodSandbox,
    PodSandboxState,
};

use crate::ui::text::short_id;

/// A pod or a container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Target {
    /// A pod.
    Pod(PodSandbox),
    /// A container.
    Container(Container),
}

impl Target {
    fn id(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.id,
            Self::Container(container) => &container.id,
        }
    }

    fn is_alive(&self) -> bool {
        match self {
            Self::Pod(pod) => pod.state() == PodSandboxState::SandboxReady,
            Self::Container(container) => container.state() == ContainerState::ContainerRunning,
        }
    }

    fn created_at(&self) -> i64 {
        match self {
            Self::Pod(pod) => pod.created_at,
            Self::Container(container) => container.created_at,
        }
    }
}

/// All pods and containers of a runtime, taken at one time.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    /// The pods.
    pub(crate) pods: Vec<PodSandbox>,
    /// The containers, running or not.
    pub(crate) containers: Vec<Container>,
}

/// The name of a pod; empty if it has none.
pub(crate) fn pod_name(pod: &PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

/// The namespace of a pod; empty if it has none.
pub(crate) fn pod_namespace(pod: &PodSandbox) -> &str {
    pod.metadata
        .as_ref()
        .map_or("", |metadata| &metadata.namespace)
}

/// The name of a container; empty if it has none.
pub(crate) fn container_name(container: &Container) -> &str {
    container
        .metadata
        .as_ref()
        .map_or("", |metadata| &metadata.name)
}

impl Inventory {
    /// Asks the runtime.
    pub(crate) async fn take(client: &Client) -> Result<Self> {
        let (pods, containers) = tokio::try_join!(
            client.list_pod_sandbox(ListPodSandboxRequest::default()),
            client.list_containers(ListContainersRequest::default()),
        )?;
        Ok(Self {
            pods: pods.items,
            containers: containers.containers,
        })
    }

    /// The pod of a container, unless it has gone in between.
    pub(crate) fn pod_of(&self, container: &Container) -> Option<&PodSandbox> {
        self.pods
            .iter()
            .find(|pod| pod.id == container.pod_sandbox_id)
    }

    /// The containers of a pod.
    pub(crate) fn containers_of<'a>(&'a self, pod: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers
            .iter()
            .filter(move |container| container.pod_sandbox_id == pod)
    }

    /// A pod or container. Names are `pod`, `namespace/pod`, `container` or `pod/container`; the name of
    /// a pod wins over that of a container, and an exact id or name over the beginning of an id.
    pub(crate) fn find(&self, wanted: &str) -> Result<Target> {
        let pods = || self.pods.iter().cloned().map(Target::Pod);
        let containers = || self.containers.iter().cloned().map(Target::Container);
        let named = |target: &Target| match target {
            Target::Pod(pod) => self.pod_is_named(pod, wanted),
            Target::Container(container) => self.container_is_named(container, wanted),
        };
        let candidates = [
            pods()
                .chain(containers())
                .filter(|target| target.id() == wanted)
                .collect(),
            pods().filter(named).collect(),
            containers().filter(named).collect(),
            pods()
                .chain(containers())
                .filter(|target| begins(target.id(), wanted))
                .collect(),
        ];
        for found in candidates {
            if let Some(target) = self.choose(wanted, found)? {
                return Ok(target);
            }
        }
        bail!("there is no pod or container {wanted:?}: see `kelson pods` and `kelson ps -a`")
    }

    /// A container, or the only container of the pod that is meant.
    pub(crate) fn container(&self, wanted: &str) -> Result<Container> {
        let exact = |container: &&Container| {
            container.id == wanted || self.container_is_named(container, wanted)
        };
        let found: Vec<Target> = self
            .containers
            .iter()
            .filter(exact)
            .cloned()
            .map(Target::Container)
            .collect();
        let target = match self.choose(wanted, found)? {
            Some(target) => target,
            None => self.find(wanted)?,
        };
        match target {
            Target::Container(container) => Ok(container),
            Target::Pod(pod) => {
                let own: Vec<&Container> = self.containers_of(&pod.id).collect();
                match own.as_slice() {
                    [container] => Ok((*container).clone()),
                    [] => bail!("the pod {wanted:?} has no container"),
                    many => {
                        let names: Vec<&str> = many.iter().map(|c| container_name(c)).collect();
                        bail!("the pod {wanted:?} has several containers: name one of {names:?}")
                    }
                }
            }
        }
    }

    fn pod_is_named(&self, pod: &PodSandbox, wanted: &str) -> bool {
        match wanted.split_once('/') {
            None => pod_name(pod) == wanted,
            Some((namespace, name)) => pod_namespace(pod) == namespace && pod_name(pod) == name,
        }
    }

    fn container_is_named(&self, container: &Container, wanted: &str) -> bool {
        match wanted.rsplit_once('/') {
            None => container_name(container) == wanted,
            Some((pod, name)) => {
                container_name(container) == name
                    && self
                        .pod_of(container)
                        .is_some_and(|p| self.pod_is_named(p, pod))
            }
        }
    }

    /// One of several: the only one, the only one that is alive, or the newest if all are attempts at the
    /// same thing.
    fn choose(&self, wanted: &str, found: Vec<Target>) -> Result<Option<Target>> {
        if found.len() < 2 {
            return Ok(found.into_iter().next());
        }
        let mut alive = found.iter().filter(|target| target.is_alive());
        if let (Some(only), None) = (alive.next(), alive.next()) {
            return Ok(Some(only.clone()));
        }
        let first = self.full_name(&found[0]);
        if found.iter().all(|target| self.full_name(target) == first) {
            return Ok(found.into_iter().max_by_key(Target::created_at));
        }
        let names: Vec<String> = found
            .iter()
            .map(|target| format!("{} {}", short_id(target.id()), self.full_name(target)))
            .collect();
        bail!(
            "{wanted:?} fits more than one, use an id: {}",
            names.join(", ")
        )
    }

    fn full_name(&self, target: &Target) -> String {
        let pod = |pod: &PodSandbox| format!("{}/{}", pod_namespace(pod), pod_name(pod));
        match target {
            Target::Pod(p) => pod(p),
            Target::Container(container) => {
                let pod = self.pod_of(container).map_or_else(String::new, pod);
                format!("{pod}/{}", container_name(container))
            }
        }
    }
}

fn begins(id: &str, wanted: &str) -> bool {
    !wanted.is_empty() && id.starts_with(wanted)
}

#[cfg(test)]
mod tests {
    use kelson_cri::v1::{ContainerMetadata, PodSandboxMetadata};

    use super::*;

    fn pod(id: &str, namespace: &str, name: &str, ready: bool, created_at: i64) -> PodSandbox {
        PodSandbox {
            id: id.into(),
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                namespace: namespace.into(),
                ..Default::default()
            }),
            state: i32::from(!ready),
            created_at,
            ..Default::default()
        }
    }

    fn container(id: &str, pod: &str, name: &str, created_at: i64) -> Container {
        Container {
            id: id.into(),
            pod_sandbox_id: pod.into(),
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            state: ContainerState::ContainerExited.into(),
            created_at,
            ..Default::default()
        }
    }

    fn inventory() -> Inventory {
        Inventory {
            pods: vec![
                pod("aa11", "default", "web", true, 1),
                pod("aa22", "other", "web", false, 2),
                pod("bb33", "default", "db", true, 3),
            ],
            containers: vec![
                container("cc11", "aa11", "server", 1),
                container("cc12", "aa11", "server", 2),
                container("cc21", "aa11", "sidecar", 3),
                container("dd33", "bb33", "db", 4),
                container("ee22", "aa22", "sidecar", 4),
            ],
        }
    }

    fn id(target: &Target) -> &str {
        target.id()
    }

    #[test]
    fn ids_beginnings_and_names_are_understood() {
        let all = inventory();
        assert_eq!(id(&all.find("bb33").unwrap()), "bb33");
        assert_eq!(id(&all.find("b").unwrap()), "bb33");
        assert_eq!(id(&all.find("dd").unwrap()), "dd33");
        assert_eq!(id(&all.find("other/web").unwrap()), "aa22");
        assert_eq!(id(&all.find("default/web/sidecar").unwrap()), "cc21");
        // The one that is ready wins.
        assert_eq!(id(&all.find("web").unwrap()), "aa11");
        // A pod's name wins over a container's.
        assert_eq!(id(&all.find("db").unwrap()), "bb33");
        // The newest attempt at the same container.
        assert_eq!(id(&all.find("server").unwrap()), "cc12");
    }

    #[test]
    fn what_fits_several_or_nothing_is_refused() {
        let all = inventory();
        let error = all.find("sidecar").unwrap_err().to_string();
        assert!(
            error.contains("cc21 default/web/sidecar") && error.contains("ee22"),
            "{error}"
        );
        assert!(
            all.find("cc")
                .unwrap_err()
                .to_string()
                .contains("use an id")
        );
        assert!(
            all.find("nothing")
                .unwrap_err()
                .to_string()
                .contains("kelson pods")
        );
        assert!(all.find("").is_err());
    }

    #[test]
    fn a_pod_stands_for_its_only_container() {
        let all = inventory();
        assert_eq!(all.container("db").unwrap().id, "dd33");
        assert_eq!(all.container("bb33").unwrap().id, "dd33");
        assert!(
            all.container("web")
                .unwrap_err()
                .to_string()
                .contains("several containers")
        );
    }
}
