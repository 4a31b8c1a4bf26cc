//go:build tools

// Package kubelet pins the kubelet that `cargo xtask kubelet` runs on Kelson. It stands apart from
// ../tools because it needs versions of its own; nothing of it is part of Kelson.
package kubelet

import _ "k8s.io/kubernetes/cmd/kubelet"
