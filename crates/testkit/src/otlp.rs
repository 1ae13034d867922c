//! OTLP receivers: one keeps the spans, metrics and log records it is sent, one takes them unseen.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{NumberDataPoint, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::codec::CompressionEncoding::Gzip;
use tonic::{Request, Response, Status};

/// One span.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its trace.
    pub trace: Vec<u8>,
    /// Its id.
    pub id: Vec<u8>,
    /// The span it is a part of; empty for a root.
    pub parent: Vec<u8>,
    /// The traces it is linked to.
    pub links: Vec<Vec<u8>>,
    /// What it is about.
    pub name: String,
    /// Attributes that are text.
    pub attributes: HashMap<String, String>,
    /// `service.name` of the process.
    pub service: String,
}

/// What a metric was with one set of attributes at one time.
#[derive(Debug, Clone)]
pub struct Point {
    /// The metric.
    pub name: String,
    /// Its unit, in the notation of UCUM.
    pub unit: String,
    /// Attributes that are text.
    pub attributes: HashMap<String, String>,
    /// The value; of a histogram, how many values it has.
    pub value: f64,
    /// The bounds of a histogram's buckets.
    pub bounds: Vec<f64>,
    /// `service.name` of the process.
    pub service: String,
}

/// A record of a log.
#[derive(Debug, Clone)]
pub struct Record {
    /// What it says.
    pub body: String,
    /// `INFO`, `WARN` and so on.
    pub severity: String,
    /// The trace it was written in; empty outside of traces.
    pub trace: Vec<u8>,
    /// Attributes that are text.
    pub attributes: HashMap<String, String>,
    /// `service.name` of the process.
    pub service: String,
}

#[derive(Default)]
struct Store {
    spans: Vec<Span>,
    points: Vec<Point>,
    records: Vec<Record>,
    /// Everything, as it came.
    text: String,
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Store>>);

/// The running receiver; it stops when this is dropped.
pub struct Collector {
    address: SocketAddr,
    kept: Kept,
    _stop: DropGuard,
}

impl Collector {
    /// Starts a receiver on loopback.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let kept = Kept::default();
        let stop = CancellationToken::new();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(kept.clone()).accept_compressed(Gzip))
            .add_service(MetricsServiceServer::new(kept.clone()).accept_compressed(Gzip))
            .add_service(LogsServiceServer::new(kept.clone()).accept_compressed(Gzip))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        tokio::spawn(server);
        Ok(Self { address, kept, _stop: stop.drop_guard() })
    }

    /// `http://…` for configurations.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.kept.store().spans.clone()
    }

    /// All points of a metric so far.
    pub fn points(&self, name: &str) -> Vec<Point> {
        self.kept.store().points.iter().filter(|point| point.name == name).cloned().collect()
    }

    /// The names of all metrics so far.
    pub fn metrics(&self) -> std::collections::BTreeSet<String> {
        self.kept.store().points.iter().map(|point| point.name.clone()).collect()
    }

    /// All log records so far.
    pub fn records(&self) -> Vec<Record> {
        self.kept.store().records.clone()
    }

    /// Everything that was sent, as text.
    pub fn text(&self) -> String {
        self.kept.store().text.clone()
    }
}

impl Kept {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let request = request.into_inner();
        let mut store = self.store();
        store.text.push_str(&format!("{request:?}\n"));
        for resource in request.resource_spans {
            let service = service(resource.resource);
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                store.spans.push(Span {
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    links: span.links.into_iter().map(|link| link.trace_id).collect(),
                    name: span.name,
                    attributes: texts(span.attributes),
                    service: service.clone(),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Kept {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let request = request.into_inner();
        let mut store = self.store();
        store.text.push_str(&format!("{request:?}\n"));
        for resource in request.resource_metrics {
            let service = service(resource.resource);
            for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                let (name, unit) = (metric.name, metric.unit);
                let point = |attributes, value, bounds| Point {
                    name: name.clone(),
                    unit: unit.clone(),
                    attributes: texts(attributes),
                    value,
                    bounds,
                    service: service.clone(),
                };
                let number = |one: NumberDataPoint| {
                    let value = match one.value {
                        Some(number_data_point::Value::AsDouble(value)) => value,
                        Some(number_data_point::Value::AsInt(value)) => value as f64,
                        None => f64::NAN,
                    };
                    point(one.attributes, value, Vec::new())
                };
                match metric.data {
                    Some(Data::Gauge(gauge)) => {
                        store.points.extend(gauge.data_points.into_iter().map(number));
                    }
                    Some(Data::Sum(sum)) => store.points.extend(sum.data_points.into_iter().map(number)),
                    Some(Data::Histogram(histogram)) => {
                        let points = histogram.data_points.into_iter();
                        store.points.extend(
                            points.map(|one| point(one.attributes, one.count as f64, one.explicit_bounds)),
                        );
                    }
                    _ => {}
                }
            }
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Kept {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let request = request.into_inner();
        let mut store = self.store();
        store.text.push_str(&format!("{request:?}\n"));
        for resource in request.resource_logs {
            let service = service(resource.resource);
            for record in resource.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                let body = match record.body.and_then(|body| body.value) {
                    Some(Value::StringValue(text)) => text,
                    other => format!("{other:?}"),
                };
                store.records.push(Record {
                    body,
                    severity: record.severity_text,
                    trace: record.trace_id,
                    attributes: texts(record.attributes),
                    service: service.clone(),
                });
            }
        }
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

fn service(resource: Option<Resource>) -> String {
    let attributes = resource.map(|resource| texts(resource.attributes)).unwrap_or_default();
    attributes.get("service.name").cloned().unwrap_or_default()
}

fn texts(attributes: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |attribute: KeyValue| match attribute.value?.value? {
        Value::StringValue(text) => Some((attribute.key, text)),
        _ => None,
    };
    attributes.into_iter().filter_map(text).collect()
}

/// An OTLP receiver that takes everything and looks at nothing: for benchmarks.
pub struct Drain {
    address: SocketAddr,
    taken: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl Drain {
    /// Starts a receiver on loopback.
    pub async fn start() -> Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts a receiver there; port 0 is any.
    pub async fn start_at(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (taken, stop) = (Arc::<AtomicU64>::default(), CancellationToken::new());
        let (counted, ended) = (Arc::clone(&taken), stop.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = ended.run_until_cancelled(listener.accept()).await {
                let (counted, ended) = (Arc::clone(&counted), ended.clone());
                tokio::spawn(ended.run_until_cancelled_owned(async move {
                    let taking = service_fn(move |request| take(request, Arc::clone(&counted)));
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), taking).await;
                }));
            }
        });
        Ok(Self { address, taken, _stop: stop.drop_guard() })
    }

    /// `http://…` for configurations.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many octets have come.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// Reads a request, and answers with an empty message: all was taken.
async fn take(
    request: hyper::Request<hyper::body::Incoming>,
    counted: Arc<AtomicU64>,
) -> Result<hyper::Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    counted.fetch_add(body.len() as u64, Ordering::Relaxed);
    // Five octets before each message: not compressed, length 0. The status is in the header: then it needs no
    // trailers, which a Full body has none of.
    let mut response = hyper::Response::new(Full::new(Bytes::from_static(&[0; 5])));
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", hyper::header::HeaderValue::from_static("0"));
    Ok(response)
}
