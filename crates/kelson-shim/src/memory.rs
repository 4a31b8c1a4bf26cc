//! Giving memory back to the system: a node has many shims, and nearly all of them sleep.

/// How much of the stack is looked at; deeper than any request has taken it. The kernel keeps more
/// than that free below every stack.
const STACK: usize = 1 << 20;

/// What stays below the caller's frame, for the calls that follow.
const MARGIN: usize = 16 << 10;

/// Keeps large buffers out of the heap for good, so that each is given back when it is dropped and
/// comes as untouched pages when it is made. (Otherwise glibc moves the limit up with each buffer.)
pub(crate) fn keep_large_apart() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt has no preconditions while there is one thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// Gives back free heap, and the pages of the stack that only deeper calls have used.
#[inline(never)]
pub(crate) fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
    let here = 0_u8;
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(page @ 1..) = usize::try_from(page) else {
        return;
    };
    let end = ((&raw const here).addr() - MARGIN) & !(page - 1);
    let begin = end - STACK;
    // SAFETY: the range lies below the frames of this function and of madvise, whose size is far
    // below the margin, so nothing in it is in use. It may reach beyond the pages of the stack,
    // where there is nothing mapped; that is an error without effect.
    unsafe {
        libc::madvise(
            std::ptr::without_provenance_mut(begin),
            STACK,
            libc::MADV_DONTNEED,
        );
    }
}
