//! Spans, metrics and log records to an OTLP collector.
//!
//! Each kind has a bounded queue or a period of its own. What a collector that is slow or away does not take
//! is dropped; mail never waits for it.

use std::time::Duration;

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Key, KeyValue, global};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{ExporterBuildError, LogExporter, MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{BatchConfigBuilder as LogBatches, BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider, SpanExporter as _};
use tokio::runtime::Handle;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, filter_fn};
use tracing_subscriber::{Layer, Registry};

use crate::batches::{Batches, Limits};
use crate::sampling::by_cause;
use crate::told::Told;
use crate::{Config, TelemetryError};

/// Spans or records that wait for their export; what comes beyond is dropped, and mail goes on.
const MAX_WAITING: usize = 64 * 1024;
/// Spans or records exported at once.
const MAX_BATCH: usize = 512;
/// Spans and records are exported so often, and whenever a batch is full.
const EXPORT_EVERY: Duration = Duration::from_secs(1);
/// How long each kind may take to send what is left at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

const INSTANCE: Key = Key::from_static_str("service.instance.id");

/// The crates that carry the export itself: were they traced or their records exported, each export would
/// make another.
const SILENT: [&str; 8] = [
    "h2",
    "hyper",
    "hyper_util",
    "opentelemetry",
    "opentelemetry-otlp",
    "opentelemetry_sdk",
    "tonic",
    "tower",
];

/// The collector's address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "telemetry.otlp {endpoint:?} cannot be used; write the collector's gRPC address, such as http://otel-collector:4317"
)]
pub struct ExportError {
    endpoint: String,
    #[source]
    cause: ExporterBuildError,
}

pub(crate) type ExportLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// What is sent to the collector.
pub(crate) struct Exporter {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
}

impl Exporter {
    /// Nothing is sent before something is to be told.
    pub(crate) fn new(endpoint: &str, config: &Config, role: &str) -> Result<Self, TelemetryError> {
        let failed = |cause| ExportError { endpoint: endpoint.to_owned(), cause };
        let resource = resource(role);
        let spans =
            || SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT);
        let spans = config.traces.then(|| spans().build()).transpose().map_err(failed)?;
        let metrics = config.metrics.then(|| metrics(endpoint, config, &resource)).transpose();
        let logs = config.logs.then(|| logs(endpoint, &resource)).transpose();
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self {
            traces: spans.map(|spans| traces(spans, config, &resource)).transpose()?,
            metrics: metrics.map_err(failed)?,
            logs: logs.map_err(failed)?,
        })
    }

    /// What the metrics of the process are told to.
    pub(crate) fn meter(&self) -> Option<Meter> {
        self.metrics.as_ref().map(|provider| provider.meter("packetboat"))
    }

    /// Spans, and where addresses may be told the records of the log within them. Records quote what servers said, and
    /// that names addresses.
    pub(crate) fn spans(&self, config: &Config) -> Option<ExportLayer> {
        let events = config.addresses;
        let kinds = filter_fn(move |metadata| events || metadata.is_span());
        let filter = Targets::new()
            .with_default(LevelFilter::INFO)
            .with_targets(SILENT.map(|target| (target, LevelFilter::OFF)))
            // Of two filters both have to know the level, or the records of all levels are asked for.
            .and(kinds.with_max_level_hint(LevelFilter::INFO));
        let layer = tracing_opentelemetry::layer()
            .with_tracer(self.traces.as_ref()?.tracer("packetboat"))
            // Each time that a span is entered costs; only the records for the collector ask for it.
            .with_context_activation(config.logs)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_error_events_to_exceptions(false);
        Some(layer.with_filter(filter).boxed())
    }

    /// The records that the log has.
    pub(crate) fn records(&self, config: &Config) -> Result<Option<ExportLayer>, TelemetryError> {
        let Some(provider) = &self.logs else { return Ok(None) };
        let silent = Targets::new()
            .with_default(LevelFilter::TRACE)
            .with_targets(SILENT.map(|target| (target, LevelFilter::OFF)));
        let layer = OpenTelemetryTracingBridge::new(provider);
        Ok(Some(layer.with_filter(config.filter()?.and(silent)).boxed()))
    }

    /// Sends what is left, five seconds at most for each kind.
    pub(crate) fn shutdown(self) {
        let tell = |what, outcome: OTelSdkResult| {
            if let Err(error) = outcome {
                tracing::warn!(%error, what, "the last of the telemetry could not be exported");
            }
        };
        if let Some(provider) = self.traces {
            tell("traces", provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT));
        }
        if let Some(provider) = self.metrics {
            tell("metrics", provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT));
        }
        if let Some(provider) = self.logs {
            tell("logs", provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT));
        }
    }
}

/// What is told of the process. The environment (`OTEL_RESOURCE_ATTRIBUTES`) may add to it, and name the instance:
/// metrics of several processes of a role could not be told apart without one.
fn resource(role: &str) -> Resource {
    let found = Resource::builder().build();
    let instance = found.get(&INSTANCE).map_or_else(
        || RandomIdGenerator::default().new_trace_id().to_string(),
        |instance| instance.to_string(),
    );
    Resource::builder()
        .with_service_name(format!("packetboat-{role}"))
        .with_attribute(KeyValue::new("service.namespace", "packetboat"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new(INSTANCE, instance))
        .build()
}

fn traces(
    exporter: SpanExporter,
    config: &Config,
    resource: &Resource,
) -> Result<SdkTracerProvider, TelemetryError> {
    let mut exporter = Told::new("traces", exporter);
    exporter.set_resource(resource);
    let limits = Limits { batch: MAX_BATCH, batches: MAX_WAITING / MAX_BATCH, every: EXPORT_EVERY };
    Ok(SdkTracerProvider::builder()
        .with_span_processor(
            Batches::start(exporter, limits, Handle::current()).map_err(TelemetryError::Thread)?,
        )
        .with_sampler(by_cause(config.sample_ratio))
        .with_resource(resource.clone())
        .build())
}

fn metrics(
    endpoint: &str,
    config: &Config,
    resource: &Resource,
) -> Result<SdkMeterProvider, ExporterBuildError> {
    let exporter = MetricExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()?;
    let reader = PeriodicReader::builder(Told::new("metrics", exporter))
        .with_interval(config.metrics_interval)
        .build();
    Ok(SdkMeterProvider::builder().with_reader(reader).with_resource(resource.clone()).build())
}

fn logs(endpoint: &str, resource: &Resource) -> Result<SdkLoggerProvider, ExporterBuildError> {
    let exporter =
        LogExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT).build()?;
    let batches = LogBatches::default()
        .with_max_queue_size(MAX_WAITING)
        .with_max_export_batch_size(MAX_BATCH)
        .with_scheduled_delay(EXPORT_EVERY)
        .build();
    Ok(SdkLoggerProvider::builder()
        .with_log_processor(
            BatchLogProcessor::builder(Told::new("logs", exporter)).with_batch_config(batches).build(),
        )
        .with_resource(resource.clone())
        .build())
}
