//! The W3C trace context: over gRPC metadata between services, and as text through the queue.
//!
//! It is made and read by our own services alone; nothing here ever looks at what an SMTP client sent.

use std::collections::HashMap;

use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, global};
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";

struct Outgoing<'a>(&'a mut MetadataMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (key.parse::<MetadataKey<_>>(), value.parse::<MetadataValue<_>>()) {
            self.0.insert(key, value);
        }
    }
}

struct Incoming<'a>(&'a MetadataMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

/// Writes the present span's context into the metadata of a call.
pub(crate) fn inject(metadata: &mut MetadataMap) {
    let context = Span::current().context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Outgoing(metadata));
    });
}

/// Makes `span` a child of the caller's, as its metadata tell it.
pub(crate) fn adopt(span: &Span, metadata: &MetadataMap) {
    let parent = global::get_text_map_propagator(|propagator| propagator.extract(&Incoming(metadata)));
    set_parent(span, parent);
}

/// The present span as a `traceparent`, for a queue entry; `None` when it is not traced.
#[must_use]
pub fn traceparent() -> Option<String> {
    let context = Span::current().context();
    if !context.span().span_context().is_valid() {
        return None;
    }
    let mut carrier = HashMap::new();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    carrier.remove(TRACEPARENT)
}

/// Makes `span` a child of the span that [`traceparent`] told of.
pub fn continue_trace(span: &Span, traceparent: &str) {
    set_parent(span, context_of(traceparent));
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
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    global::get_text_map_propagator(|propagator| propagator.extract(&carrier))
}

fn set_parent(span: &Span, parent: Context) {
    // Refused only for a span that is disabled or already started; then there is nothing to join.
    if parent.span().span_context().is_valid() && span.set_parent(parent).is_err() {
        tracing::debug!("span takes no parent");
    }
}
