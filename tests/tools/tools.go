//go:build tools

// Package tools pins the Go programs that the system tests and the conformance run drive.
// `cargo xtask` builds them; nothing of them is part of Kelson.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
