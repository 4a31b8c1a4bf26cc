//! CRI v1 messages and services, generated from proto/cri/v1/api.proto
