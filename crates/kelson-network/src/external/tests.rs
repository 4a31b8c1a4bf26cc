//! Chains of programs: what a plugin is told, and what becomes of its answers.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::error::chain;
use crate::pod::{Netns, PortMapping, Protocol};

/// A directory of shell scripts that play plugins.
struct Plugins(tempfile::TempDir);

impl Plugins {
    fn new(scripts: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, body) in scripts {
            let path = dir.path().join(name);
            let log = dir.path().join("log");
            let keep = format!("{}/{name}.$CNI_COMMAND", dir.path().display());
            let text = format!(
                "#!/bin/sh\ncat > {keep}.stdin; env > {keep}.env\n\
                 echo {name} $CNI_COMMAND >> {}\n{body}\n",
                log.display()
            );
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(dir)
    }

    fn dirs(&self) -> Vec<PathBuf> {
        vec!["/nonexistent".into(), self.0.path().to_owned()]
    }

    fn stdin(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.file(&format!("{name}.stdin"))).unwrap())
            .unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.file("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

const RESULT: &str = r#"echo '{"cniVersion":"1.0.0","interfaces":[{"name":"veth1"},
 {"name":"eth0","mac":"0a:00:00:00:00:01","sandbox":"/run/netns/x"}],
 "ips":[{"address":"10.1.0.5/24","interface":1},{"address":"10.9.9.9/24","interface":0}],
 "dns":{"nameservers":["10.0.0.10"]}}'"#;

fn conf(version: &str, plugins: Value) -> NetworkConf {
    NetworkConf::from_json(json!({ "cniVersion": version, "name": "net", "plugins": plugins }))
        .unwrap()
}

fn pod() -> Pod {
    let mut pod = Pod::new("abc", Netns::Pid(1));
    (pod.name, pod.namespace, pod.uid) = ("web".into(), "default".into(), "u1".into());
    let protocol = Protocol::Tcp;
    pod.ports = vec![
        PortMapping {
            host_port: 80,
            container_port: 8080,
            protocol,
            host_ip: None,
        },
        PortMapping {
            host_port: 0,
            container_port: 9,
            protocol,
            host_ip: None,
        },
    ];
    pod.annotations.insert("a".into(), "b".into());
    pod
}

