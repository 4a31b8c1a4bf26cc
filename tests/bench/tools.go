//go:build tools

// Package bench pins the peers that Kelson is measured beside. `cargo xtask bench` builds them;
// nothing of them is part of Kelson.
package bench

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/opencontainers/runc"
)
