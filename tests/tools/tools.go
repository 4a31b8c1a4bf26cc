//go:build tools

// Package tools pins the Go programs that the system tests drive.
// `cargo xtask test` builds them; nothing of them is part of Kelson.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
)
