//! Log records that name the trace they belong to.

use std::fmt::{self, Write as _};

use opentelemetry::trace::{SpanContext, TraceContextExt};
use tracing::{Event, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// Where the ids go in a record.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// Behind the text.
    Text,
    /// The first members of the object.
    Json,
}

/// A format whose records carry `trace_id` and `span_id` when they are written within a trace.
pub(crate) struct Correlated<F> {
    pub(crate) inner: F,
    pub(crate) place: Place,
}

impl<S, N, F> FormatEvent<S, N> for Correlated<F>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(span) = traced(event) else { return self.inner.format_event(context, writer, event) };
        match self.place {
            Place::Text => {
                let record = self.record(context, event)?;
                writeln!(
                    writer,
                    "{} trace_id={} span_id={}",
                    record.trim_end_matches('\n'),
                    span.trace_id(),
                    span.span_id()
                )
            }
            Place::Json => {
                let record = self.record(context, event)?;
                let rest = record.strip_prefix('{').unwrap_or(&record);
                write!(writer, "{{{},{rest}", members(&span))
            }
        }
    }
}

impl<F> Correlated<F> {
    fn record<S, N>(&self, context: &FmtContext<'_, S, N>, event: &Event<'_>) -> Result<String, fmt::Error>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
        N: for<'writer> FormatFields<'writer> + 'static,
        F: FormatEvent<S, N>,
    {
        let mut record = String::new();
        self.inner.format_event(context, Writer::new(&mut record), event)?;
        Ok(record)
    }
}

/// The span that has been entered, whatever the filter of the log makes of spans.
fn traced(event: &Event<'_>) -> Option<SpanContext> {
    // What the library says of itself it may say while it holds the very span that would be asked.
    if event.metadata().target().starts_with("opentelemetry") {
        return None;
    }
    let span = Span::current().context().span().span_context().clone();
    span.is_valid().then_some(span)
}

fn members(span: &SpanContext) -> String {
    let mut members = String::new();
    // Writing to a String cannot fail.
    let _ = write!(members, "\"trace_id\":\"{}\",\"span_id\":\"{}\"", span.trace_id(), span.span_id());
    members
}
