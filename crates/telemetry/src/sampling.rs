//! Which spans are recorded.

use opentelemetry::trace::{Link, SpanContext, SpanKind, TraceContextExt, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};

/// A trace that another one caused is recorded where that one is: a span follows its parent, one without a parent the
/// span that it is linked to first, and of those that nothing causes a share is recorded.
#[derive(Debug, Clone)]
pub(crate) struct ByCause(Sampler);

impl ByCause {
    /// Records this share, 0.0 to 1.0, of what nothing causes.
    pub(crate) fn with_ratio(ratio: f64) -> Self {
        Self(Sampler::TraceIdRatioBased(ratio))
    }
}

impl ShouldSample for ByCause {
    fn should_sample(
        &self,
        parent_context: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        span_kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let parent = parent_context.map(|context| context.span().span_context().clone());
        let parent = parent.filter(SpanContext::is_valid);
        let cause = parent.as_ref().or_else(|| links.first().map(|link| &link.span_context));
        match cause {
            Some(cause) if cause.is_sampled() => followed(SamplingDecision::RecordAndSample),
            Some(_) => followed(SamplingDecision::Drop),
            None => self.0.should_sample(None, trace_id, name, span_kind, attributes, links),
        }
    }
}

/// None of our services sets a `tracestate`.
fn followed(decision: SamplingDecision) -> SamplingResult {
    SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::NONE }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanId, TraceFlags};

    use super::*;

    fn context(sampled: bool) -> SpanContext {
        let flags = TraceFlags::default().with_sampled(sampled);
        SpanContext::new(TraceId::from(7), SpanId::from(7), flags, true, TraceState::NONE)
    }

    fn is_recorded(ratio: f64, parent: Option<bool>, link: Option<bool>) -> bool {
        let parent = parent.map(|sampled| Context::new().with_remote_span_context(context(sampled)));
        let links: Vec<Link> = link.map(|sampled| Link::with_context(context(sampled))).into_iter().collect();
        let id = TraceId::from(1);
        let sampler = ByCause::with_ratio(ratio);
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
