//! How much memory the system can still give, and how many KV pages that makes.
//!
//! Owns: reading `/proc/meminfo` and the limits of the control groups that the process is in. Never: memory itself.

use crate::limits::{KV_SHARE, KV_TOKENS_FLOOR, KV_TOKENS_UNASKED};
use std::fs;
use std::path::Path;

/// Bytes that can be had without pushing anything out that is in use: of the machine, and of each control group with a
/// limit (systemd's `MemoryMax=`, a container's). `None` where the system does not say.
pub fn free() -> Option<u64> {
    let machine = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // The unified hierarchy (v2) has the line `0::/path`.
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let group = Path::new("/sys/fs/cgroup").join(group);
    Some(group.ancestors().filter_map(left_in).fold(machine, u64::min))
}

/// Bytes left under a control group's limit, what it has of the page cache counted as free. `None`: it has no limit.
fn left_in(group: &Path) -> Option<u64> {
    let read = |name| fs::read_to_string(group.join(name)).ok();
    let most: u64 = read("memory.max")?.trim().parse().ok()?; // or "max"
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let stat = read("memory.stat")?;
    let cached = |name| number(&stat, name).unwrap_or(0);
    let cached = cached("inactive_file") + cached("active_file");
    Some(most.saturating_sub(used.saturating_sub(cached)))
}

fn number(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok()).flatten())
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    Some(number(text, name)? * 1024)
}

/// KV pages of `page_bytes` bytes and `page_size` tokens that fill a [share](KV_SHARE) of `free` bytes, within what
/// `limits.rs` allows.
pub(super) fn pages(free: u64, page_bytes: usize, page_size: u32) -> u32 {
    let fit = free / KV_SHARE / (page_bytes as u64).max(1);
    let fit = u32::try_from(fit).unwrap_or(u32::MAX);
    fit.clamp(KV_TOKENS_FLOOR.div_ceil(page_size), KV_TOKENS_UNASKED / page_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_what_is_free_holds_pages_between_the_floor_and_the_most() {
        assert_eq!(pages(1 << 30, 1 << 20, 16), 512);
        assert_eq!(pages(0, 1 << 20, 16), 256, "the floor is 4096 tokens");
        assert_eq!(pages(u64::MAX, 1, 16), KV_TOKENS_UNASKED / 16);
        assert_eq!(pages(0, 1 << 20, 100), 41, "no fewer than the floor says");
    }

    #[test]
    fn a_control_group_leaves_what_its_limit_and_its_page_cache_say() {
        let group = std::env::temp_dir().join(format!("tartlet-group-{}", std::process::id()));
        fs::create_dir_all(&group).unwrap();
        let write = |name: &str, text: &str| fs::write(group.join(name), text).unwrap();
        write("memory.current", "700\n");
        write("memory.stat", "anon 400\ninactive_file 200\nactive_file 100\n");
        write("memory.max", "max\n");
        assert_eq!(left_in(&group), None);
        write("memory.max", "1000\n");
        assert_eq!(left_in(&group), Some(600));
        write("memory.max", "300\n");
        assert_eq!(left_in(&group), Some(0), "over its limit already");
        fs::remove_dir_all(&group).unwrap();
        assert_eq!(left_in(&group), None);
        assert!(free().is_some_and(|bytes| bytes > 0), "this machine says");
    }
}
