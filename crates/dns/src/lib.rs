//! Resolver and MX plan.
