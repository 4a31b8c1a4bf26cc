//! Unpacks a layer.
