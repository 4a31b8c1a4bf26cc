//! `UpdateRuntimeConfig`: the address ranges of the node's pods, which make a network configuration of the
//! template if there is one and no network yet. Kubelets call it in any case.

use kelson_cri::v1;
use kelson_network::TemplateError;
use tonic::Code;

use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) async fn runtime_update(
        &self,
        request: v1::UpdateRuntimeConfigRequest,
    ) -> Result<v1::UpdateRuntimeConfigResponse, VerbError> {
        let network = request.runtime_config.and_then(|one| one.network_config);
        let pod_cidr = network.unwrap_or_default().pod_cidr;
        let network = self.services.network.clone();
        tokio::task::spawn_blocking(move || network.configure(&pod_cidr))
            .await
            .map_err(|error| VerbError::new(Code::Internal, &error))??;
        Ok(v1::UpdateRuntimeConfigResponse {})
    }
}

impl From<TemplateError> for VerbError {
    fn from(error: TemplateError) -> Self {
        match error {
            TemplateError::Ranges { .. } => {
                Self::invalid(format!("runtime_config.network_config.pod_cidr: {error}"))
            }
            TemplateError::Placeholder { .. } | TemplateError::Conflist { .. } => {
                Self::new(Code::FailedPrecondition, &error)
            }
            _ => Self::new(Code::Internal, &error),
        }
    }
}
