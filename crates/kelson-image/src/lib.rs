//! References, registry client, content store, image store
