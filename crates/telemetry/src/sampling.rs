//! Which spans are recorded.

use opentelemetry::trace::{Link, SpanKind, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};

/// A trace that another one caused is recorded where that one is: a span follows its parent, one without a parent the
/// span that it is linked to first, and of those that nothing causes this share is recorded, 0.0 to 1.0.
pub(crate) fn by_cause(ratio: f64) -> Sampler {
    Sampler::ParentBased(Box::new(ByLink(Sampler::TraceIdRatioBased(ratio))))
}

/// Follows the first link; without one another sampler decides.
#[derive(Debug, Clone)]
struct ByLink(Sampler);

impl ShouldSample for ByLink {
    fn should_sample(
        &self,
        parent_context: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        span_kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        match links.first() {
            Some(cause) if cause.span_context.is_sampled() => followed(SamplingDecision::RecordAndSample),
            Some(_) => followed(SamplingDecision::Drop),
            None => self.0.should_sample(parent_context, trace_id, name, span_kind, attributes, links),
        }
    }
}

/// None of our services sets a `tracestate`.
fn followed(decision: SamplingDecision) -> SamplingResult {
    SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::NONE }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags};

    use super::*;

    fn context(sampled: bool) -> SpanContext {
        let flags = TraceFlags::default().with_sampled(sampled);
        SpanContext::new(TraceId::from(7), SpanId::from(7), flags, true, TraceState::NONE)
    }

    fn is_recorded(ratio: f64, parent: Option<bool>, link: Option<bool>) -> bool {
        let parent = parent.map(|sampled| Context::new().with_remote_span_context(context(sampled)));
        let links: Vec<Link> = link.map(|sampled| Link::with_context(context(sampled))).into_iter().collect();
        let id = TraceId::from(1);
        let sampler = by_cause(ratio);
        let result = sampler.should_sample(parent.as_ref(), id, "span", &SpanKind::Internal, &[], &links);
        result.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn a_cause_decides_and_the_ratio_only_without_one() {
        for sampled in [true, false] {
            let against = if sampled { 0.0 } else { 1.0 };
            assert_eq!(is_recorded(against, Some(sampled), None), sampled);
            assert_eq!(is_recorded(against, None, Some(sampled)), sampled);
            assert_eq!(is_recorded(against, Some(sampled), Some(!sampled)), sampled);
        }
        assert!(is_recorded(1.0, None, None) && !is_recorded(0.0, None, None));
    }
}
