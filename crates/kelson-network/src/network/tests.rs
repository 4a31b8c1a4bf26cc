//! Whole attachments, each test in a network namespace of its own that plays the machine.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::*;
use crate::config::Fallback;
use crate::error::chain;
use crate::netlink::{Socket, route};
use crate::netns;
use crate::pod::PortMapping;
use crate::pod::Protocol;

/// A pod's network namespace, held by a process that does nothing.
struct PodNs(Child);

impl PodNs {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["--net", "sleep", "1000"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", child.id());
        while std::fs::read_link(&theirs).is_ok_and(|ns| ns == own) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self(child)
    }

    fn netns(&self) -> Netns {
        Netns::Pid(self.0.id())
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = netns::open(Path::new("/proc"), &self.netns()).unwrap();
        netns::inside(std::os::fd::AsFd::as_fd(&namespace), || Ok(work())).unwrap()
    }

    /// Answers TCP connections with the address of the caller, once per call.
    fn serve(&self, port: u16) {
        let any: IpAddr = "::".parse().unwrap();
        let listener = self.inside(|| TcpListener::bind((any, port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip().to_canonical().to_string();
                let _ = stream.write_all(peer.as_bytes());
            }
        });
    }
}

impl Drop for PodNs {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the server at this address says; it says who is asking.
fn ask(address: impl Into<SocketAddr>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Runs a test in a fresh network namespace, on a runtime whose threads are all in it.
fn on_own_machine<F: Future<Output = ()>>(test: impl FnOnce(Machine) -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let thread = std::thread::spawn(move || {
        #[expect(
            deprecated,
            reason = "only the network namespace is unshared, which is safe"
        )]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
        let socket = Socket::route().unwrap();
        route::set_up(&socket, 1, false).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(test(Machine::new()));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The directories of a machine.
struct Machine {
    temp: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("net.d")).unwrap();
        Self { temp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn config(&self) -> NetworkConfig {
        NetworkConfig {
            conf_dir: self.path("net.d"),
            bin_dirs: vec!["/usr/lib/cni".into()],
            cache_dir: self.path("cache"),
            ipam_dir: self.path("ipam"),
            netns_dir: self.path("netns"),
            nft_table: "kelson_test".into(),
            plugin_timeout: Duration::from_secs(20),
            ..NetworkConfig::default()
        }
    }

    fn network(&self) -> Network {
        Network::open(self.config()).unwrap()
    }

    fn conflist(&self, name: &str, plugins: Value) {
        let list = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": plugins });
        std::fs::write(self.path("net.d").join(name), list.to_string()).unwrap();
    }

    fn dual_stack(&self, extra: Value) {
        self.conflist(
            "10-net.conflist",
            json!([bridge(&dual_stack_ipam(), extra), portmap()]),
        );
    }

    fn addresses_in_use(&self) -> Vec<String> {
        files(&self.path("ipam/net"), |name| {
            name.parse::<IpAddr>().is_ok()
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for name in files(&self.path("netns"), |_| true) {
            let _ = netns::unpin(&self.path("netns").join(name));
        }
    }
}

fn files(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| wanted(name)).collect();
    names.sort();
    names
}

fn dual_stack_ipam() -> Value {
    json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.99.0.0/24" }], [{ "subnet": "fd99::/64" }]],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
    })
}

fn bridge(ipam: &Value, extra: Value) -> Value {
    let mut plugin =
        json!({ "type": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": true });
    plugin["ipam"] = ipam.clone();
    for (key, value) in extra.as_object().unwrap() {
        plugin[key] = value.clone();
    }
    plugin
}

fn portmap() -> Value {
    json!({ "type": "portmap", "capabilities": { "portMappings": true } })
}

fn tcp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping {
        host_port,
        container_port,
        protocol: Protocol::Tcp,
        host_ip: None,
    }
}

fn links() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    text.lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect()
}

fn nft_rules() -> Vec<String> {
    let socket = Socket::netfilter().unwrap();
    let rules = crate::netlink::nft::rules(&socket, "kelson_test").unwrap();
    rules.into_iter().map(|rule| rule.comment).collect()
}

fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn pods_reach_each_other_their_gateway_and_published_ports() {
    on_own_machine(|machine| async move {
        // A pod reaches itself by its host port through its own bridge port.
        machine.dual_stack(json!({ "hairpinMode": true }));
        let network = machine.network();
        network.status().await.unwrap();
        let (one, two) = (PodNs::new(), PodNs::new());
        let mut pod = Pod::new("aaaa", one.netns());
        pod.ports = vec![tcp(8080, 80)];
        let a = network.add(pod).await.unwrap();
        let b = network.add(Pod::new("bbbb", two.netns())).await.unwrap();
        assert_eq!(a.ips[0].to_string(), "10.99.0.2");
        assert_eq!(b.ips[1].to_string(), "fd99::3");
        assert_eq!(a.interfaces[2].mac, "0a:58:0a:63:00:02");

        one.serve(80);
        for (to, from) in [(a.ips[0], b.ips[0]), (a.ips[1], b.ips[1])] {
            assert_eq!(two.inside(|| ask((to, 80))).unwrap(), from.to_string());
        }
        // From the machine, to the pod, to its loopback and to its own address.
        assert_eq!(ask((a.ips[0], 80)).unwrap(), "10.99.0.1");
        assert_eq!(ask((Ipv4Addr::LOCALHOST, 8080)).unwrap(), "10.99.0.1");
        let gateways: [IpAddr; 2] = ["10.99.0.1".parse().unwrap(), "fd99::1".parse().unwrap()];
        for gateway in gateways {
            assert!(ask((gateway, 8080)).is_ok());
            // From another pod, and from the pod itself.
            assert_eq!(
                two.inside(|| ask((gateway, 8080))).unwrap(),
                gateway.to_string()
            );
            assert_eq!(
                one.inside(|| ask((gateway, 8080))).unwrap(),
                gateway.to_string()
            );
        }
        assert!(
            one.inside(|| ask((Ipv4Addr::LOCALHOST, 80))).is_ok(),
            "lo is up"
        );

        network.del("aaaa", None).await.unwrap();
        network.settle().await;
        assert!(!links().contains(&"vethaaaa".to_owned()));
        assert_eq!(machine.addresses_in_use(), ["10.99.0.3", "fd99::3"]);
        assert!(!nft_rules().contains(&"pod aaaa".to_owned()));
        assert!(ask((Ipv4Addr::LOCALHOST, 8080)).is_err());
        network.del("bbbb", None).await.unwrap();
        network.del("bbbb", None).await.unwrap();
        network.settle().await;
        assert_eq!(links(), ["lo", "br0"]);
        assert!(nft_rules().is_empty() && nft(&["list", "tables"]).is_empty());
        assert!(machine.addresses_in_use().is_empty());
        assert!(network.records().is_empty());
    });
}

#[test]
fn what_leaves_the_subnet_is_masqueraded() {
    on_own_machine(|machine| async move {
        machine.dual_stack(json!({}));
        let network = machine.network();
        // Another machine behind a second bridge, which knows no way back to the pods.
        let outside = PodNs::new();
        let socket = Socket::route().unwrap();
        route::create_bridge(&socket, "wan", [2, 0, 0, 0, 0, 9], None).unwrap();
        let index = route::link(&socket, "wan").unwrap().unwrap().index;
        let namespace = netns::open(Path::new("/proc"), &outside.netns()).unwrap();
        let pair = route::Veth {
            host_name: "uplink",
            peer_name: "eth0",
            peer_netns: std::os::fd::AsFd::as_fd(&namespace),
            peer_mac: [2, 0, 0, 0, 0, 7],
            bridge: index,
            mtu: None,
        };
        route::create_veth(&socket, &pair).unwrap();
        let put = |socket: &Socket, index, address: &str| {
            let mut batch = crate::netlink::Batch::new();
            route::push_address(&mut batch, index, address.parse().unwrap());
            socket.run(&batch, |_| {}).unwrap();
        };
        put(&socket, index, "192.0.2.1/24");
        put(&socket, index, "2001:db8::1/64");
        outside.inside(|| {
            let socket = Socket::route().unwrap();
            let index = route::link(&socket, "eth0").unwrap().unwrap().index;
            route::set_up(&socket, index, false).unwrap();
            put(&socket, index, "192.0.2.7/24");
            put(&socket, index, "2001:db8::7/64");
        });
        outside.serve(80);

        let pod = PodNs::new();
        network.add(Pod::new("aaaa", pod.netns())).await.unwrap();
        let ask_outside = |ip: &str| pod.inside(|| ask((ip.parse::<IpAddr>().unwrap(), 80)));
        assert_eq!(ask_outside("192.0.2.7").unwrap(), "192.0.2.1");
        assert_eq!(ask_outside("2001:db8::7").unwrap(), "2001:db8::1");

        // Somebody flushes the rules: the next pod brings them back.
        nft(&["flush", "ruleset"]);
        let other = PodNs::new();
        network.add(Pod::new("bbbb", other.netns())).await.unwrap();
        assert_eq!(ask_outside("192.0.2.7").unwrap(), "192.0.2.1");
        let listing = nft(&["list", "ruleset"]);
        assert!(listing.contains("ip saddr 10.99.0.0/24"), "{listing}");
        assert!(listing.contains("masquerade comment \"network net masquerade 10.99.0.0/24\""));
    });
}

#[test]
fn udp_ports_and_host_addresses() {
    on_own_machine(|machine| async move {
        machine.dual_stack(json!({ "hairpinMode": true, "mtu": 1400 }));
        let network = machine.network();
        let namespace = PodNs::new();
        let mut pod = Pod::new("aaaa", namespace.netns());
        let only_loopback = Some("127.0.0.1".parse().unwrap());
        let dns = PortMapping {
            protocol: Protocol::Udp,
            ..tcp(5300, 53)
        };
        pod.ports = vec![
            dns,
            PortMapping {
                host_ip: only_loopback,
                ..tcp(8080, 80)
            },
            tcp(0, 99),
        ];
        network.add(pod).await.unwrap();
        namespace.serve(80);
        let server = namespace.inside(|| UdpSocket::bind("0.0.0.0:53").unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((len, from)) = server.recv_from(&mut buffer) {
                let _ = server.send_to(&buffer[..len], from);
            }
        });
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        client.send_to(b"ping", "127.0.0.1:5300").unwrap();
        let mut buffer = [0; 64];
        assert_eq!(client.recv_from(&mut buffer).unwrap().0, 4);

        assert!(ask((Ipv4Addr::LOCALHOST, 8080)).is_ok());
        assert!(ask((Ipv4Addr::new(10, 99, 0, 1), 8080)).is_err());
        let mtu = namespace.inside(|| {
            route::link(&Socket::route().unwrap(), "eth0")
                .unwrap()
                .unwrap()
                .mtu
        });
        assert_eq!(mtu, 1400);

        // The port is taken; it is free again for a pod that comes after.
        let other = PodNs::new();
        let mut rival = Pod::new("bbbb", other.netns());
        rival.ports = vec![PortMapping {
            protocol: Protocol::Udp,
            ..tcp(5300, 53)
        }];
        let taken = network.add(rival.clone()).await.unwrap_err();
        assert!(
            matches!(taken, Error::PortInUse { port: 5300, .. }),
            "{taken}"
        );
        network.del("aaaa", None).await.unwrap();
        network.add(rival).await.unwrap();
        let echo = other.inside(|| UdpSocket::bind("0.0.0.0:53").unwrap());
        echo.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        client.send_to(b"again", "127.0.0.1:5300").unwrap();
        assert_eq!(
            echo.recv_from(&mut buffer).unwrap().0,
            5,
            "the tracked flow was forgotten"
        );
    });
}

#[test]
fn addresses_hardware_and_resolver_as_asked_for() {
    on_own_machine(|machine| async move {
        let resolv_conf =
            "# local\nnameserver 10.0.0.53\nsearch a.example b.example\noptions ndots:2\n";
        std::fs::write(machine.path("resolv.conf"), resolv_conf).unwrap();
        let ipam = json!({
            "type": "host-local", "subnet": "10.99.0.0/24",
            "resolvConf": machine.path("resolv.conf"),
            "routes": [{ "dst": "192.0.2.0/24", "gw": "10.99.0.9", "mtu": 1300, "priority": 7 }],
        });
        let extra = json!({ "portIsolation": true, "capabilities": { "ips": true, "mac": true } });
        machine.conflist("10-net.conflist", json!([bridge(&ipam, extra)]));
        let network = machine.network();
        let (one, two) = (PodNs::new(), PodNs::new());
        let mut pod = Pod::new("aaaa", one.netns());
        pod.ips = vec!["10.99.0.42/24".parse().unwrap()];
        pod.mac = Some("02:11:22:33:44:55".into());
        let attachment = network.add(pod.clone()).await.unwrap();
        assert_eq!(attachment.ips, ["10.99.0.42".parse::<IpAddr>().unwrap()]);
        assert_eq!(attachment.dns.servers, ["10.0.0.53"]);
        assert_eq!(attachment.dns.searches, ["a.example", "b.example"]);
        assert_eq!(attachment.dns.options, ["ndots:2"]);
        let (mac, routes) = one.inside(|| {
            let link = route::link(&Socket::route().unwrap(), "eth0")
                .unwrap()
                .unwrap();
            (
                link.mac,
                std::fs::read_to_string("/proc/thread-self/net/route").unwrap(),
            )
        });
        assert_eq!(mac, "02:11:22:33:44:55");
        assert!(
            routes.contains("eth0\t000200C0\t0900630A\t0003\t0\t0\t7\t"),
            "{routes}"
        );

        // Isolated ports reach the gateway, not each other.
        let other = network.add(Pod::new("bbbb", two.netns())).await.unwrap();
        two.serve(80);
        assert!(ask((other.ips[0], 80)).is_ok());
        assert!(one.inside(|| ask((other.ips[0], 80))).is_err());

        pod.id = "cccc".into();
        pod.mac = Some("nonsense".into());
        let error = network.add(pod.clone()).await.unwrap_err();
        assert!(matches!(error, Error::AddressUnavailable { .. }), "{error}");
        pod.ips.clear();
        let error = network.add(pod).await.unwrap_err();
        assert!(
            error.to_string().contains("hardware address \"nonsense\""),
            "{error}"
        );
        assert_eq!(machine.addresses_in_use().len(), 2);
    });
}

#[test]
fn a_full_subnet_is_a_typed_error_and_leaves_nothing() {
    on_own_machine(|machine| async move {
        let ipam = json!({ "type": "host-local", "subnet": "10.99.0.0/30" });
        machine.conflist("10-net.conflist", json!([bridge(&ipam, json!({}))]));
        let network = machine.network();
        let (one, two) = (PodNs::new(), PodNs::new());
        network.add(Pod::new("aaaa", one.netns())).await.unwrap();
        let full = network
            .add(Pod::new("bbbb", two.netns()))
            .await
            .unwrap_err();
        assert!(matches!(full, Error::Exhausted { .. }), "{full}");
        assert_eq!(network.records().len(), 1);
        network.del("aaaa", None).await.unwrap();
        network.add(Pod::new("bbbb", two.netns())).await.unwrap();
        // The namespace dies before the pod is detached.
        drop(two);
        network.del("bbbb", None).await.unwrap();
        assert!(machine.addresses_in_use().is_empty());
        network.settle().await;
        assert_eq!(links(), ["lo", "br0"]);
    });
}

#[test]
fn a_failed_add_is_undone() {
    on_own_machine(|machine| async move {
        machine.dual_stack(json!({ "ipMasq": true }));
        let network = machine.network();
        let gone = Netns::Path(machine.path("no-such-netns"));
        let error = network.add(Pod::new("aaaa", gone)).await.unwrap_err();
        assert!(matches!(error, Error::Netns { .. }), "{error}");
        // eth0 exists already: refused after the address was given.
        let pod = PodNs::new();
        network.add(Pod::new("aaaa", pod.netns())).await.unwrap();
        let error = network
            .add(Pod::new("bbbb", pod.netns()))
            .await
            .unwrap_err();
        assert!(chain(&error).contains("vethbbbb"), "{error}");
        assert_eq!(machine.addresses_in_use().len(), 2);
        assert_eq!(network.records().len(), 1);
        // A bridge that is something else.
        machine.dual_stack(json!({ "bridge": "lo" }));
        let error = network
            .add(Pod::new("cccc", PodNs::new().netns()))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::NotABridge { .. }), "{error}");
        assert!(network.add(Pod::new("../x", pod.netns())).await.is_err());
    });
}

