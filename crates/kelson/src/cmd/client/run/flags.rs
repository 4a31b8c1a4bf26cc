//! The flags of `kelson run` and their small languages: ports, volumes, sizes, users.

use kelson_cri::v1::{Mount, PortMapping, Protocol};

use crate::cmd::client::stream::Flags;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Name of the pod [default: from the image]
    #[arg(long, value_parser = name)]
    pub(super) name: Option<String>,
    /// Set a variable of the environment; without a value, pass on that of this process
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<String>,
    /// Mount a path of the host
    #[arg(short, long = "volume", value_name = "HOST:CONTAINER[:ro]", value_parser = volume)]
    pub(super) volumes: Vec<Mount>,
    /// Publish a port on the host
    #[arg(short, long = "publish", value_name = "[IP:]HOST:CONTAINER[/PROTOCOL]", value_parser = port)]
    pub(super) ports: Vec<PortMapping>,
    /// The network of the pod
    #[arg(long, value_enum, default_value_t = Net::Pod)]
    pub(super) net: Net,
    /// Remove the pod when the command has ended
    #[arg(long, conflicts_with = "detach")]
    pub(super) rm: bool,
    #[command(flatten)]
    pub(super) streams: Flags,
    /// Print the id of the pod and leave it running
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Directory in which the command runs
    #[arg(short, long)]
    pub(super) workdir: Option<String>,
    /// User and group, as names or numbers
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = User::parse)]
    pub(super) user: Option<User>,
    /// Limit of memory, such as 512m or 2g
    #[arg(short, long, value_name = "SIZE", value_parser = bytes)]
    pub(super) memory: Option<i64>,
    /// Limit of processors, such as 1.5
    #[arg(long, value_name = "COUNT", value_parser = processors)]
    pub(super) cpus: Option<f64>,
    /// Make the root file system read-only
    #[arg(long)]
    pub(super) read_only: bool,
    /// Give all capabilities and devices, and take no protection
    #[arg(long)]
    pub(super) privileged: bool,
    /// Host name of the pod [default: its name]
    #[arg(long)]
    pub(super) hostname: Option<String>,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t = Pull::Missing)]
    pub(super) pull: Pull,
    /// Replace the entrypoint of the image
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// Name of a configured runtime handler
    #[arg(
        long,
        value_name = "HANDLER",
        default_value = "",
        hide_default_value = true
    )]
    pub(super) runtime_handler: String,
    /// Directory for logs [default: /var/log/kelson, or kelson-logs in the temporary directory for
    /// users other than root]
    #[arg(long, value_name = "DIRECTORY")]
    pub(super) log_dir: Option<std::path::PathBuf>,
    /// Image
    pub(super) image: String,
    /// The command and its arguments [default: those of the image]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Net {
    /// Its own, with an address
    Pod,
    /// The host's
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Pull {
    /// Each time
    Always,
    /// If it is not there
    Missing,
    /// Fail if it is not there
    Never,
}

/// Who runs the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) user: UserName,
    pub(super) group: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UserName {
    Id(i64),
    Name(String),
}

impl User {
    fn parse(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            None => (text, None),
            Some((user, group)) => {
                let id = group
                    .parse::<u32>()
                    .map_err(|_| "write the group as a number")?;
                (user, Some(id.into()))
            }
        };
        let user = match user.parse::<u32>() {
            Ok(id) => UserName::Id(id.into()),
            Err(_) if user.is_empty() => return Err("the user is empty".into()),
            Err(_) => UserName::Name(user.to_owned()),
        };
        Ok(Self { user, group })
    }
}

/// A pod's name as Kubernetes allows it: at most 63 lower-case letters, digits and inner hyphens.
pub(super) fn name(text: &str) -> Result<String, String> {
    let fits = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits {
        Ok(text.to_owned())
    } else {
        Err("use at most 63 lower-case letters, digits and hyphens, no hyphen at the ends".into())
    }
}

fn volume(text: &str) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, readonly) = match parts.as_slice() {
        [host, container] | [host, container, "rw"] => (host, container, false),
        [host, container, "ro"] => (host, container, true),
        _ => return Err("write it as HOST:CONTAINER or HOST:CONTAINER:ro".into()),
    };
    if !container.starts_with('/') {
        return Err("the path in the container has to begin with /".into());
    }
    if host.is_empty() {
        return Err("the path of the host is empty".into());
    }
    let host = std::path::absolute(host).map_err(|error| error.to_string())?;
    let host = host.to_str().ok_or("the path of the host is not UTF-8")?;
    Ok(Mount {
        container_path: (*container).to_owned(),
        host_path: host.to_owned(),
        readonly,
        ..Default::default()
    })
}

