//! Metrics, for a scraper to read and for a collector to be sent.

use metrics::SetRecorderError;
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use opentelemetry::metrics::Meter;

use crate::bridge::Bridge;

/// Buckets of all durations, in seconds: from a queue write to a slow peer's final reply.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];
/// Buckets of everything that is counted.
const COUNTS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// How the name of a duration ends.
const DURATION: &str = "_seconds";

/// The process's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

/// Metrics cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    #[error("the buckets are refused")]
    Buckets(#[from] BuildError),
    #[error("another recorder is in place")]
    Prometheus(#[from] SetRecorderError<PrometheusRecorder>),
    #[error("another recorder is in place")]
    Bridge(#[from] SetRecorderError<Bridge>),
}

impl Metrics {
    /// Takes what the `metrics` macros tell from now on, and tells it to `meter`, too, where there is one.
    pub(crate) fn install(meter: Option<Meter>) -> Result<Self, MetricsError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets(&COUNTS)?
            .set_buckets_for_metric(Matcher::Suffix(DURATION.to_owned()), &SECONDS)?
            .build_recorder();
        let handle = recorder.handle();
        match meter {
            Some(meter) => metrics::set_global_recorder(Bridge::new(recorder, meter))?,
            None => metrics::set_global_recorder(recorder)?,
        }
        Ok(Self(handle))
    }

    /// All metrics in the Prometheus text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }
}

/// The buckets of a histogram.
pub(crate) fn buckets(name: &str) -> &'static [f64] {
    if name.ends_with(DURATION) { &SECONDS } else { &COUNTS }
}
