//! A chain of plugin programs, by the CNI specification: ADD in order, DEL in reverse, STATUS and
//! GC from version 1.1.0 on.
//!
//! Keeps nothing: results and arguments come from and go to the attachment's record.

mod exec;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

pub(crate) use self::exec::Environment;
use self::exec::{Call, find};
use crate::conf::{NetworkConf, Plugin, Version};
use crate::error::Error;
use crate::native::INTERFACE;
use crate::pod::{Attachment, Dns, Interface, Pod};

/// A network whose plugins are programs.
pub(crate) struct Programs<'a> {
    conf: &'a NetworkConf,
    paths: Vec<PathBuf>,
    limit: Duration,
    bin_dirs: &'a [PathBuf],
}

impl<'a> Programs<'a> {
    /// Finds every program of the chain. `why` tells why programs are used.
    pub(crate) fn find(
        conf: &'a NetworkConf,
        bin_dirs: &'a [PathBuf],
        limit: Duration,
        why: &str,
    ) -> Result<Self, Error> {
        let path_of = |plugin: &Plugin| {
            find(bin_dirs, &plugin.kind).ok_or_else(|| Error::PluginMissing {
                network: conf.name.clone(),
                plugin: plugin.kind.clone(),
                dirs: bin_dirs.to_vec(),
                why: why.to_owned(),
            })
        };
        let paths = conf.plugins.iter().map(path_of).collect::<Result<_, _>>()?;
        Ok(Self {
            conf,
            paths,
            limit,
            bin_dirs,
        })
    }

    /// Runs ADD of every plugin in order and returns the last one's result.
    pub(crate) async fn add(
        &self,
        environment: &Environment,
        capabilities: &Map<String, Value>,
    ) -> Result<(Value, Attachment), Error> {
        let mut result = None;
        for index in 0..self.paths.len() {
            let input = self.input(index, capabilities, result.as_ref());
            let call = self.call(index, "ADD");
            let answer = call.run(environment, &input).await?;
            if !answer.is_object() {
                return Err(call.bad_output("no result".into()));
            }
            result = Some(answer);
        }
        let result = result.unwrap_or_default();
        let last = self.call(self.paths.len() - 1, "ADD");
        let attachment = attachment(&self.conf.name, &result).map_err(|p| last.bad_output(p))?;
        Ok((result, attachment))
    }

    /// Runs DEL of every plugin in reverse; goes on after a failure and returns all of them.
    pub(crate) async fn del(
        &self,
        environment: &Environment,
        capabilities: &Map<String, Value>,
        result: Option<&Value>,
    ) -> Vec<Error> {
        let previous = result.filter(|_| self.conf.version >= Version::V0_4_0);
        let mut failures = Vec::new();
        for index in (0..self.paths.len()).rev() {
            let input = self.input(index, capabilities, previous);
            failures.extend(self.call(index, "DEL").run(environment, &input).await.err());
        }
        failures
    }

    /// Asks every plugin whether it is ready, where the version has that verb.
    pub(crate) async fn status(&self) -> Result<(), Error> {
        if self.conf.version >= Version::V1_1_0 {
            for index in 0..self.paths.len() {
                let input = self.input(index, &Map::new(), None);
                self.call(index, "STATUS")
                    .run(&self.no_pod(), &input)
                    .await?;
            }
        }
        Ok(())
    }

    /// Tells every plugin which pods exist, where the version has that verb.
    pub(crate) async fn gc(&self, valid: &HashSet<String>) -> Result<(), Error> {
        if self.conf.version < Version::V1_1_0 || self.conf.disable_gc {
            return Ok(());
        }
        let pair = |id: &String| json!({ "containerID": id, "ifname": INTERFACE });
        let attachments: Vec<Value> = valid.iter().map(pair).collect();
        for index in 0..self.paths.len() {
            let mut input = self.input(index, &Map::new(), None);
            input["cni.dev/valid-attachments"] = attachments.clone().into();
            self.call(index, "GC").run(&self.no_pod(), &input).await?;
        }
        Ok(())
    }

