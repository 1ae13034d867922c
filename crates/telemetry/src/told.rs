//! Exporters whose failures somebody hears of: each is counted, and the log says when they begin and end.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::logs::Severity;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// An exporter of one kind of telemetry.
#[derive(Debug)]
pub(crate) struct Told<E> {
    exporter: E,
    kind: &'static str,
    failing: AtomicBool,
}

impl<E> Told<E> {
    /// `kind` is what it exports: `traces`, `metrics` or `logs`.
    pub(crate) fn new(kind: &'static str, exporter: E) -> Self {
        Self { exporter, kind, failing: AtomicBool::new(false) }
    }

    async fn note(&self, exporting: impl Future<Output = OTelSdkResult>) -> OTelSdkResult {
        let outcome = exporting.await;
        let failed = outcome.is_err();
        let failed_before = self.failing.swap(failed, Ordering::Relaxed);
        if let Err(error) = &outcome {
            metrics::counter!("packetboat_telemetry_export_failures_total", "kind" => self.kind).increment(1);
            if !failed_before {
                let (kind, error) = (self.kind, error as &dyn std::error::Error);
                tracing::warn!(kind, error, "telemetry is not exported, and lost meanwhile (telemetry.otlp)");
            }
        } else if failed_before {
            tracing::info!(kind = self.kind, "telemetry is exported again");
        }
        outcome
    }
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.note(self.exporter.export(batch)).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Told<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        self.note(self.exporter.export(batch)).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn event_enabled(&self, level: Severity, target: &str, name: Option<&str>) -> bool {
        self.exporter.event_enabled(level, target, name)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Told<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.note(self.exporter.export(metrics)).await
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