#[test]
fn a_bridge_with_another_address_is_refused_or_changed_by_force() {
    on_own_machine(|machine| async move {
        machine.dual_stack(json!({}));
        machine
            .network()
            .add(Pod::new("aaaa", PodNs::new().netns()))
            .await
            .unwrap();
        let moved = json!({ "type": "host-local", "subnet": "10.77.0.0/24" });
        machine.conflist("10-net.conflist", json!([bridge(&moved, json!({}))]));
        let pod = PodNs::new();
        let error = machine
            .network()
            .add(Pod::new("bbbb", pod.netns()))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::BridgeAddress { .. }), "{error}");
        let force = json!({ "forceAddress": true, "isDefaultGateway": true });
        machine.conflist("10-net.conflist", json!([bridge(&moved, force)]));
        machine
            .network()
            .add(Pod::new("bbbb", pod.netns()))
            .await
            .unwrap();
        let socket = Socket::route().unwrap();
        let index = route::link(&socket, "br0").unwrap().unwrap().index;
        let mut now = route::addresses(&socket, index).unwrap();
        now.sort();
        assert_eq!(
            now,
            ["10.77.0.1/24", "fd99::1/64"].map(|a| a.parse::<IpNet>().unwrap())
        );
        let routes = pod.inside(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap());
        assert!(routes.contains("eth0\t00000000\t01004D0A"), "{routes}");
    });
}

