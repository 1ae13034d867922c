//! What the API server refuses of a MailDomain by itself: limits, closed lists and rules in CEL, each with a
//! sentence for the person who wrote it. The rest is found by the operator, and told in the status.

use serde_json::{Value, json};

/// Where the spec's schema is in a CRD.
const SPEC: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";

/// Adds the limits and rules to the CRDs: of MailDomain, DNSProvider and ClusterDNSProvider.
pub(crate) fn add_to(crds: &mut [Value]) {
    for (crd, limits) in crds.iter_mut().zip([limits(), provider_limits(), cluster_provider_limits()]) {
        for (path, more) in limits {
            let Some(Value::Object(schema)) = crd.pointer_mut(&pointer(path)) else { continue };
            if let Value::Object(more) = more {
                schema.extend(more);
            }
        }
    }
}

/// Where the schema of a field of the spec is.
fn pointer(path: &str) -> String {
    path.split('.').filter(|part| !part.is_empty()).fold(SPEC.to_owned(), |pointer, part| match part {
        "[]" => pointer + "/items",
        part => pointer + "/properties/" + part,
    })
}

fn tsig_algorithms() -> Value {
    json!({"enum": ["hmac-sha256", "hmac-sha384", "hmac-sha512"]})
}

fn endpoint() -> Value {
    json!({"maxLength": 253, "pattern": "^https?://[^/?#@]+$"})
}

fn provider_limits() -> Vec<(&'static str, Value)> {
    vec![
        (
            "",
            rule(
                "[has(self.rfc2136), has(self.cloudflare), has(self.route53)].exists_one(given, given)",
                "say how to publish: give just one of rfc2136, cloudflare and route53",
            ),
        ),
        ("cloudflare.endpoint", endpoint()),
        ("route53.endpoint", endpoint()),
        ("route53.region", json!({"maxLength": 32, "pattern": "^[a-z0-9-]+$"})),
        ("route53.hostedZoneID", json!({"maxLength": 32, "pattern": "^[A-Z0-9]+$"})),
        ("rfc2136.tsig.algorithm", tsig_algorithms()),
    ]
}

fn cluster_provider_limits() -> Vec<(&'static str, Value)> {
    let mut limits = provider_limits();
    limits.push(("domains", json!({"minItems": 1, "maxItems": 1000})));
    limits.push(("namespaces", json!({"minItems": 1, "maxItems": 1000})));
    limits
}

fn rule(rule: &str, message: &str) -> Value {
    json!({"x-kubernetes-validations": [{"rule": rule, "message": message}]})
}

