//! Tracing subscriber, OTLP export, metrics recorder, shutdown.
