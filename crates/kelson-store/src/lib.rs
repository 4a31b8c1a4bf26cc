//! Durable state: versioned records in an embedded database
