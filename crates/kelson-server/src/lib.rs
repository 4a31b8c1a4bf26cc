//! CRI over gRPC: one file per verb; each checks, translates, delegates.
//!
//! [`Server`] implements both services of the CRI over [`Pods`], [`Images`] and [`Network`]. Every
//! verb runs in one wrapper that gives it its span, log line, deadline, count and status code.
//! Nothing here keeps state of its own, and no protobuf type leaves this crate downwards.

mod deadline;
mod error;

mod image;
mod instrument;
mod rest;
mod runtime;
mod stream;
mod streaming;
mod translate;

use std::path::PathBuf;
use std::sync::Arc;

use kelson_cri::MAX_MESSAGE_SIZE;
use kelson_cri::v1::image_service_server::ImageServiceServer;
use kelson_cri::v1::runtime_service_server::RuntimeServiceServer;

use kelson_image::Images;
use kelson_network::Network;
use kelson_pod::{Container, ContainerId, MAX_EXEC_OUTPUT, Pod, PodId, Pods, Snapshot};
use tonic::service::Routes;

pub use crate::deadline::{Deadline, Deadlines};
use crate::error::VerbError;
pub use crate::instrument::{Instrument, VerbCount};
pub use crate::rest::Rest;
pub use crate::streaming::PodStreams;

/// The longest answer: both outputs of an `ExecSync` at their cap, and what is around them.
const MAX_ANSWER: usize = 2 * MAX_EXEC_OUTPUT + (1 << 20);

/// A container and the pod it is in.
type PodAndContainer = (Arc<Pod>, Arc<Container>);

/// What the verbs work with.
#[derive(Clone)]
pub struct Services {
    /// Pods and containers.
    pub pods: Pods,
    /// Images.
    pub images: Images,
    /// The pod network, for its readiness.
    pub network: Network,
    /// What serves exec, attach and port-forward.
    pub streaming: kelson_streaming::Server,
    /// What the node is set to.
    pub about: About,
}

/// Facts about the node that some verbs tell.
#[derive(Debug, Clone)]
pub struct About {
    /// The daemon's configuration as JSON, for the verbose `Status`.
    pub config: String,
    /// Directory whose file system holds images and writable layers.
    pub root: PathBuf,
}

/// Both services of the CRI. Clones are one server.
#[derive(Clone)]
pub struct Server {
    services: Arc<Services>,
    instrument: Instrument,
}

impl Server {
    /// A server over these services, which tells `rest` of its work.
    pub fn new(services: Services, rest: Rest) -> Self {
        Self {
            services: Arc::new(services),
            instrument: Instrument::new(rest),
        }
    }

    /// The counters of its verbs.
    pub fn instrument(&self) -> &Instrument {
        &self.instrument
    }

    /// Both services, with the message sizes that clients of the CRI use.
    pub fn routes(&self) -> Routes {
        let runtime = RuntimeServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_ANSWER);
        let image = ImageServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_SIZE)
            .max_encoding_message_size(MAX_ANSWER);
        Routes::new(runtime).add_service(image)
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.services.pods.snapshot()
    }

    /// The pod with this id or this unique start of an id, if there is one.
    fn find_pod(&self, id: &str) -> Result<Option<Arc<Pod>>, VerbError> {
        require_id("pod_sandbox_id", id)?;
        let snapshot = self.snapshot();
        let found = snapshot.find_pod(id).map_err(|error| ambiguous(&error))?;
        Ok(found.cloned())
    }

    /// As `find_pod`; that there is none is an error.
    fn pod(&self, id: &str) -> Result<Arc<Pod>, VerbError> {
        self.find_pod(id)?
            .ok_or_else(|| VerbError::not_found("pod sandbox", id))
    }

    /// The container with this id or this unique start of an id, with its pod, if there is one.
    fn find_container(&self, id: &str) -> Result<Option<PodAndContainer>, VerbError> {
        require_id("container_id", id)?;
        let snapshot = self.snapshot();
        let found = snapshot
            .find_container(id)
            .map_err(|error| ambiguous(&error))?;
        Ok(found.map(|(pod, container)| (Arc::clone(pod), Arc::clone(container))))
    }

    /// As `find_container`; that there is none is an error.
    fn container(&self, id: &str) -> Result<PodAndContainer, VerbError> {
        self.find_container(id)?
            .ok_or_else(|| VerbError::not_found("container", id))
    }

    /// The id to give to a verb that takes unknown pods too: `None` when there is no such pod.
    fn pod_id(&self, id: &str) -> Result<Option<PodId>, VerbError> {
        Ok(self.find_pod(id)?.map(|pod| pod.id))
    }

    /// The id to give to a verb that takes unknown containers too.
    fn container_id(&self, id: &str) -> Result<Option<ContainerId>, VerbError> {
        Ok(self.find_container(id)?.map(|(_, container)| container.id))
    }
}

fn require_id(field: &str, id: &str) -> Result<(), VerbError> {
    if id.is_empty() {
        Err(VerbError::invalid(format!("{field} is empty")))
    } else {
        Ok(())
    }
}

fn ambiguous(error: &kelson_pod::Ambiguous) -> VerbError {
    VerbError::new(tonic::Code::InvalidArgument, error)
}
