//! `UpdateContainerResources`: fields that are zero or empty stay as they are.

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;
use crate::translate::resources;

impl Server {
    pub(super) async fn container_update(
        &self,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Result<v1::UpdateContainerResourcesResponse, VerbError> {
        let (_, container) = self.container(&request.container_id)?;
        if request.windows.is_some() {
            return Err(VerbError::invalid("windows is set, but this is Linux"));
        }
        // They are for extensions of a runtime, of which Kelson has none.
        if let Some(key) = request.annotations.keys().next() {
            return Err(VerbError::invalid(format!(
                "annotations[{key}]: an update of resources knows no annotations"
            )));
        }
        let linux = request
            .linux
            .ok_or_else(|| VerbError::invalid("linux is missing"))?;
        let change = resources(linux);
        let pods = &self.services.pods;
        pods.update_container(&container.id, change).await?;
        Ok(v1::UpdateContainerResourcesResponse {})
    }
}
