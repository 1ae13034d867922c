//! Tracing subscriber, OTLP export, metrics recorder, and their orderly end.
//!
//! Logs go to standard error, and metrics are read from [`Metrics::render`] by the admin server. When an OTLP
//! collector is configured, spans go to it, and metrics and logs too where that is asked for.

mod batches;
mod bridge;
mod export;
mod log;
mod metrics;
mod sampling;
mod told;

use std::io::IsTerminal;
use std::time::Duration;

use serde::Deserialize;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use log::{Correlated, Place};

pub use export::ExportError;
pub use metrics::Metrics;

/// What is logged unless told otherwise.
const LOG_FILTER: &str = "info,fjall=warn,lsm_tree=warn";

/// The target of records that name mail addresses: `tracing::info!(target: "addresses", …)`.
const ADDRESSES: &str = "addresses";

/// What the `telemetry:` section of the settings says.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The OTLP/gRPC collector (`http://host:4317`); absent: nothing is exported.
    pub otlp: Option<String>,
    /// Whether spans go to the collector. Default yes.
    pub traces: bool,
    /// Whether the metrics of `/metrics` go to the collector, too. Default no.
    pub metrics: bool,
    /// How often metrics are sent, a second at least. Default 30 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub metrics_interval: Duration,
    /// Whether the records of the log go to the collector, too. Default no.
    pub logs: bool,
    /// The share of transactions that is traced, 0.0 to 1.0. What a traced transaction causes is traced
    /// whatever the ratio of the process.
    pub sample_ratio: f64,
    /// Whether traces may tell mail addresses, and what servers replied. Spans then carry the records of
    /// the log as events, and the log has them, too.
    pub addresses: bool,
    /// Where `packetboat trace` asks: the query API of a Jaeger (`http://host:16686`).
    pub query: Option<String>,
    /// `text` for people or `json` for programs.
    pub log_format: LogFormat,
    /// What is logged, in the syntax of `tracing_subscriber::EnvFilter`. Default: `info`, without the
    /// chatter of the embedded store.
    pub log_filter: String,
}

/// How a log record looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            otlp: None,
            traces: true,
            metrics: false,
            metrics_interval: Duration::from_secs(30),
            logs: false,
            sample_ratio: 1.0,
            addresses: false,
            query: None,
            log_format: LogFormat::Text,
            log_filter: LOG_FILTER.to_owned(),
        }
    }
}

impl Config {
    /// Tells whether the settings can be used, without using them.
    ///
    /// # Errors
    /// With the first that cannot.
    pub fn check(&self) -> Result<(), TelemetryError> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(TelemetryError::SampleRatio(self.sample_ratio));
        }
        if self.metrics_interval < Duration::from_secs(1) {
            return Err(TelemetryError::MetricsInterval(self.metrics_interval));
        }
        self.filter().map(drop)
    }

    fn filter(&self) -> Result<LogFilter, TelemetryError> {
        let level = if self.addresses { "info" } else { "off" };
        let directives = format!("{},{ADDRESSES}={level}", self.log_filter);
        let filter = EnvFilter::try_new(&self.log_filter)
            .and_then(|_| EnvFilter::try_new(&directives))
            .map_err(|cause| TelemetryError::Filter { filter: self.log_filter.clone(), cause })?;
        // A filter that names spans looks at each span that is entered; most name targets alone.
        match directives.parse::<Targets>() {
            Ok(targets) if !directives.contains('[') => Ok(Box::new(targets)),
            _ => Ok(Box::new(filter)),
        }
    }
}

type LogFilter = Box<dyn Filter<Registry> + Send + Sync>;

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `telemetry.log_filter` does not parse.
    #[error(
        "telemetry.log_filter {filter:?} is not a filter; write for example \"info\" or \"info,edge=debug\""
    )]
    Filter {
        /// As configured.
        filter: String,
        /// The parser's word.
        #[source]
        cause: tracing_subscriber::filter::ParseError,
    },
    /// `telemetry.sample_ratio` is no share.
    #[error("telemetry.sample_ratio {0} must lie between 0 and 1")]
    SampleRatio(f64),
    /// `telemetry.metrics_interval` is too short.
    #[error("telemetry.metrics_interval {0:?} must be a second at least")]
    MetricsInterval(Duration),
    /// `telemetry.otlp` cannot be used.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The system gives no thread for the export.
    #[error("the export of spans has no thread")]
    Thread(#[source] std::io::Error),
    /// Something else has already been installed in this process.
    #[error("telemetry has been set up before in this process")]
    Twice,
}

/// Telemetry in working order. Call [`Telemetry::shutdown`] after the services have drained.
pub struct Telemetry {
    /// The process's metrics.
    pub metrics: Metrics,
    exporter: Option<export::Exporter>,
}

impl Telemetry {
    /// Sets up logs, metrics and, where configured, span export for the whole process. `role` names
    /// the service in traces (`packetboat-edge`). Must run inside the tokio runtime.
    ///
    /// # Errors
    /// When a setting is unusable, or this is the second call in the process.
    pub fn install(config: &Config, role: &str) -> Result<Self, TelemetryError> {
        config.check()?;
        let exporter = match &config.otlp {
            Some(endpoint) => Some(export::Exporter::new(endpoint, config, role)?),
            None => None,
        };
        let meter = exporter.as_ref().and_then(export::Exporter::meter);
        let metrics = Metrics::install(meter).map_err(|_| TelemetryError::Twice)?;
        let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = Vec::new();
        if let Some(exporter) = &exporter {
            layers.extend(exporter.spans(config));
            layers.extend(exporter.records(config)?);
        }
        let filter = config.filter()?;
        let colours = std::io::stderr().is_terminal();
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let format = tracing_subscriber::fmt::format();
        let logs = match config.log_format {
            LogFormat::Text => {
                let inner = format.with_ansi(colours);
                layer.with_ansi(colours).event_format(Correlated { inner, place: Place::Text }).boxed()
            }
            LogFormat::Json => {
                let inner = format.json().flatten_event(true);
                layer.json().event_format(Correlated { inner, place: Place::Json }).boxed()
            }
        };
        layers.push(logs.with_filter(filter).boxed());
        tracing_subscriber::registry().with(layers).try_init().map_err(|_| TelemetryError::Twice)?;
        Ok(Self { metrics, exporter })
    }

    /// Sends what is left for the collector, waiting five seconds at most for each kind.
    pub fn shutdown(self) {
        if let Some(exporter) = self.exporter {
            exporter.shutdown();
        }
    }
}