/// What is added where; the path is that of the field in the spec.
fn limits() -> Vec<(&'static str, Value)> {
    let policies = json!({"enum": ["none", "quarantine", "reject"]});
    let modes = json!({"enum": ["relaxed", "strict"]});
    vec![
        (
            "",
            json!({"x-kubernetes-validations": [
                {
                    "rule": "!has(self.dns) || !has(self.dns.mode) || self.dns.mode != 'RFC2136' || has(self.dns.rfc2136)",
                    "message": "dns.mode RFC2136 needs dns.rfc2136 with server and tsig",
                },
                {
                    "rule": "!has(self.dns) || !has(self.dns.mode) || self.dns.mode != 'Provider' || has(self.dns.providerRef)",
                    "message": "dns.mode Provider needs dns.providerRef with kind and name",
                },
                {
                    "rule": "!has(self.dkim) || !has(self.dkim.delegation) || !self.dkim.delegation.cname || \
                        has(self.dkim.delegation.providerRef) || \
                        (has(self.dns) && has(self.dns.mode) && self.dns.mode != 'Manual')",
                    "message": "dkim.delegation in mode Manual needs a providerRef: what publishes in targetZone?",
                },
                {
                    "rule": "!has(self.tlsa) || !has(self.dns) || !has(self.dns.mode) || \
                        self.dns.mode != 'ExternalDNS' || \
                        (has(self.dns.records) && 'tlsa' in self.dns.records && self.dns.records['tlsa'] != 'Manage') || \
                        (has(self.dns.externalDNS) && has(self.dns.externalDNS.annotations) && \
                        'external-dns.alpha.kubernetes.io/cloudflare-proxied' in self.dns.externalDNS.annotations)",
                    "message": "external-dns publishes TLSA records at Cloudflare only: set dns.records.tlsa to Verify, \
                        use another mode, or say by the annotation \
                        external-dns.alpha.kubernetes.io/cloudflare-proxied that it is Cloudflare",
                },
                {
                    "rule": "!has(self.tlsa) || (has(self.mx) && size(self.mx) > 0)",
                    "message": "tlsa is about the hosts of mx: name them",
                },
                {
                    "rule": "!has(self.mtaSts) || self.mtaSts.mode == 'none' || (has(self.mx) && size(self.mx) > 0)",
                    "message": "mtaSts needs mx: a policy names the hosts that senders may deliver to",
                },
                {
                    "rule": "!has(self.deletionPolicy) || self.deletionPolicy != 'Delete' || \
                        (has(self.dns) && has(self.dns.mode) && self.dns.mode != 'Manual')",
                    "message": "deletionPolicy Delete needs a dns.mode in which records can be withdrawn",
                },
            ]}),
        ),
        (
            "domain",
            json!({
                "maxLength": 253,
                "pattern": "^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
                "x-kubernetes-validations": [{
                    "rule": "self == oldSelf",
                    "message": "a MailDomain keeps its domain: make another one for another domain",
                }],
            }),
        ),
        (
            "mx",
            json!({
                "maxItems": 16,
                "x-kubernetes-validations": [{
                    "rule": "self.all(a, self.exists_one(b, b.host == a.host))",
                    "message": "a host stands twice in mx",
                }],
            }),
        ),
        ("mx.[].host", json!({"maxLength": 253, "minLength": 1})),
        ("mx.[].preference", json!({"minimum": 0, "maximum": 65535})),
        (
            "dkim.algorithms",
            json!({
                "maxItems": 2,
                "x-kubernetes-validations": [{
                    "rule": "'rsa-sha256' in self",
                    "message": "many receivers know only rsa-sha256: list it too",
                }],
            }),
        ),
        ("dkim.rsaBits", json!({"enum": [2048, 3072, 4096]})),
        ("dkim.selectorTemplate", json!({"maxLength": 40, "pattern": "^[a-z0-9{}-]+$"})),
        ("dkim.imported", json!({"maxItems": 16})),
        (
            "dkim.rotation",
            rule(
                "!has(self.interval) || !has(self.minPropagation) || \
                duration(self.interval) > duration(self.minPropagation)",
                "rotation.interval must be longer than rotation.minPropagation",
            ),
        ),
        (
            "dkim",
            rule(
                "!has(self.delegation) || !self.delegation.cname || \
                self.delegation.slots > (has(self.algorithms) ? size(self.algorithms) : 2)",
                "CNAME delegation needs more slots than algorithms: the next key needs a free one",
            ),
        ),
        ("dkim.delegation.slots", json!({"maximum": 16})),
        (
            "dkim.delegation.targetZone",
            json!({
                "maxLength": 120,
                "pattern": "^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
            }),
        ),
        ("dmarc.policy", policies.clone()),
        ("dmarc.subdomainPolicy", policies),
        ("dmarc.adkim", modes.clone()),
        ("dmarc.aspf", modes),
        ("spf.all", json!({"enum": ["-all", "~all", "?all"]})),
        ("mtaSts.mode", json!({"enum": ["none", "testing", "enforce"]})),
        ("mtaSts.maxAge", json!({"minimum": 86_400, "maximum": 31_557_600})),
        ("dns.ttl", json!({"minimum": 10, "maximum": 86_400})),
        ("dns.rfc2136.tsig.algorithm", tsig_algorithms()),
        ("dns.externalDNS.labels", json!({"maxProperties": 64})),
        ("dns.externalDNS.annotations", json!({"maxProperties": 64})),
        ("inbound.recipients.addresses", json!({"maxItems": 100_000})),
        ("outbound.ratePerMinute", json!({"minimum": 1})),
        ("outbound.weight", json!({"minimum": 1, "maximum": 1000})),
        (
            "outbound.pool",
            json!({
                "minLength": 1,
                "maxLength": 63,
                "x-kubernetes-validations": [{
                    "rule": "self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",
                    "message": "a source pool is named by lower-case letters, digits and hyphens, as in outbound.pools",
                }],
            }),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_a_place() {
        let crds = crate::crds();
        for (crd, limits) in crds.iter().zip([limits(), provider_limits(), cluster_provider_limits()]) {
            for (path, _) in limits {
                assert!(crd.pointer(&pointer(path)).is_some(), "{path} is no field of the spec");
            }
        }
    }
}