#[test]
fn a_crash_after_the_intent_is_cleaned_by_the_next_start() {
    on_own_machine(|machine| async move {
        machine.dual_stack(json!({}));
        let pods = [PodNs::new(), PodNs::new(), PodNs::new()];
        let network = machine.network();
        for (id, pod) in ["aaaa", "bbbb", "cccc"].iter().zip(&pods) {
            let mut pod = Pod::new(*id, pod.netns());
            pod.ports = vec![tcp(8000 + u16::from(id.as_bytes()[0]), 80)];
            network.add(pod).await.unwrap();
        }
        drop(network);
        // As if killed between the intent and the result; and a record that a power cut emptied.
        let path = machine.path("cache/aaaa.json");
        let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        record["attachment"] = Value::Null;
        std::fs::write(&path, record.to_string()).unwrap();
        std::fs::write(machine.path("cache/bbbb.json"), "").unwrap();
        // The configuration is gone, too.
        std::fs::remove_dir_all(machine.path("net.d")).unwrap();

        let network = machine.network();
        assert!(network.status().await.is_err());
        let finished: Vec<bool> = network
            .records()
            .iter()
            .map(|record| record.attachment.is_some())
            .collect();
        assert_eq!(finished, [false, false, true]);
        let valid = HashSet::from(["cccc".to_owned()]);
        assert_eq!(network.gc(&valid).await, ["aaaa", "bbbb"]);
        assert_eq!(machine.addresses_in_use(), ["10.99.0.4", "fd99::4"]);
        network.settle().await;
        assert_eq!(links(), ["lo", "br0", "vethcccc"]);
        let pods: HashSet<String> = nft_rules()
            .into_iter()
            .filter(|c| c.starts_with("pod"))
            .collect();
        assert_eq!(pods, HashSet::from(["pod cccc".to_owned()]));
        assert_eq!(network.gc(&HashSet::new()).await, ["cccc"]);
        network.settle().await;
        assert_eq!(links(), ["lo", "br0"]);
    });
}

