//! The W3C trace context: over gRPC metadata between services, and as text through the queue.
//!
//! It is made and read by our own services alone; nothing here ever looks at what an SMTP client sent.

use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, global};
use tonic::metadata::{MetadataMap, MetadataValue};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::ServiceError;

const TRACEPARENT: &str = "traceparent";

/// The one field of the context that is carried; none of our services sets a `tracestate`.
struct Traceparent(Option<String>);

impl Injector for Traceparent {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = Some(value);
        }
    }
}

impl Extractor for Traceparent {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.as_deref().filter(|_| key == TRACEPARENT)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

/// Writes the present span's context into the metadata of a call.
pub(crate) fn inject(metadata: &mut MetadataMap) {
    let Some(mut value) = traceparent().and_then(|text| MetadataValue::try_from(text).ok()) else { return };
    // No two calls have the same: it would push what they have in common out of the table that HTTP/2 keeps of
    // headers (RFC 7541 §7.1.3).
    value.set_sensitive(true);
    metadata.insert(TRACEPARENT, value);
}

/// The caller's span, as the metadata of a call tell it: the parent of what is begun on the caller's behalf.
pub(crate) fn caller(metadata: &MetadataMap) -> Context {
    let traceparent = metadata.get(TRACEPARENT).and_then(|value| value.to_str().ok());
    traceparent.map(context_of).unwrap_or_default()
}

/// Tells the span of a call that it failed, as `error.type`. The span has to have declared it and
/// `otel.status_code`.
pub fn call_failed(span: &Span, error: &ServiceError) {
    tracing::record_all!(span, otel.status_code = "error", error.type = ?error.code);
}

/// The present span as a `traceparent`, for a queue entry; `None` when it is not traced.
#[must_use]
pub fn traceparent() -> Option<String> {
    let context = Span::current().context();
    if !context.span().span_context().is_valid() {
        return None;
    }
    let mut carrier = Traceparent(None);
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    carrier.0
}

/// Makes `span` a child of the span that [`traceparent`] told of.
pub fn continue_trace(span: &Span, traceparent: &str) {
    let parent = context_of(traceparent);
    // Refused only for a span that is disabled or already started; then there is nothing to join.
    if parent.span().span_context().is_valid() && span.set_parent(parent).is_err() {
        tracing::debug!("span takes no parent");
    }
}

/// Links `span` to the span that [`traceparent`] told of: for a later attempt, which is a trace of its own.
pub fn link_trace(span: &Span, traceparent: &str) {
    let context = context_of(traceparent);
    let target = context.span().span_context().clone();
    if target.is_valid() {
        span.add_link(target);
    }
}

fn context_of(traceparent: &str) -> Context {
    let carrier = Traceparent(Some(traceparent.to_owned()));
    global::get_text_map_propagator(|propagator| propagator.extract(&carrier))
}
