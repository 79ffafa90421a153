//! How much memory the system can still give, and how many KV pages that makes.
//!
//! Owns: reading `/proc/meminfo` and the limits of the control groups that the process is in. Never: memory itself.

use crate::limits::{KV_SHARE, KV_TOKENS_FLOOR, KV_TOKENS_UNASKED};
use std::fs;
use std::path::Path;

/// How a version of control groups says what a group may have: folder, limits, use, and what of that is page cache.
struct Version {
    root: &'static str,
    limits: &'static [&'static str],
    used: &'static str,
    cached: [&'static str; 2],
}

const V2: Version = Version {
    root: "/sys/fs/cgroup",
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    cached: ["inactive_file", "active_file"],
};
const V1: Version = Version {
    root: "/sys/fs/cgroup/memory",
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    cached: ["total_inactive_file", "total_active_file"],
};

/// Bytes that can be had without pushing anything out that is in use: of the machine, and of each control group with a
/// limit (systemd's `MemoryMax=` and `MemoryHigh=`, a container's). `None` where the system does not say.
pub fn free() -> Option<u64> {
    let machine = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // Lines of number, controllers and path; the unified hierarchy (v2) has no controllers here.
    let left = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let version = match controllers {
            "" => &V2,
            some => some.split(',').any(|controller| controller == "memory").then_some(&V1)?,
        };
        let group = Path::new(version.root).join(path);
        group.ancestors().filter_map(|group| version.left_in(group)).min()
    });
    Some(left.fold(machine, u64::min))
}

impl Version {
    /// Bytes left under a group's limits, what it has of the page cache counted as free. `None`: it has none.
    fn left_in(&self, group: &Path) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(group.join(name)).ok();
        let limit = |name: &&str| read(name)?.trim().parse::<u64>().ok(); // or "max"
        let most = self.limits.iter().filter_map(limit).min()?;
        let used: u64 = read(self.used)?.trim().parse().ok()?;
        let stat = read("memory.stat")?;
        let cached: u64 = self.cached.iter().filter_map(|name| number(&stat, name)).sum();
        Some(most.saturating_sub(used.saturating_sub(cached)))
    }
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
    fn a_control_group_leaves_what_its_limits_and_its_page_cache_say() {
        let group = std::env::temp_dir().join(format!("tartlet-group-{}", std::process::id()));
        fs::create_dir_all(&group).unwrap();
        let write = |name: &str, text: &str| fs::write(group.join(name), text).unwrap();
        write("memory.stat", "anon 400\ninactive_file 200\nactive_file 100\ntotal_inactive_file 50\n");
        write("memory.current", "700\n");
        write("memory.usage_in_bytes", "700\n");
        write("memory.max", "max\n");
        assert_eq!(V2.left_in(&group), None);
        write("memory.max", "1000\n");
        assert_eq!(V2.left_in(&group), Some(600));
        write("memory.high", "900\n");
        assert_eq!(V2.left_in(&group), Some(500));
        write("memory.max", "300\n");
        assert_eq!(V2.left_in(&group), Some(0), "over its limit already");
        assert_eq!(V1.left_in(&group), None);
        write("memory.limit_in_bytes", "1000\n");
        assert_eq!(V1.left_in(&group), Some(350));
        fs::remove_dir_all(&group).unwrap();
        assert_eq!(V2.left_in(&group), None);
        assert!(free().is_some_and(|bytes| bytes > 0), "this machine says");
    }
}