fn port(text: &str) -> Result<PortMapping, String> {
    let (rest, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((rest, "tcp")) => (rest, Protocol::Tcp),
        Some((rest, "udp")) => (rest, Protocol::Udp),
        Some((rest, "sctp")) => (rest, Protocol::Sctp),
        Some((_, other)) => return Err(format!("{other:?} is not tcp, udp or sctp")),
    };
    let usage = "write it as [IP:]HOST:CONTAINER[/PROTOCOL]; an IPv6 address in brackets";
    let (rest, container) = rest.rsplit_once(':').ok_or(usage)?;
    let (address, host) = rest.rsplit_once(':').unwrap_or(("", rest));
    let host_ip = match address {
        "" => String::new(),
        _ => {
            let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
            let ip: std::net::IpAddr = bare.unwrap_or(address).parse().map_err(|_| usage)?;
            if ip.is_ipv6() && bare.is_none() {
                return Err(usage.into());
            }
            ip.to_string()
        }
    };
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(i32::from(port)),
        _ => Err(format!("{text:?} is not a port: use 1 to 65535")),
    };
    Ok(PortMapping {
        protocol: protocol.into(),
        container_port: number(container)?,
        host_port: number(host)?,
        host_ip,
    })
}

/// A number of bytes with a binary unit: k, m, g, t, each also as `Ki`, `KiB` and so on.
fn bytes(text: &str) -> Result<i64, String> {
    let usage = "write it as 512m or 2g";
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit
        .to_ascii_lowercase()
        .trim_end_matches('b')
        .trim_end_matches('i')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(usage.into()),
    };
    let number: i64 = number.parse().map_err(|_| usage)?;
    number
        .checked_mul(1 << shift)
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| usage.into())
}

fn processors(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(count) if (0.01..=100_000.0).contains(&count) => Ok(count),
        _ => Err("write a number from 0.01 on, such as 1.5".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_with_address_and_protocol() {
        let parts = |text: &str| {
            let p = port(text).unwrap();
            (
                p.host_ip.clone(),
                p.host_port,
                p.container_port,
                p.protocol(),
            )
        };
        assert_eq!(parts("8080:80"), (String::new(), 8080, 80, Protocol::Tcp));
        assert_eq!(
            parts("127.0.0.1:53:5353/udp"),
            ("127.0.0.1".into(), 53, 5353, Protocol::Udp)
        );
        assert_eq!(
            parts("[::1]:1:2/sctp"),
            ("::1".into(), 1, 2, Protocol::Sctp)
        );
        for wrong in [
            "", "80", "0:80", "80:0", "65536:1", "a:b", "x:1:2", "::1:1:2", "1:2/icmp",
        ] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn volumes_are_absolute_and_may_be_read_only() {
        let mount = volume("/srv/data:/data:ro").unwrap();
        assert_eq!(
            (mount.host_path.as_str(), mount.container_path.as_str()),
            ("/srv/data", "/data")
        );
        assert!(mount.readonly);
        assert!(volume("./here:/data").unwrap().host_path.ends_with("/here"));
        assert!(!volume("/a:/b:rw").unwrap().readonly);
        for wrong in ["", "/a", ":/b", "/a:b", "/a:/b:x", "/a:/b:ro:ro"] {
            assert!(volume(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(bytes("512m"), Ok(512 << 20));
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("100"), Ok(100));
        for wrong in ["", "m", "0", "-1m", "1.5g", "1x", "9999999999t"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn users_are_names_or_numbers_and_groups_numbers() {
        let user = |text: &str| User::parse(text).unwrap();
        assert_eq!(
            user("1000:50"),
            User {
                user: UserName::Id(1000),
                group: Some(50)
            }
        );
        assert_eq!(
            user("nobody"),
            User {
                user: UserName::Name("nobody".into()),
                group: None
            }
        );
        for wrong in ["", ":1", "a:b", "1:-1"] {
            assert!(User::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_and_processor_counts_have_bounds() {
        assert!(name("web-1").is_ok());
        for wrong in ["", "-a", "a-", "A", "a/b", "..", &"x".repeat(64)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
        assert!(processors("0.5").is_ok());
        for wrong in ["0", "-1", "NaN", "inf", "x"] {
            assert!(processors(wrong).is_err(), "{wrong}");
        }
    }
}
