//! The command line as runc has it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Create and run containers by the OCI runtime specification.
#[derive(Debug, Parser)]
#[command(
    name = "kelson oci",
    version = concat!(env!("CARGO_PKG_VERSION"), "\nspec: 1.2.1"),
    disable_help_subcommand = true
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options before the command.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Directory for the state of containers (on a file system that does not survive a reboot)
    #[arg(long, default_value = "/run/kelson/oci", value_name = "DIR")]
    pub(super) root: PathBuf,
    /// File to write errors to, besides standard error
    #[arg(long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,
    /// Form of the log file
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    pub(super) log_format: LogFormat,
    /// Accepted for compatibility
    #[arg(long)]
    pub(super) debug: bool,
    /// Not supported: cgroups are managed through cgroupfs
    #[arg(long)]
    pub(super) systemd_cgroup: bool,
    /// Accepted for compatibility: true, false or auto
    #[arg(long, value_name = "VALUE", num_args = 0..=1, require_equals = true)]
    pub(super) rootless: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a container; its program waits for `start`
    Create(CreateArgs),
    /// Create a container and start its program
    Run(RunArgs),
    /// Start the program of a created container
    Start {
        /// Id of the container
        id: String,
    },
    /// Print the state of a container as JSON
    State {
        /// Id of the container
        id: String,
    },
    /// Send a signal to a container
    Kill(KillArgs),
    /// Delete a container that has ended
    Delete {
        /// Kill it first, and succeed if it does not exist
        #[arg(short, long)]
        force: bool,
        /// Id of the container
        id: String,
    },
    /// Run a further program in a container
    Exec(Box<ExecArgs>),
    /// List the processes of a container
    Ps(PsArgs),
    /// Stop all processes of a container without ending them
    Pause {
        /// Id of the container
        id: String,
    },
    /// Let the processes of a paused container go on
    Resume {
        /// Id of the container
        id: String,
    },
    /// Change the limits of a container
    Update(Box<UpdateArgs>),
    /// Print what this runtime can do as JSON
    Features,
    /// List containers
    List(ListArgs),
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Directory with config.json
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub(super) bundle: PathBuf,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// Socket that receives the master of the terminal
    #[arg(long, value_name = "SOCKET")]
    pub(super) console_socket: Option<PathBuf>,
    /// How many descriptors from 3 on the program inherits
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(super) preserve_fds: u32,
    /// Use chroot instead of pivot_root, for a root on a ramfs
    #[arg(long)]
    pub(super) no_pivot: bool,
    /// Stay in the caller's session keyring
    #[arg(long)]
    pub(super) no_new_keyring: bool,
    /// Id of the container
    pub(super) id: String,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) create: CreateArgs,
    /// Do not wait for the end of the container
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Do not delete the container when it has ended
    #[arg(long)]
    pub(super) keep: bool,
}

#[derive(Debug, Args)]
pub(super) struct KillArgs {
    /// To all processes of the container
    #[arg(short, long)]
    pub(super) all: bool,
    /// Id of the container
    pub(super) id: String,
    /// Name or number of the signal
    #[arg(default_value = "SIGTERM")]
    pub(super) signal: String,
}

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// File with a process of the runtime specification
    #[arg(short, long, value_name = "FILE")]
    pub(super) process: Option<PathBuf>,
    /// Allocate a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub(super) cwd: Option<PathBuf>,
    /// Environment variable to set, may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(super) env: Vec<String>,
    /// User and group, as numbers
    #[arg(short, long, value_name = "UID[:GID]")]
    pub(super) user: Option<String>,
    /// Supplementary group, may be repeated
    #[arg(short = 'g', long, value_name = "GID")]
    pub(super) additional_gids: Vec<u32>,
    /// Capability to add, may be repeated
    #[arg(short, long, value_name = "CAP")]
    pub(super) cap: Vec<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub(super) no_new_privs: bool,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub(super) apparmor: Option<String>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    pub(super) process_label: Option<String>,
    /// Do not wait for the end of the program
    #[arg(short, long)]
    pub(super) detach: bool,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// Socket that receives the master of the terminal
    #[arg(long, value_name = "SOCKET")]
    pub(super) console_socket: Option<PathBuf>,
    /// How many descriptors from 3 on the program inherits
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(super) preserve_fds: u32,
    /// Cgroup beneath the container's to run in; it must exist
    #[arg(long, value_name = "PATH")]
    pub(super) cgroup: Option<String>,
    /// Also in a paused container, where the program waits for `resume`
    #[arg(long)]
    pub(super) ignore_paused: bool,
    /// Id of the container
    pub(super) id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Form of the answer
    #[arg(short, long, default_value = "table")]
    pub(super) format: Format,
    /// Id of the container
    pub(super) id: String,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Form of the answer
    #[arg(short, long, default_value = "table")]
    pub(super) format: Format,
    /// Ids only
    #[arg(short, long)]
    pub(super) quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    /// File with resources of the runtime specification, `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    pub(super) resources: Option<PathBuf>,
    /// CPU shares
    #[arg(long, value_name = "N")]
    pub(super) cpu_share: Option<u64>,
    /// CPU time in µs in a period
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) cpu_quota: Option<i64>,
    /// Length of a period in µs
    #[arg(long, value_name = "N")]
    pub(super) cpu_period: Option<u64>,
    /// CPU time in µs that may be saved up
    #[arg(long, value_name = "N")]
    pub(super) cpu_burst: Option<u64>,
    /// 1: run only when nothing else wants the CPU
    #[arg(long, value_name = "N")]
    pub(super) cpu_idle: Option<i64>,
    /// CPUs to use
    #[arg(long, value_name = "LIST")]
    pub(super) cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub(super) cpuset_mems: Option<String>,
    /// Memory limit in bytes, -1 for none
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub(super) memory: Option<i64>,
    /// Soft memory limit in bytes
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) memory_reservation: Option<i64>,
    /// Limit of memory and swap in bytes, -1 for none
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) memory_swap: Option<i64>,
    /// Weight of block I/O
    #[arg(long, value_name = "N")]
    pub(super) blkio_weight: Option<u16>,
    /// Number of processes, -1 for no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) pids_limit: Option<i64>,
    /// Id of the container
    pub(super) id: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_conmon_passes_is_understood() {
        for line in [
            "kelson --log-format=json --log=/l --root /r create --bundle /b --pid-file /p --no-pivot id",
            "kelson exec --pid-file /p --process /x --detach --console-socket /s --preserve-fds 1 id",
            "kelson exec -t -u 1:2 -e A=b id ls -l --color",
            "kelson kill --all id 9",
            "kelson delete --force id",
            "kelson --systemd-cgroup state id",
            "kelson update --memory-swap -1 id",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap();
        }
    }
}
