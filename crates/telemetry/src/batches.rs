//! Spans in batches, on their way from where they end to the thread that exports them.
//!
//! The processor that comes with the library takes every span through a ring of fixed size. A ring that has room for
//! what ends while a collector stalls is larger than the caches of a CPU, and going round in it pushes the mail out of
//! them: it cost a twentieth of the throughput. Here memory is touched as far as spans wait.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::runtime::Handle;

/// How many spans may wait, and how they go out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Spans exported at once.
    pub(crate) batch: usize,
    /// Full batches that wait; what comes beyond is dropped.
    pub(crate) batches: usize,
    /// Spans that fill no batch are exported so often.
    pub(crate) every: Duration,
}

/// Takes the spans that end. Spans that are left when this is shut down are exported before.
#[derive(Debug)]
pub(crate) struct Batches(Arc<Waiting>);

#[derive(Debug)]
struct Waiting {
    limits: Limits,
    state: Mutex<State>,
    /// A batch is full, or somebody waits for the rest.
    more: Condvar,
    /// Nothing is left.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    full: VecDeque<Vec<SpanData>>,
    filling: Vec<SpanData>,
    dropped: u64,
    exporting: bool,
    /// What is left is to go out at once.
    hurry: bool,
    ended: bool,
}

impl State {
    fn is_empty(&self) -> bool {
        self.full.is_empty() && self.filling.is_empty()
    }
}

impl Batches {
    /// Starts the thread that exports. `exporter` knows its resource.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start<E>(exporter: E, limits: Limits, runtime: Handle) -> io::Result<Self>
    where
        E: SpanExporter + 'static,
    {
        let (state, more, done) = Default::default();
        let waiting = Arc::new(Waiting { limits, state, more, done });
        let source = Arc::clone(&waiting);
        thread::Builder::new().name("otlp-spans".to_owned()).spawn(move || {
            let mut dropping = false;
            while let Some((batch, dropped)) = source.next() {
                tell_dropped(dropped, &mut dropping);
                if !batch.is_empty() {
                    // The exporter tells of its failures itself.
                    let _ = runtime.block_on(exporter.export(batch));
                }
            }
            let _ = exporter.shutdown();
        })?;
        Ok(Self(waiting))
    }
}

/// Counts what was dropped since the last batch, and tells the log when that begins.
fn tell_dropped(dropped: u64, dropping: &mut bool) {
    metrics::counter!("packetboat_telemetry_dropped_spans_total").increment(dropped);
    if dropped > 0 && !*dropping {
        tracing::warn!(dropped, "spans are dropped: the collector takes them too slowly (telemetry.otlp)");
    }
    *dropping = dropped > 0;
}

impl SpanProcessor for Batches {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.0.put(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.flush(false, Duration::from_secs(5))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.flush(true, timeout)
    }
}

