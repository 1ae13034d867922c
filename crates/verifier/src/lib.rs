//! Verify and Sign: what a message claims, judged; what we claim, signed.
