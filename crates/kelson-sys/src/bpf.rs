//! bpf(2), as far as cgroup v2 needs it: device filters.
//!
//! Nothing is pinned: a program lives as long as the cgroup that it is attached to.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

// linux/bpf.h
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// Most programs that a cgroup can have of one type.
const MAX_PROGRAMS: usize = 64;

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// For `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// For `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// For `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Default)]
struct ById {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`. Each instruction is a `struct bpf_insn`
/// as a little-endian u64. The kernel's verifier refuses what could do harm.
pub fn load_cgroup_device(instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let insns: Vec<[u8; 8]> = instructions.iter().map(|insn| insn.to_le_bytes()).collect();
    let mut attr = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(insns.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: insns.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: insns and license point to data of the given size (the license ends with NUL) that
    // outlives the call, and the kernel only reads them.
    let fd = unsafe { bpf(PROG_LOAD, &mut attr) }?;
    owned(fd)
}

/// Makes `program` the device filter of the cgroup v2 directory `cgroup`, in place of the ones it
/// has. Filters of cgroups above stay in force.
pub fn set_cgroup_device(cgroup: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let cgroup = raw(cgroup.as_fd().as_raw_fd())?;
    let program = raw(program.as_fd().as_raw_fd())?;
    let old: Vec<OwnedFd> = attached(cgroup)?
        .into_iter()
        .map(|prog_id| {
            let mut attr = ById {
                prog_id,
                ..ById::default()
            };
            // SAFETY: the attribute has no pointers.
            owned(unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) }?)
        })
        .collect::<io::Result<_>>()?;
    let mut attr = Attach {
        target_fd: cgroup,
        attach_bpf_fd: program,
        attach_type: CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
        replace_bpf_fd: 0,
    };
    if let Some(first) = old.first() {
        attr.attach_flags |= REPLACE;
        attr.replace_bpf_fd = raw(first.as_raw_fd())?;
    }
    // SAFETY: the attribute has no pointers.
    unsafe { bpf(PROG_ATTACH, &mut attr) }?;
    for other in old.iter().skip(1) {
        let mut attr = Attach {
            target_fd: cgroup,
            attach_bpf_fd: raw(other.as_raw_fd())?,
            attach_type: CGROUP_DEVICE,
            ..Attach::default()
        };
        // SAFETY: the attribute has no pointers.
        unsafe { bpf(PROG_DETACH, &mut attr) }?;
    }
    Ok(())
}

/// The ids of the device filters that are attached to the cgroup itself.
fn attached(cgroup: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MAX_PROGRAMS];
    let mut attr = Query {
        target_fd: cgroup,
        attach_type: CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        ..Query::default()
    };
    // SAFETY: prog_ids has room for the 64 ids that prog_cnt announces.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    ids.truncate(attr.prog_cnt as usize);
    Ok(ids)
}

/// Calls bpf(2).
///
/// # Safety
/// `attr` must be the kernel's attribute of `command`, and pointers in it must be valid for it.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<RawFd> {
    let attr: *mut T = attr;
    // SAFETY: attr is valid for its size for reading and writing, the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: the kernel has just made this descriptor for us (close-on-exec, as bpf(2) does).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(io::Error::other)
}
