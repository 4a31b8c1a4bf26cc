//! Snapshotters: layers on disk and root file systems from them
