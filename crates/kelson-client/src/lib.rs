//! The CRI client: deadlines and errors that say what to do
