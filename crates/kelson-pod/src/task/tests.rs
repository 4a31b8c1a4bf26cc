//! Tests of the pod task on fakes.
