//! Spans to an OTLP collector.

use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The crates that carry the export itself: were they traced, each export would make another.
const SILENT: [&str; 5] = ["h2", "hyper", "hyper_util", "tonic", "tower"];

/// The collector's address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "telemetry.otlp {endpoint:?} cannot be used; write the collector's gRPC address, such as http://otel-collector:4317"
)]
pub struct ExportError {
    endpoint: String,
    #[source]
    cause: opentelemetry_otlp::ExporterBuildError,
}

pub(crate) struct Exporter(SdkTracerProvider);

impl Exporter {
    pub(crate) fn new(endpoint: &str, sample_ratio: f64, role: &str) -> Result<Self, ExportError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|cause| ExportError { endpoint: endpoint.to_owned(), cause })?;
        let resource = Resource::builder()
            .with_service_name(format!("packetboat-{role}"))
            .with_attribute(KeyValue::new("service.namespace", "packetboat"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample_ratio))))
            .with_resource(resource)
            .build();
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self(provider))
    }

    pub(crate) fn layer<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let filter = Targets::new()
            .with_default(LevelFilter::INFO)
            .with_targets(SILENT.map(|target| (target, LevelFilter::OFF)));
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("packetboat"))
            .with_location(false)
            .with_threads(false)
            .with_filter(filter)
            .boxed()
    }

    pub(crate) fn shutdown(self) {
        if let Err(error) = self.0.shutdown_with_timeout(SHUTDOWN_TIMEOUT) {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}
