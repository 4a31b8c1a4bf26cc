//! `Version`, `Status` and `RuntimeConfig`.

use std::collections::BTreeMap;

use kelson_cri::v1;
use kelson_pod::CgroupDriver;

use crate::Server;
use crate::error::VerbError;

/// The name that clients see.
const NAME: &str = "kelson";
/// The version of the kubelet's runtime API that answers mean.
const API: &str = "0.1.0";

impl Server {
    pub(super) fn about() -> v1::VersionResponse {
        v1::VersionResponse {
            version: API.to_owned(),
            runtime_name: NAME.to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }
    }

    pub(super) async fn conditions(
        &self,
        request: &v1::StatusRequest,
    ) -> Result<v1::StatusResponse, VerbError> {
        let network = match self.services.network.status().await {
            Ok(()) => condition("NetworkReady", Ok(())),
            Err(not_ready) => condition("NetworkReady", Err((not_ready.reason, not_ready.message))),
        };
        let user_namespaces = self.services.pods.user_namespaces();
        let features = v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces,
        };
        // The entry without a name is the default handler's, as clients expect it.
        let handlers = ["", "native"].map(|name| v1::RuntimeHandler {
            name: name.to_owned(),
            features: Some(features),
        });
        Ok(v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![condition("RuntimeReady", Ok(())), network],
            }),
            info: if request.verbose {
                self.details()
            } else {
                BTreeMap::new()
            },
            runtime_handlers: handlers.into(),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: user_namespaces,
            }),
        })
    }

    fn details(&self) -> BTreeMap<String, String> {
        let counts = self.instrument.counts();
        let verbs: serde_json::Map<_, _> = counts
            .iter()
            .map(|(name, count)| {
                let entry = serde_json::json!({
                    "calls": count.calls,
                    "errors": count.errors,
                    "seconds": count.time.as_secs_f64(),
                });
                ((*name).to_owned(), entry)
            })
            .collect();
        BTreeMap::from([
            ("config".to_owned(), self.services.about.config.clone()),
            (
                "verbs".to_owned(),
                serde_json::Value::from(verbs).to_string(),
            ),
        ])
    }

    pub(super) fn driver(&self) -> v1::RuntimeConfigResponse {
        let driver = match self.services.pods.cgroup_driver() {
            CgroupDriver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
            CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
        };
        v1::RuntimeConfigResponse {
            linux: Some(v1::LinuxRuntimeConfiguration {
                cgroup_driver: driver.into(),
            }),
        }
    }
}

fn condition(kind: &str, ready: Result<(), (&str, String)>) -> v1::RuntimeCondition {
    let (status, reason, message) = match ready {
        Ok(()) => (true, String::new(), String::new()),
        Err((reason, message)) => (false, reason.to_owned(), message),
    };
    v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason,
        message,
    }
}
