//! The same metrics for a scraper and for OTLP: each handle that the `metrics` macros are given writes to both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use metrics_exporter_prometheus::PrometheusRecorder;
use metrics_util::registry::{Registry, Storage};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use crate::metrics::buckets;

/// Where metrics come from, for handles that have no place in the code to name.
static NOWHERE: Metadata<'static> = Metadata::new("packetboat", metrics::Level::INFO, None);

/// A recorder in front of Prometheus's, which tells a meter all that it is told.
pub(crate) struct Bridge(Registry<Key, Ends>);

/// Makes what stands behind one metric with one set of labels.
struct Ends {
    prometheus: PrometheusRecorder,
    meter: Meter,
}

struct BothCounters {
    prometheus: Counter,
    otlp: opentelemetry::metrics::Counter<u64>,
    labels: Vec<KeyValue>,
    /// What was told so far: OTLP takes increments only.
    total: AtomicU64,
}

struct BothGauges {
    prometheus: Gauge,
    otlp: opentelemetry::metrics::Gauge<f64>,
    labels: Vec<KeyValue>,
    /// The value's bits: OTLP takes whole values only.
    value: AtomicU64,
}

struct BothHistograms {
    prometheus: Histogram,
    otlp: opentelemetry::metrics::Histogram<f64>,
    labels: Vec<KeyValue>,
}

impl Bridge {
    pub(crate) fn new(prometheus: PrometheusRecorder, meter: Meter) -> Self {
        Self(Registry::new(Ends { prometheus, meter }))
    }
}

impl Recorder for Bridge {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.0.storage().prometheus.describe_counter(key, unit, text);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.0.storage().prometheus.describe_gauge(key, unit, text);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.0.storage().prometheus.describe_histogram(key, unit, text);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.0.get_or_create_counter(key, |both| Counter::from_arc(Arc::clone(both)))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.0.get_or_create_gauge(key, |both| Gauge::from_arc(Arc::clone(both)))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.0.get_or_create_histogram(key, |both| Histogram::from_arc(Arc::clone(both)))
    }
}

impl Storage<Key> for Ends {
    type Counter = Arc<BothCounters>;
    type Gauge = Arc<BothGauges>;
    type Histogram = Arc<BothHistograms>;

    fn counter(&self, key: &Key) -> Self::Counter {
        let otlp = self.meter.u64_counter(key.name().to_owned()).with_unit(unit(key.name()));
        Arc::new(BothCounters {
            prometheus: self.prometheus.register_counter(key, &NOWHERE),
            otlp: otlp.build(),
            labels: labels(key),
            total: AtomicU64::new(0),
        })
    }

    fn gauge(&self, key: &Key) -> Self::Gauge {
        let otlp = self.meter.f64_gauge(key.name().to_owned()).with_unit(unit(key.name()));
        Arc::new(BothGauges {
            prometheus: self.prometheus.register_gauge(key, &NOWHERE),
            otlp: otlp.build(),
            labels: labels(key),
            value: AtomicU64::new(0),
        })
    }

    fn histogram(&self, key: &Key) -> Self::Histogram {
        let name = key.name();
        let otlp = self.meter.f64_histogram(name.to_owned()).with_unit(unit(name));
        Arc::new(BothHistograms {
            prometheus: self.prometheus.register_histogram(key, &NOWHERE),
            otlp: otlp.with_boundaries(buckets(name).to_vec()).build(),
            labels: labels(key),
        })
    }
}

/// The unit that a metric's name says, in the notation of UCUM.
fn unit(name: &str) -> &'static str {
    match name.strip_suffix("_total").unwrap_or(name).rsplit('_').next() {
        Some("seconds") => "s",
        Some("octets") => "By",
        _ => "1",
    }
}

fn labels(key: &Key) -> Vec<KeyValue> {
    key.labels().map(|label| KeyValue::new(label.key().to_owned(), label.value().to_owned())).collect()
}

impl CounterFn for BothCounters {
    fn increment(&self, value: u64) {
        self.prometheus.increment(value);
        self.total.fetch_add(value, Ordering::Relaxed);
        self.otlp.add(value, &self.labels);
    }

    fn absolute(&self, value: u64) {
        self.prometheus.absolute(value);
        let before = self.total.fetch_max(value, Ordering::Relaxed);
        self.otlp.add(value.saturating_sub(before), &self.labels);
    }
}

impl BothGauges {
    /// Brings the value to what `change` makes of it.
    fn tell(&self, change: impl Fn(f64) -> f64) {
        let changed = |bits| Some(change(f64::from_bits(bits)).to_bits());
        // Never refused: `changed` always gives a value.
        if let Ok(before) = self.value.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed) {
            self.otlp.record(change(f64::from_bits(before)), &self.labels);
        }
    }
}

impl GaugeFn for BothGauges {
    fn increment(&self, value: f64) {
        self.prometheus.increment(value);
        self.tell(|before| before + value);
    }

    fn decrement(&self, value: f64) {
        self.prometheus.decrement(value);
        self.tell(|before| before - value);
    }

    fn set(&self, value: f64) {
        self.prometheus.set(value);
        self.tell(|_| value);
    }
}

impl HistogramFn for BothHistograms {
    fn record(&self, value: f64) {
        self.prometheus.record(value);
        self.otlp.record(value, &self.labels);
    }
}