#[test]
fn the_built_in_network_comes_and_goes() {
    on_own_machine(|machine| async move {
        let fallback = Fallback {
            bridge: "kelson-t0".into(),
            ..Fallback::default()
        };
        let config = NetworkConfig {
            fallback: Some(fallback),
            ..machine.config()
        };
        let network = Network::open(config.clone()).unwrap();
        network.status().await.unwrap();
        let pod = PodNs::new();
        let attachment = network.add(Pod::new("aaaa", pod.netns())).await.unwrap();
        assert_eq!(attachment.network, "kelson");
        assert!(!network.destroy_fallback().await.unwrap());
        network.del("aaaa", None).await.unwrap();
        // An address whose record was lost.
        std::fs::write(machine.path("ipam/kelson/10.88.7.7"), "lost\r\neth0").unwrap();
        network.gc(&HashSet::new()).await;
        assert!(!machine.path("ipam/kelson/10.88.7.7").exists());
        assert!(network.destroy_fallback().await.unwrap());
        network.settle().await;
        assert_eq!(links(), ["lo"]);
        assert!(files(&machine.path("ipam"), |_| true).is_empty());
        // A configuration that appears is preferred.
        machine.dual_stack(json!({}));
        let attachment = network.add(Pod::new("bbbb", pod.netns())).await.unwrap();
        assert_eq!(attachment.network, "net");

        let bad = Fallback {
            bridge: "much-too-long-a-name".into(),
            ..Fallback::default()
        };
        assert!(
            Network::open(NetworkConfig {
                fallback: Some(bad),
                ..config
            })
            .is_err()
        );
    });
}

