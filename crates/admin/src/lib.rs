//! Health, readiness, metrics and the queue API.
