//! The memory that the allocator keeps for itself.

/// Gives free heap back to the system, of all threads. Takes some milliseconds after much was
/// freed, in which allocations may have to wait. Without glibc it does nothing.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions, and may be called by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes the allocator keep two heaps at most, however many threads there are: what many threads free is
/// of use to all of them, and less lies about. Without glibc it does nothing.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt has no preconditions.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_env = "gnu")]
    #[test]
    fn what_was_freed_is_given_back() {
        // The thread's own heap: nobody else allocates in it.
        let (before, after) = std::thread::spawn(|| {
            let mut blocks: Vec<Vec<u8>> = (0..4096).map(|_| vec![1; 16 << 10]).collect();
            // The last one keeps the heap from shrinking by itself.
            let last = blocks.pop();
            drop(blocks);
            let before = resident();
            super::trim();
            let after = resident();
            drop(last);
            (before, after)
        })
        .join()
        .unwrap();
        assert!(
            after + (32 << 20) < before,
            "{before} bytes before, {after} after"
        );
    }

    /// Bytes of memory that this process has.
    #[cfg(target_env = "gnu")]
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.unwrap().trim().trim_end_matches(" kB");
        kibibytes.parse::<usize>().unwrap() << 10
    }
}
