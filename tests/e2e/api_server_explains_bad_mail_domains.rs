//! What is wrong with a MailDomain is said by the API server, in a sentence, before anything acts on it.

use anyhow::{Result, ensure};
use testkit::kubernetes::ApiServer;

const CRD: &str = include_str!("../../k8s/crds/maildomains.yaml");
const PROVIDERS: [&str; 2] = [
    include_str!("../../k8s/crds/dnsproviders.yaml"),
    include_str!("../../k8s/crds/clusterdnsproviders.yaml"),
];

fn mail_domain(spec: &str) -> String {
    format!(
        "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\n\
         metadata: {{name: d, namespace: default}}\nspec: {spec}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_speaks() -> Result<()> {
    let api = ApiServer::start().await?;
    api.define(CRD).await?;
    let dry = ["apply", "--server-side", "--dry-run=server", "-f", "-"];
    let wrong = [
        ("{domain: Example.com}", "spec.domain"),
        ("{domain: localhost}", "spec.domain"),
        ("{domain: a.test, dns: {mode: RFC2136}}", "dns.mode RFC2136 needs dns.rfc2136"),
        ("{domain: a.test, deletionPolicy: Delete}", "deletionPolicy Delete needs a dns.mode"),
        (
            "{domain: a.test, mx: [{host: m, preference: 1}, {host: m, preference: 2}]}",
            "a host stands twice in mx",
        ),
        ("{domain: a.test, mx: [{host: m, preference: 70000}]}", "spec.mx[0].preference"),
        ("{domain: a.test, dkim: {algorithms: [ed25519-sha256]}}", "list it too"),
        ("{domain: a.test, dkim: {rsaBits: 1024}}", "spec.dkim.rsaBits"),
        ("{domain: a.test, dkim: {selectorTemplate: \"A b\"}}", "spec.dkim.selectorTemplate"),
        ("{domain: a.test, dkim: {rotation: {interval: 1h, minPropagation: 2h}}}", "must be longer than"),
        (
            "{domain: a.test, dkim: {delegation: {cname: true, targetZone: z.test, slots: 2, providerRef: {name: p}}}}",
            "more slots than algorithms",
        ),
        (
            "{domain: a.test, dkim: {delegation: {cname: true, targetZone: z.test}}}",
            "needs a providerRef: what publishes in targetZone?",
        ),
        ("{domain: a.test, dkim: {delegation: {targetZone: Z}}}", "spec.dkim.delegation.targetZone"),
        (
            "{domain: a.test, dkim: {delegation: {targetZone: z.test, slots: 17}}}",
            "spec.dkim.delegation.slots",
        ),
        ("{domain: a.test, dmarc: {policy: maybe}}", "spec.dmarc.policy"),
        ("{domain: a.test, dmarc: {policy: none, adkim: s}}", "spec.dmarc.adkim"),
        ("{domain: a.test, spf: {all: +all}}", "spec.spf.all"),
        ("{domain: a.test, mtaSts: {mode: always, maxAge: 86400}}", "spec.mtaSts.mode"),
        ("{domain: a.test, mtaSts: {mode: testing, maxAge: 86400}}", "mtaSts needs mx"),
        ("{domain: a.test, mtaSts: {mode: none, maxAge: 1}}", "spec.mtaSts.maxAge"),
        ("{domain: a.test, dns: {ttl: 1}}", "spec.dns.ttl"),
        (
            "{domain: a.test, dns: {mode: RFC2136, rfc2136: {server: s, tsig: {keyName: k, algorithm: hmac-md5, secretRef: {name: t}}}}}",
            "hmac-sha256",
        ),
        ("{domain: a.test, outbound: {ratePerMinute: 0}}", "spec.outbound.ratePerMinute"),
        ("{domain: a.test, outbound: {weight: 1001}}", "spec.outbound.weight"),
        ("{domain: a.test, outbound: {pool: Bulk_2}}", "a source pool is named by lower-case letters"),
        ("{domain: a.test, dns: {mode: Provider}}", "dns.mode Provider needs dns.providerRef"),
        ("{domain: a.test, dns: {mode: ExternalDNS, externalDNS: {txtFormat: Split}}}", "txtFormat"),
        ("{domain: a.test, unknown: 1}", "unknown"),
        ("{domain: a.test, tlsa: {certificateRef: {name: c}}}", "tlsa is about the hosts of mx: name them"),
        (
            "{domain: a.test, mx: [{host: mx.a.test, preference: 1}], tlsa: {certificateRef: {name: c}}, dns: {mode: ExternalDNS}}",
            "external-dns publishes TLSA records at Cloudflare only",
        ),
    ];
    for (spec, told) in wrong {
        match api.kubectl(&dry, Some(&mail_domain(spec))).await {
            Ok(_) => anyhow::bail!("{spec} is taken"),
            Err(error) => ensure!(error.to_string().contains(told), "{spec}: {error}"),
        }
    }
    for more in [
        "records: {tlsa: Verify}",
        "externalDNS: {annotations: {external-dns.alpha.kubernetes.io/cloudflare-proxied: \"false\"}}",
    ] {
        let spec = format!(
            "{{domain: a.test, mx: [{{host: mx.a.test, preference: 1}}], tlsa: {{certificateRef: {{name: c}}}}, \
             dns: {{mode: ExternalDNS, {more}}}}}"
        );
        api.kubectl(&dry, Some(&mail_domain(&spec))).await?;
    }
    api.apply(&mail_domain("{domain: a.test}")).await?;
    match api.apply(&mail_domain("{domain: b.test}")).await {
        Ok(_) => anyhow::bail!("the domain was changed"),
        Err(error) => ensure!(error.to_string().contains("a MailDomain keeps its domain"), "{error}"),
    }
    let found = ["get", "mdom", "-A", "--field-selector", "spec.domain=a.test", "-o", "name"];
    ensure!(api.kubectl(&found, None).await?.contains("/d"), "it is not found by its domain");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_of_providers_speaks() -> Result<()> {
    let api = ApiServer::start().await?;
    for crd in PROVIDERS {
        api.define(crd).await?;
    }
    let dry = ["apply", "--server-side", "--dry-run=server", "-f", "-"];
    let way = "rfc2136: {server: s, tsig: {keyName: k, algorithm: hmac-sha256, secretRef: {name: t}}}";
    let weak = way.replace("sha256", "md5");
    let whose = |domains: &str, namespaces: &str| {
        format!("{{{way}, secretNamespace: keys, domains: {domains}, namespaces: {namespaces}}}")
    };
    let wrong = [
        ("DNSProvider", "{}".to_owned(), "say how to publish"),
        ("DNSProvider", format!("{{{way}, cloudflare: {{apiTokenSecretRef: {{name: t}}}}}}"), "just one of"),
        ("DNSProvider", "{cloudflare: {apiTokenSecretRef: {name: t}, endpoint: x}}".to_owned(), "endpoint"),
        (
            "DNSProvider",
            "{cloudflare: {apiTokenSecretRef: {name: t}}, route53: {accessKeySecretRef: {name: t}}}"
                .to_owned(),
            "give just one of rfc2136, cloudflare and route53",
        ),
        ("DNSProvider", "{route53: {region: eu-west-1}}".to_owned(), "accessKeySecretRef"),
        ("DNSProvider", "{route53: {accessKeySecretRef: {name: t}, region: \"E 1\"}}".to_owned(), "region"),
        (
            "DNSProvider",
            "{route53: {accessKeySecretRef: {name: t}, hostedZoneID: /hostedzone/Z1}}".to_owned(),
            "hostedZoneID",
        ),
        ("DNSProvider", format!("{{{weak}}}"), "hmac-sha256"),
        ("DNSProvider", format!("{{{way}, domains: [a.test]}}"), "domains"),
        ("ClusterDNSProvider", whose("[]", "[a]"), "spec.domains"),
        ("ClusterDNSProvider", whose("[a.test]", "[]"), "spec.namespaces"),
        ("ClusterDNSProvider", format!("{{{way}}}"), "spec.secretNamespace"),
    ];
    let object = |kind: &str, spec: &str| {
        let place = if kind == "DNSProvider" { ", namespace: default" } else { "" };
        format!(
            "apiVersion: mail.packetboat.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p{place}}}\nspec: {spec}\n"
        )
    };
    for (kind, spec, told) in wrong {
        match api.kubectl(&dry, Some(&object(kind, &spec))).await {
            Ok(_) => anyhow::bail!("{kind} {spec} is taken"),
            Err(error) => ensure!(error.to_string().contains(told), "{kind} {spec}: {error}"),
        }
    }
    api.apply(&object("DNSProvider", &format!("{{{way}}}"))).await?;
    api.apply(&object("ClusterDNSProvider", &whose("[a.test]", "[\"*\"]"))).await?;
    let table = api.kubectl(&["get", "mail"], None).await?;
    ensure!(table.contains("a.test"), "{table}");
    Ok(())
}
