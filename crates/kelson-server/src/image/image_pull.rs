//! `PullImage`: answers with the image's id, which is what containers are made from.

use kelson_cri::v1;
use kelson_image::{AuthConfig, Credentials, PullError, PullRequest, Reference};
use tonic::Code;

use super::name;
use crate::Server;
use crate::error::VerbError;

impl Server {
    /// `sandbox_config` says which pod the pull is for; nothing depends on it.
    pub(super) async fn image_pull(
        &self,
        request: v1::PullImageRequest,
    ) -> Result<v1::PullImageResponse, VerbError> {
        let reference: Reference = name(request.image)?.parse().map_err(PullError::from)?;
        let auth = request.auth.map(|auth| AuthConfig {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            server_address: auth.server_address,
            identity_token: auth.identity_token,
            registry_token: auth.registry_token,
        });
        let credentials = match auth {
            Some(auth) => Credentials::from_auth_config(&auth).map_err(PullError::from)?,
            None => Credentials::anonymous(),
        };
        let request = PullRequest {
            reference,
            credentials,
        };
        let id = self.services.images.pull(request, None).await?;
        Ok(v1::PullImageResponse {
            image_ref: id.to_string(),
        })
    }
}

impl From<PullError> for VerbError {
    fn from(error: PullError) -> Self {
        let code = match &error {
            PullError::InvalidReference(_) | PullError::InvalidCredentials(_) => {
                Code::InvalidArgument
            }
            PullError::NotFound { .. } => Code::NotFound,
            PullError::Unauthorized { .. } => Code::PermissionDenied,
            PullError::RegistryUnavailable { .. } | PullError::Stopped => Code::Unavailable,
            PullError::DigestMismatch { .. } | PullError::SizeMismatch { .. } => Code::DataLoss,
            PullError::TooLarge { .. } | PullError::DiskFull(_) => Code::ResourceExhausted,
            PullError::NoMatchingPlatform { .. }
            | PullError::Unsupported { .. }
            | PullError::Malformed { .. }
            | PullError::Hosts { .. } => Code::FailedPrecondition,
            PullError::Unpack { .. } => Code::FailedPrecondition,
            PullError::Snapshot { .. } | PullError::Record(_) => Code::Internal,
        };
        let told = Self::new(code, &error);
        match error {
            // The kubelet tells a registry that is away from an image that is not there by this word.
            PullError::RegistryUnavailable { .. } => {
                Self::with(code, format!("RegistryUnavailable: {told}"))
            }
            _ => told,
        }
    }
}
