//! `ExecSync`: output of at most 16 MiB a stream; at the timeout the whole process tree is killed.

use std::time::Duration;

use kelson_cri::v1;

use crate::Server;
use crate::error::VerbError;

impl Server {
    pub(super) async fn container_exec_sync(
        &self,
        request: v1::ExecSyncRequest,
    ) -> Result<v1::ExecSyncResponse, VerbError> {
        let (_, container) = self.container(&request.container_id)?;
        // By the CRI's comment 0 means for ever; a negative number is taken the same way.
        let timeout = u64::try_from(request.timeout)
            .ok()
            .filter(|seconds| *seconds > 0);
        let timeout = timeout.map(Duration::from_secs);
        let output = self
            .services
            .pods
            .exec_sync(&container.id, request.cmd, timeout)
            .await?;
        Ok(v1::ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.exit_code,
        })
    }
}
