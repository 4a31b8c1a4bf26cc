//! cgroup v1 and v2: creation, limits, statistics, killing
