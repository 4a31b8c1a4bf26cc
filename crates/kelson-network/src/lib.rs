//! CNI: configuration, external plugins, native plugins
