//! The C library's allocator: one heap, whose free pages go back to the system when asked.
//!
//! Owns: its one setting, and the asking. Never: an allocation.
//!
//! glibc maps large blocks one by one and unmaps them when they are freed, but learns from every such block: once one of
//! 20 MB was freed, all up to 20 MB come from its heaps, and twice that may stay free at the end of each. A guest's memory
//! grows through all these sizes, so guests that took much and have ended would be remembered for good. Fixed thresholds
//! help, and cost half a millisecond of each launch, which then maps and touches all its memory anew. To ask costs no
//! launch anything; but what is free at the end of a heap is given back of the first heap alone.

/// Settings and calls of `malloc.h`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod malloc {
    pub const M_ARENA_MAX: i32 = -8;

    // SAFETY: the signatures of the header.
    unsafe extern "C" {
        pub safe fn mallopt(setting: i32, value: i32) -> i32;
        pub safe fn malloc_trim(pad: usize) -> i32;
    }
}

/// From now on no thread gets a heap of its own. To be called before there are
/// threads that allocate.
pub fn keep_one() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if malloc::mallopt(malloc::M_ARENA_MAX, 1) == 0 {
        tracing::warn!("the allocator makes a heap for each thread: freed memory may be kept");
    }
}

/// Gives the pages of all that is free back to the system. Holds the allocator's lock for some milliseconds.
pub fn give_back() {
    // Whether there was something to give is nothing to act on.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    let _ = malloc::malloc_trim(0);
}