#[test]
fn many_pods_at_once_and_fast() {
    on_own_machine(|machine| async move {
        machine.dual_stack(json!({}));
        let network = machine.network();
        let pods: Vec<PodNs> = (0..20).map(|_| PodNs::new()).collect();
        let mut adding = tokio::task::JoinSet::new();
        for (index, pod) in pods.iter().enumerate() {
            let (network, netns) = (network.clone(), pod.netns());
            adding.spawn(async move {
                let started = Instant::now();
                let added = network.add(Pod::new(format!("p{index}"), netns)).await;
                (added.unwrap().ips[0], started.elapsed())
            });
        }
        let all = adding.join_all().await;
        assert_eq!(
            all.iter().map(|(ip, _)| ip).collect::<HashSet<_>>().len(),
            20
        );
        let mut removing = tokio::task::JoinSet::new();
        for index in 0..pods.len() {
            let network = network.clone();
            removing.spawn(async move { network.del(&format!("p{index}"), None).await.unwrap() });
        }
        removing.join_all().await;
        network.settle().await;
        assert_eq!(links(), ["lo", "br0"]);
        assert!(nft_rules().is_empty() && machine.addresses_in_use().is_empty());
    });
}

/// The standard plugins as programs, where they are installed.
const STANDARD_PLUGINS: &str = "/usr/lib/cni";

