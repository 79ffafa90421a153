//! The C library's allocator, told to give memory back.
//!
//! Owns: two of its settings. Never: an allocation.
//!
//! glibc maps large blocks one by one and unmaps them when they are freed, but learns from every such block: once one of
//! 20 MB was freed, all up to 20 MB come from its heaps, of which there are several, and each keeps twice that at its
//! end. A guest's memory grows through all these sizes. So guests that took much and have ended would be remembered for
//! good: after 10,000 launches of mixed programs the server held 160 MB instead of 40.

/// From now on what is freed goes back to the system, whatever was freed before. To be called at the start.
pub fn give_back_what_is_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// M_MMAP_THRESHOLD: bytes from which a block is mapped by itself. Guests' memories are larger.
        const MAPPED: (i32, i32) = (-3, 256 * 1024);
        /// M_TRIM_THRESHOLD: free bytes at the end of a heap that are given back.
        const SPARE: (i32, i32) = (-1, 256 * 1024);
        // SAFETY: the signature of malloc.h.
        unsafe extern "C" {
            fn mallopt(setting: i32, value: i32) -> i32;
        }
        for (setting, value) in [MAPPED, SPARE] {
            // SAFETY: two numbers; it takes the allocator's own lock.
            if unsafe { mallopt(setting, value) } == 0 {
                tracing::warn!("the allocator does not take its setting {setting}: freed memory may be kept");
            }
        }
    }
}
