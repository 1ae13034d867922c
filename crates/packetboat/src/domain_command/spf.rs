//! How many look-ups an SPF record costs whoever checks it (RFC 7208 §4.6.4).

use std::pin::Pin;

use anyhow::Result;
use dns::Resolver;

/// Look-ups that a record may cost.
pub(super) const MOST: usize = 10;

/// The look-ups of a record, those of what it includes counted. It is counted to a little beyond the limit.
pub(super) fn lookups<'a>(
    resolver: &'a Resolver,
    record: &'a str,
    already: usize,
) -> Pin<Box<dyn Future<Output = Result<usize>> + 'a>> {
    Box::pin(async move {
        let mut count = already;
        for term in record.split_ascii_whitespace().skip(1) {
            let term = term.trim_start_matches(['+', '-', '~', '?']).to_ascii_lowercase();
            let name = term.split([':', '/', '=']).next().unwrap_or_default();
            if !["include", "a", "mx", "ptr", "exists", "redirect"].contains(&name) {
                continue;
            }
            count += 1;
            if count > MOST {
                return Ok(count);
            }
            let target = term.split_once([':', '=']).map(|(_, target)| target).unwrap_or_default();
            if matches!(name, "include" | "redirect") && !target.contains('%') {
                for text in resolver.texts(target).await? {
                    if is_spf(&text) {
                        count = lookups(resolver, &text, count).await?;
                    }
                }
            }
        }
        Ok(count)
    })
}

/// Whether a text is an SPF record.
pub(super) fn is_spf(text: &str) -> bool {
    let first = text.split(' ').next().unwrap_or_default();
    first.eq_ignore_ascii_case("v=spf1")
}