async fn add(
    plugins: &Plugins,
    conf: &NetworkConf,
    limit: Duration,
) -> Result<(Value, Attachment), Error> {
    let dirs = plugins.dirs();
    let programs = Programs::find(conf, &dirs, limit, "a test")?;
    let pod = pod();
    let environment = environment(&pod.id, Path::new("/run/netns/x"), &args(&pod)?, &dirs);
    programs.add(&environment, &capabilities(&pod)).await
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn each_plugin_is_told_what_the_specification_says() {
    let plugins = Plugins::new(&[("one", RESULT), ("two", RESULT)]);
    let conf = conf(
        "1.0.0",
        json!([
            { "type": "one", "capabilities": { "portMappings": true, "dns": true } },
            { "type": "two", "key": 7, "capabilities": { "io.kubernetes.cri.pod-annotations": true } },
        ]),
    );
    let (result, attachment) = add(&plugins, &conf, LONG).await.unwrap();
    assert_eq!(
        attachment.ips,
        ["10.1.0.5".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(attachment.dns.servers, ["10.0.0.10"]);
    assert!(attachment.interfaces[1].sandbox && !attachment.interfaces[0].sandbox);

    let first = plugins.stdin("one.ADD");
    assert_eq!(
        (&first["name"], &first["cniVersion"]),
        (&json!("net"), &json!("1.0.0"))
    );
    let mapping = json!({ "hostPort": 80, "containerPort": 8080, "protocol": "tcp" });
    assert_eq!(first["runtimeConfig"], json!({ "portMappings": [mapping] }));
    assert!(first.get("prevResult").is_none());
    let second = plugins.stdin("two.ADD");
    assert_eq!(
        (&second["prevResult"], &second["key"]),
        (&result, &json!(7))
    );
    assert_eq!(
        second["runtimeConfig"],
        json!({ "io.kubernetes.cri.pod-annotations": { "a": "b" } })
    );
    let environment = std::fs::read_to_string(plugins.file("one.ADD.env")).unwrap();
    for expected in [
        "CNI_CONTAINERID=abc",
        "CNI_IFNAME=eth0",
        "CNI_NETNS=/run/netns/x",
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;\
         K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u1",
        "CNI_PATH=/nonexistent:",
    ] {
        assert!(
            environment.contains(expected),
            "{expected} in {environment}"
        );
    }
}

#[tokio::test]
async fn removal_is_in_reverse_with_the_result_and_goes_on_after_a_failure() {
    let fail = r#"echo '{"code":11,"msg":"try later","details":"busy"}'; exit 1"#;
    let plugins = Plugins::new(&[("one", ""), ("two", fail)]);
    let dirs = plugins.dirs();
    let previous = json!({ "ips": [] });
    let environment = environment("abc", Path::new(""), "", &dirs);
    for (version, given) in [("0.3.1", false), ("0.4.0", true)] {
        let conf = conf(version, json!([{ "type": "one" }, { "type": "two" }]));
        let programs = Programs::find(&conf, &dirs, LONG, "").unwrap();
        let failures = programs
            .del(&environment, &Map::new(), Some(&previous))
            .await;
        assert!(matches!(failures[..], [Error::Plugin { code: 11, .. }]));
        let text = chain(&failures[0]);
        assert!(
            text.contains("plugin two failed DEL: try later; busy"),
            "{text}"
        );
        assert_eq!(plugins.stdin("one.DEL").get("prevResult").is_some(), given);
    }
    assert_eq!(plugins.log()[..2], ["two DEL", "one DEL"]);
}

#[tokio::test]
async fn every_kind_of_bad_plugin_has_its_error() {
    let plugins = Plugins::new(&[
        ("dies", "echo 'no such bridge' >&2; exit 3"),
        ("hangs", "sleep 30 & sleep 30"),
        ("babbles", "echo hello"),
        ("silent", ""),
        ("homeless", "echo '{\"ips\":[]}'"),
        ("floods", "head -c 5000000 /dev/zero"),
    ]);
    std::fs::write(plugins.file("plain"), "not executable").unwrap();
    let limit = Duration::from_millis(500);
    let cases = [
        ("dies", "plugin dies failed ADD: no such bridge (code 0)"),
        ("hangs", "did not finish ADD within 500ms"),
        ("babbles", "invalid JSON"),
        ("silent", "no result"),
        ("homeless", "without an address"),
        ("floods", "more than 4194304 bytes"),
        (
            "plain",
            "needs the plugin program \"plain\", which is not in /nonexistent or ",
        ),
    ];
    for (name, said) in cases {
        let limit = if name == "hangs" { limit } else { LONG };
        let error = add(&plugins, &conf("1.0.0", json!([{ "type": name }])), limit).await;
        let text = chain(&error.unwrap_err());
        assert!(text.contains(said), "{text}");
    }
}

#[tokio::test]
async fn status_and_gc_are_asked_from_version_1_1_on() {
    let plugins = Plugins::new(&[(
        "one",
        r#"[ $CNI_COMMAND = STATUS ] && { echo '{"code":50,"msg":"no route"}'; exit 1; }; true"#,
    )]);
    let dirs = plugins.dirs();
    let old = conf("1.0.0", json!([{ "type": "one" }]));
    let programs = Programs::find(&old, &dirs, LONG, "").unwrap();
    programs.status().await.unwrap();
    programs.gc(&HashSet::new()).await.unwrap();
    assert!(plugins.log().is_empty());
    let new = conf("1.1.0", json!([{ "type": "one" }]));
    let programs = Programs::find(&new, &dirs, LONG, "").unwrap();
    assert!(matches!(
        programs.status().await,
        Err(Error::Plugin { code: 50, .. })
    ));
    programs
        .gc(&HashSet::from(["abc".to_owned()]))
        .await
        .unwrap();
    let valid = json!([{ "containerID": "abc", "ifname": "eth0" }]);
    assert_eq!(plugins.stdin("one.GC")["cni.dev/valid-attachments"], valid);
}

#[test]
fn names_that_would_break_the_arguments_are_refused() {
    let mut pod = pod();
    pod.name = "x;IgnoreUnknown=0".into();
    assert!(matches!(args(&pod), Err(Error::Value { .. })));
}