    /// The configuration that a plugin gets on its standard input.
    fn input(
        &self,
        index: usize,
        capabilities: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Value {
        let plugin = &self.conf.plugins[index];
        let mut input = plugin.object.clone();
        input.insert("name".into(), self.conf.name.clone().into());
        input.insert("cniVersion".into(), self.conf.version.to_string().into());
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        let wanted = capabilities.iter().filter(|(name, _)| plugin.wants(name));
        let wanted: Map<_, _> = wanted
            .map(|(name, args)| (name.clone(), args.clone()))
            .collect();
        if !wanted.is_empty() {
            input.insert("runtimeConfig".into(), wanted.into());
        }
        input.into()
    }

    fn call(&self, index: usize, verb: &'static str) -> Call<'_> {
        let plugin = &self.conf.plugins[index].kind;
        Call {
            program: &self.paths[index],
            plugin,
            verb,
            limit: self.limit,
        }
    }

    fn no_pod(&self) -> Environment {
        Environment {
            container_id: String::new(),
            netns: PathBuf::new(),
            interface: "",
            args: String::new(),
            bin_dirs: self.bin_dirs.to_vec(),
        }
    }
}

/// The environment of a call for a pod.
pub(crate) fn environment(
    pod_id: &str,
    netns: &Path,
    args: &str,
    bin_dirs: &[PathBuf],
) -> Environment {
    Environment {
        container_id: pod_id.to_owned(),
        netns: netns.to_owned(),
        interface: INTERFACE,
        args: args.to_owned(),
        bin_dirs: bin_dirs.to_vec(),
    }
}

/// `CNI_ARGS` as Kubernetes runtimes give them.
pub(crate) fn args(pod: &Pod) -> Result<String, Error> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", &pod.id),
        ("K8S_POD_UID", &pod.uid),
    ];
    if let Some((_, bad)) = pairs.iter().find(|(_, value)| value.contains([';', '='])) {
        return Err(Error::Value {
            what: "pod name, namespace or uid",
            value: (*bad).to_owned(),
        });
    }
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    Ok(pairs.join(";"))
}

/// The arguments of every capability for which the pod has any.
pub(crate) fn capabilities(pod: &Pod) -> Map<String, Value> {
    let ports: Vec<_> = pod
        .ports
        .iter()
        .filter(|port| port.host_port != 0)
        .collect();
    let mut all = Map::new();
    let mut put = |name: &str, value: Value| all.insert(name.to_owned(), value);
    if !ports.is_empty() {
        put("portMappings", json!(ports));
    }
    if let Some(bandwidth) = &pod.bandwidth {
        put("bandwidth", json!(bandwidth));
    }
    if let Some(dns) = &pod.dns {
        put("dns", json!(dns));
    }
    if !pod.ips.is_empty() {
        put("ips", json!(pod.ips));
    }
    if let Some(mac) = &pod.mac {
        put("mac", json!(mac));
    }
    if !pod.annotations.is_empty() {
        put("io.kubernetes.cri.pod-annotations", json!(pod.annotations));
    }
    all
}

#[derive(Deserialize)]
struct CniResult {
    #[serde(default)]
    ips: Vec<CniIp>,
    #[serde(default)]
    interfaces: Vec<CniInterface>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Deserialize)]
struct CniIp {
    address: ipnet::IpNet,
    interface: Option<usize>,
}

#[derive(Deserialize)]
struct CniInterface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

/// Reads a result; the error says what is wrong with it.
fn attachment(network: &str, result: &Value) -> Result<Attachment, String> {
    let result = CniResult::deserialize(result).map_err(|e| format!("a bad result: {e}"))?;
    let in_pod = |ip: &&CniIp| match ip.interface.and_then(|index| result.interfaces.get(index)) {
        Some(interface) => !interface.sandbox.is_empty(),
        None => true,
    };
    let ips: Vec<_> = result
        .ips
        .iter()
        .filter(in_pod)
        .map(|ip| ip.address.addr())
        .collect();
    if ips.is_empty() {
        return Err("a result without an address for the pod".into());
    }
    let interfaces = result.interfaces.into_iter().map(|interface| Interface {
        name: interface.name,
        mac: interface.mac,
        sandbox: !interface.sandbox.is_empty(),
    });
    let interfaces = interfaces.collect();
    Ok(Attachment {
        network: network.to_owned(),
        ips,
        interfaces,
        dns: result.dns,
    })
}

#[cfg(test)]
mod tests;