fn standard_plugins_missing() -> bool {
    let names = ["bridge", "host-local", "loopback", "portmap"];
    let missing = names
        .iter()
        .any(|name| !Path::new(STANDARD_PLUGINS).join(name).exists());
    if missing {
        eprintln!("skipped: needs containernetworking-plugins in {STANDARD_PLUGINS}");
    }
    missing
}

#[test]
fn the_standard_programs_do_the_same() {
    if standard_plugins_missing() {
        return;
    }
    on_own_machine(|machine| async move {
        let ipam = json!({
            "type": "host-local", "subnet": "10.99.0.0/24", "dataDir": machine.path("ipam"),
            "routes": [{ "dst": "0.0.0.0/0" }],
        });
        machine.conflist(
            "10-net.conflist",
            json!([{ "type": "loopback" }, bridge(&ipam, json!({ "hairpinMode": true })), portmap()]),
        );
        let programs = NetworkConfig {
            native: false,
            ..machine.config()
        };
        let programs = Network::open(programs).unwrap();
        programs.status().await.unwrap();
        let (one, two) = (PodNs::new(), PodNs::new());
        let mut pod = Pod::new("aaaa", one.netns());
        pod.ports = vec![tcp(8080, 80)];
        let a = programs.add(pod).await.unwrap();
        assert_eq!(a.ips, ["10.99.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(files(&machine.path("netns"), |_| true), ["kelson-aaaa"]);
        assert!(
            one.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"))
                .is_ok()
        );
        one.serve(80);
        assert!(ask((Ipv4Addr::LOCALHOST, 8080)).is_ok());
        assert!(
            one.inside(|| ask((Ipv4Addr::LOCALHOST, 80))).is_ok(),
            "lo is up"
        );

        // A second daemon takes over, now native: it uses what the programs made.
        let native = machine.network();
        let b = native.add(Pod::new("bbbb", two.netns())).await.unwrap();
        assert_eq!(b.ips, ["10.99.0.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(two.inside(|| ask((a.ips[0], 80))).unwrap(), "10.99.0.3");

        // A program that fails is named, and everything is undone.
        let three = PodNs::new();
        machine.conflist(
            "10-net.conflist",
            json!([bridge(&ipam, json!({ "bridge": "lo" }))]),
        );
        let error = programs
            .add(Pod::new("cccc", three.netns()))
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("plugin bridge failed ADD"),
            "{error}"
        );
        assert_eq!(files(&machine.path("netns"), |_| true), ["kelson-aaaa"]);
        assert_eq!(machine.addresses_in_use(), ["10.99.0.2", "10.99.0.3"]);

        // The record knows that programs attached the pod, whoever detaches it.
        drop(one);
        native.del("bbbb", None).await.unwrap();
        native.settle().await;
        machine.network().del("aaaa", None).await.unwrap();
        assert!(machine.addresses_in_use().is_empty());
        assert!(files(&machine.path("netns"), |_| true).is_empty());
        assert_eq!(links(), ["lo", "br0"]);
    });
}

#[test]
fn host_local_and_the_native_one_see_each_others_addresses() {
    if standard_plugins_missing() {
        return;
    }
    on_own_machine(|machine| async move {
        let ipam = json!({
            "type": "host-local", "dataDir": machine.path("ipam"),
            "ranges": [[{ "subnet": "10.99.0.0/29" }], [{ "subnet": "fd99::/64" }]],
        });
        machine.conflist("10-net.conflist", json!([bridge(&ipam, json!({}))]));
        let host_local = |verb: &str, id: &str| -> Result<Vec<String>, String> {
            let conf = json!({ "cniVersion": "1.0.0", "name": "net", "ipam": ipam });
            let mut child = Command::new(Path::new(STANDARD_PLUGINS).join("host-local"))
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", id)
                .env("CNI_NETNS", "/x")
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", STANDARD_PLUGINS)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(conf.to_string().as_bytes())
                .unwrap();
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            if !output.status.success() {
                return Err(text);
            }
            let result: Value = serde_json::from_str(&text).unwrap_or_default();
            let ips = result["ips"].as_array().cloned().unwrap_or_default();
            Ok(ips
                .iter()
                .map(|ip| ip["address"].as_str().unwrap().to_owned())
                .collect())
        };
        let network = machine.network();
        let pods: Vec<PodNs> = (0..4).map(|_| PodNs::new()).collect();
        let add = |id: &'static str, index: usize| {
            let (network, netns) = (network.clone(), pods[index].netns());
            async move {
                network
                    .add(Pod::new(id, netns))
                    .await
                    .map(|a| a.ips[0].to_string())
            }
        };
        assert_eq!(
            host_local("ADD", "x1").unwrap(),
            ["10.99.0.2/29", "fd99::2/64"]
        );
        assert_eq!(add("n1", 0).await.unwrap(), "10.99.0.3");
        assert_eq!(
            host_local("ADD", "x2").unwrap(),
            ["10.99.0.4/29", "fd99::4/64"]
        );
        assert_eq!(add("n2", 1).await.unwrap(), "10.99.0.5");
        assert_eq!(add("n3", 2).await.unwrap(), "10.99.0.6");
        assert!(matches!(add("n4", 3).await, Err(Error::Exhausted { .. })));
        assert!(host_local("ADD", "x3").is_err());
        // Each can free what the other gave out, and give it out again.
        host_local("DEL", "n1").unwrap();
        assert_eq!(add("n4", 3).await.unwrap(), "10.99.0.3");
        network.del("n2", None).await.unwrap();
        assert_eq!(host_local("ADD", "x3").unwrap()[0], "10.99.0.5/29");
        for id in ["x1", "x2", "x3"] {
            host_local("DEL", id).unwrap();
        }
        for id in ["n1", "n3", "n4"] {
            network.del(id, None).await.unwrap();
        }
        assert!(machine.addresses_in_use().is_empty());
    });
}

#[test]
fn a_chain_with_a_program_that_is_missing_is_not_ready() {
    on_own_machine(|machine| async move {
        machine.dual_stack(json!({ "vlan": 7 }));
        let config = NetworkConfig {
            bin_dirs: vec![machine.path("bin")],
            ..machine.config()
        };
        let network = Network::open(config).unwrap();
        let not_ready = network.status().await.unwrap_err();
        assert!(not_ready.message.contains("\"bridge\""), "{not_ready}");
        assert!(not_ready.message.contains("`vlan`"), "{not_ready}");
        let error = network
            .add(Pod::new("aaaa", PodNs::new().netns()))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::PluginMissing { .. }), "{error}");
        assert!(network.records().is_empty());
    });
}
