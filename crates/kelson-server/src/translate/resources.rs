//! `LinuxContainerResources`.

use kelson_cri::v1;
use kelson_pod::config::Resources;

/// What a request asks for.
pub(crate) fn resources(linux: v1::LinuxContainerResources) -> Resources {
    Resources {
        cpu_period: linux.cpu_period,
        cpu_quota: linux.cpu_quota,
        cpu_shares: linux.cpu_shares,
        memory_limit: linux.memory_limit_in_bytes,
        memory_swap_limit: linux.memory_swap_limit_in_bytes,
        oom_score_adj: linux.oom_score_adj,
        cpuset_cpus: linux.cpuset_cpus,
        cpuset_mems: linux.cpuset_mems,
        hugepages: linux
            .hugepage_limits
            .into_iter()
            .map(|h| (h.page_size, h.limit))
            .collect(),
        unified: linux.unified.into_iter().collect(),
    }
}

/// What a status tells.
pub(crate) fn resources_back(resources: &Resources) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit,
        memory_swap_limit_in_bytes: resources.memory_swap_limit,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepages
            .iter()
            .map(|(page_size, limit)| v1::HugepageLimit {
                page_size: page_size.clone(),
                limit: *limit,
            })
            .collect(),
        unified: resources.unified.clone().into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way() {
        let asked = v1::LinuxContainerResources {
            cpu_period: 1,
            cpu_quota: 2,
            cpu_shares: 3,
            memory_limit_in_bytes: 4,
            memory_swap_limit_in_bytes: 5,
            oom_score_adj: 6,
            cpuset_cpus: "0".into(),
            cpuset_mems: "1".into(),
            hugepage_limits: vec![v1::HugepageLimit {
                page_size: "2MB".into(),
                limit: 7,
            }],
            unified: [("memory.high".to_owned(), "8".to_owned())].into(),
        };
        assert_eq!(resources_back(&resources(asked.clone())), asked);
    }
}
