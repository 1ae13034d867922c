//! Spans to an OTLP collector.

use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, filter_fn};
use tracing_subscriber::registry::LookupSpan;

use crate::Config;

/// Spans that wait for their export; what comes beyond is dropped, and mail goes on.
const MAX_WAITING: usize = 64 * 1024;
/// Spans exported at once.
const MAX_BATCH: usize = 2048;
/// Spans are exported so often, and whenever a batch is full.
const EXPORT_EVERY: Duration = Duration::from_secs(1);
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
    pub(crate) fn new(endpoint: &str, config: &Config, role: &str) -> Result<Self, ExportError> {
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
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_WAITING)
            .with_max_export_batch_size(MAX_BATCH)
            .with_scheduled_delay(EXPORT_EVERY)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio))))
            .with_resource(resource)
            .build();
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self(provider))
    }

    /// Spans, and with `events` the records of the log within them. Records quote what servers said, and
    /// that names addresses.
    pub(crate) fn layer<S>(&self, events: bool) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let filter = Targets::new()
            .with_default(LevelFilter::INFO)
            .with_targets(SILENT.map(|target| (target, LevelFilter::OFF)))
            .and(filter_fn(move |metadata| events || metadata.is_span()));
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("packetboat"))
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_error_events_to_exceptions(false)
            .with_filter(filter)
            .boxed()
    }

    pub(crate) fn shutdown(self) {
        if let Err(error) = self.0.shutdown_with_timeout(SHUTDOWN_TIMEOUT) {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}