impl Waiting {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, span: SpanData) {
        let mut state = self.state();
        if state.ended || state.full.len() >= self.limits.batches {
            state.dropped += 1;
            return;
        }
        state.filling.push(span);
        if state.filling.len() >= self.limits.batch {
            let full = mem::replace(&mut state.filling, Vec::with_capacity(self.limits.batch));
            state.full.push_back(full);
            self.more.notify_one();
        }
    }

    /// The next batch, which may be empty, and how many spans were dropped meanwhile; none at the end.
    fn next(&self) -> Option<(Vec<SpanData>, u64)> {
        let mut state = self.state();
        state.exporting = false;
        if state.is_empty() {
            state.hurry = false;
            self.done.notify_all();
            if state.ended {
                return None;
            }
        }
        let idle = |state: &mut State| state.full.is_empty() && !state.hurry;
        let waited = self.more.wait_timeout_while(state, self.limits.every, idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.exporting = true;
        let batch = state.full.pop_front().unwrap_or_else(|| mem::take(&mut state.filling));
        Some((batch, mem::take(&mut state.dropped)))
    }

    /// Waits until nothing is left.
    fn flush(&self, end: bool, timeout: Duration) -> OTelSdkResult {
        let mut state = self.state();
        if state.ended {
            return Err(OTelSdkError::AlreadyShutdown);
        }
        state.ended = end;
        state.hurry = true;
        self.more.notify_one();
        let busy = |state: &mut State| state.hurry || state.exporting;
        let waited = self.done.wait_timeout_while(state, timeout, busy);
        let waited = waited.unwrap_or_else(PoisonError::into_inner).1;
        if waited.timed_out() { Err(OTelSdkError::Timeout(timeout)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use opentelemetry::trace::{TraceContextExt, Tracer, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    /// Tells the names of each batch, and takes it when it may.
    #[derive(Debug)]
    struct Slow {
        told: mpsc::Sender<Vec<String>>,
        may: Mutex<mpsc::Receiver<()>>,
    }

    impl SpanExporter for Slow {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let names = batch.iter().map(|span| span.name.to_string()).collect();
            self.told.send(names).expect("the test listens");
            let may = self.may.lock().expect("one thread");
            may.recv_timeout(Duration::from_secs(10)).map_err(|_| OTelSdkError::AlreadyShutdown)
        }
    }

    struct Scene {
        provider: SdkTracerProvider,
        told: mpsc::Receiver<Vec<String>>,
        may: mpsc::Sender<()>,
    }

    fn scene(limits: Limits) -> Scene {
        let (tell, told) = mpsc::channel();
        let (may, wait) = mpsc::channel();
        let exporter = Slow { told: tell, may: Mutex::new(wait) };
        let batches = Batches::start(exporter, limits, Handle::current()).expect("a thread");
        Scene { provider: SdkTracerProvider::builder().with_span_processor(batches).build(), told, may }
    }

    impl Scene {
        fn span(&self, name: &'static str) {
            drop(self.provider.tracer("test").start(name));
        }

        fn batch(&self) -> Vec<String> {
            self.told.recv_timeout(Duration::from_secs(10)).expect("a batch")
        }
    }

    const NEVER: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_full_batch_goes_out_at_once_and_the_rest_at_the_end() {
        let scene = scene(Limits { batch: 2, batches: 8, every: NEVER });
        scene.span("a");
        scene.span("b");
        assert_eq!(scene.batch(), ["a", "b"]);
        scene.span("c");
        scene.may.send(()).expect("it waits");
        scene.may.send(()).expect("it will wait");
        scene.provider.shutdown_with_timeout(Duration::from_secs(10)).expect("all goes out");
        assert_eq!(scene.batch(), ["c"]);
        scene.span("d");
        assert!(scene.told.recv_timeout(Duration::from_secs(10)).is_err(), "the exporter is gone");
    }

    #[tokio::test]
    async fn what_fills_no_batch_goes_out_in_time() {
        let scene = scene(Limits { batch: 512, batches: 8, every: Duration::from_millis(1) });
        scene.span("a");
        assert_eq!(scene.batch(), ["a"]);
        scene.may.send(()).expect("it waits");
    }

    #[tokio::test]
    async fn a_slow_collector_costs_spans_beyond_the_limit_and_no_time() {
        let scene = scene(Limits { batch: 1, batches: 2, every: NEVER });
        scene.span("in the exporter's hands");
        scene.batch();
        for name in ["waits", "waits, too", "dropped"] {
            scene.span(name);
        }
        (0..3).for_each(|_| scene.may.send(()).expect("it waits"));
        scene.provider.force_flush().expect("all goes out");
        let rest: Vec<_> = scene.told.try_iter().collect();
        assert_eq!(rest, [["waits"], ["waits, too"]]);
    }

    #[tokio::test]
    async fn the_end_does_not_wait_for_ever() {
        let scene = scene(Limits { batch: 1, batches: 2, every: NEVER });
        scene.span("a");
        let ended = scene.provider.shutdown_with_timeout(Duration::from_millis(10));
        assert!(ended.is_err(), "the exporter has it still");
    }

    #[tokio::test]
    async fn what_is_not_sampled_is_not_exported() {
        let scene = scene(Limits { batch: 1, batches: 2, every: NEVER });
        let parent = Context::new().with_remote_span_context(unsampled());
        drop(scene.provider.tracer("test").start_with_context("a", &parent));
        scene.provider.force_flush().expect("nothing to wait for");
        assert!(scene.told.try_recv().is_err());
    }

    fn unsampled() -> opentelemetry::trace::SpanContext {
        use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId};
        SpanContext::new(
            TraceId::from_bytes([1; 16]),
            SpanId::from_bytes([1; 8]),
            TraceFlags::NOT_SAMPLED,
            true,
            Default::default(),
        )
    }
}
