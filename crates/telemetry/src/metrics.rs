//! Metrics, for a scraper to read.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Buckets of all durations, in seconds: from a queue write to a slow peer's final reply.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// The process's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    pub(crate) fn install() -> Result<Self, metrics_exporter_prometheus::BuildError> {
        PrometheusBuilder::new().set_buckets(&SECONDS)?.install_recorder().map(Self)
    }

    /// All metrics in the Prometheus text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }
}
