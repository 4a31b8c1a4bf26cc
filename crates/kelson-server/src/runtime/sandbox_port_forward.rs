//! `PortForward`: checks the request and answers an address of the streaming server.

use kelson_cri::v1;
use tonic::Code;

use crate::Server;
use crate::error::VerbError;

/// Ports of one request, at most: each is two channels of a WebSocket client.
const MAX_PORTS: usize = 64;

impl Server {
    pub(super) fn sandbox_port_forward(
        &self,
        request: &v1::PortForwardRequest,
    ) -> Result<v1::PortForwardResponse, VerbError> {
        let ports = ports(&request.port)?;
        let pod = self.pod(&request.pod_sandbox_id)?;
        if !pod.is_ready() {
            let text = format!("pod sandbox {} is not ready", pod.id);
            return Err(VerbError::with(Code::FailedPrecondition, text));
        }
        let url = self
            .services
            .streaming
            .port_forward(pod.id.to_string(), ports)?;
        Ok(v1::PortForwardResponse { url })
    }
}

/// The ports, or all that are none.
fn ports(numbers: &[i32]) -> Result<Vec<u16>, VerbError> {
    if numbers.len() > MAX_PORTS {
        return Err(VerbError::invalid(format!(
            "port: {} ports are more than {MAX_PORTS}",
            numbers.len()
        )));
    }
    let port = |number: &i32| u16::try_from(*number).ok().filter(|port| *port > 0);
    let wrong: Vec<String> = numbers
        .iter()
        .filter(|number| port(number).is_none())
        .map(i32::to_string)
        .collect();
    if wrong.is_empty() {
        return Ok(numbers.iter().filter_map(port).collect());
    }
    Err(VerbError::invalid(format!(
        "port: {} must be from 1 to 65535",
        wrong.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_out_of_range_is_told() {
        assert_eq!(ports(&[80, 65535]).unwrap(), [80, 65535]);
        assert_eq!(
            ports(&[0, 80, -1, 65536]).unwrap_err().to_string(),
            "port: 0, -1, 65536 must be from 1 to 65535"
        );
        assert!(ports(&[80; MAX_PORTS + 1]).is_err());
    }
}
