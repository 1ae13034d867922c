//! What must agree across sections, and what a section's type cannot say by itself.

use std::net::SocketAddr;
use std::time::Duration;

use edge::config::Listener;

use super::document::Path;
use super::reader::Reader;
use super::{Backend, Settings, Wire};

/// The least that a connection between services lives.
const SHORTEST_AGE: Duration = Duration::from_millis(100);

/// Notes what does not fit together.
pub(super) fn check(settings: &Settings, reader: &mut Reader) {
    listeners(&settings.listeners, reader);
    addresses(settings, reader);
    sizes(settings, reader);
    lifetimes(settings, reader);
    endpoints(settings, "verifier", &settings.verifier_wire, reader);
    endpoints(settings, "delivery", &settings.delivery_wire, reader);
    if settings.tls.certificate.is_some() != settings.tls.key.is_some() {
        let text = "certificate and key go together: set both, or neither for a self-signed certificate";
        reader.problem(&Path::of("tls"), text);
    }
    if settings.mta_sts.plain && !settings.mta_sts.certificates.is_empty() {
        let text = "plain serves HTTP without TLS, and shows no certificate: keep one of the two";
        reader.problem(&Path::of("mta_sts.certificates"), text);
    }
    if settings.queue.backend == Backend::Redis && !settings.queue.redis.is_placed() {
        let text = "the backend redis needs the server's URL, as in redis: {url: \"redis://127.0.0.1:6379\"}";
        reader.problem(&Path::of("queue.redis.url"), text);
    }
    if let Err(delivery::DeliveryError::Setting { setting, why }) = settings.delivery.validate()
        && setting != "hostname"
    {
        let section = if setting.starts_with("retry.") { "outbound" } else { "delivery" };
        reader.problem(&Path::of(&format!("{section}.{setting}")), format!("it {why}"));
    }
    source_pools(settings, reader);
    peer_certificates(settings, reader);
    if let Err(error) = settings.telemetry.check() {
        reader.problem(&Path::of("telemetry"), error.to_string());
    }
}

fn source_pools(settings: &Settings, reader: &mut Reader) {
    for (name, pool) in &settings.outbound.pools {
        let path = Path::of("outbound.pools").key(name);
        if !delivery::outbound::is_pool_name(name) {
            let text = "a source pool is named by at most 63 lower-case letters, digits and hyphens";
            reader.problem(&path, text);
        }
        if let Some((key, why)) = pool.fault() {
            reader.problem(&path.key(key), why);
        }
    }
}

fn listeners(listeners: &[Listener], reader: &mut Reader) {
    for (at, listener) in listeners.iter().enumerate() {
        if listeners[..at].iter().any(|other| other.name == listener.name) {
            let text = format!("another listener is called {} already", listener.name);
            reader.problem(&Path::of("listeners").index(at).key("name"), text);
        }
    }
}

/// No two of our servers can listen on one address.
fn addresses(settings: &Settings, reader: &mut Reader) {
    let path = Path::of("listeners");
    let listeners = settings.listeners.iter().enumerate();
    let mut bound: Vec<(Path, String, SocketAddr)> = listeners
        .map(|(at, listener)| {
            let what = format!("the listener {}", listener.name);
            (path.clone().index(at).key("address"), what, listener.address)
        })
        .collect();
    for (key, wire) in
        [("verifier.listen", &settings.verifier_wire), ("delivery.listen", &settings.delivery_wire)]
    {
        bound.extend(wire.listen.map(|address| (Path::of(key), key.to_owned(), address)));
    }
    let key = "mta_sts.listen";
    bound.extend(settings.mta_sts.listen.map(|address| (Path::of(key), key.to_owned(), address)));
    bound.push((Path::of("admin.address"), "admin.address".to_owned(), settings.admin));
    for (at, (path, _, address)) in bound.iter().enumerate() {
        let taken = bound[..at].iter().find(|(_, _, other)| other == address && address.port() != 0);
        if let Some((_, by, _)) = taken {
            reader.problem(path, format!("{address} is taken by {by} already"));
        }
    }
}

/// What the edge takes, the services behind it must take, too.
fn sizes(settings: &Settings, reader: &mut Reader) {
    let taken = settings.edge.max_message_bytes;
    let behind = [
        ("delivery.accept.max_message_bytes", settings.delivery.accept.max_message_bytes),
        ("verifier.max_message_octets", settings.verifier.max_message_octets),
    ];
    for (key, limit) in behind {
        if taken > limit {
            let text = format!(
                "{taken} octets are more than the {limit} of {key}: lower this, or raise that wherever the service is configured"
            );
            reader.problem(&Path::of("edge.max_message_bytes"), text);
        }
    }
    let recipients = settings.edge.max_recipients;
    if recipients > settings.delivery.accept.max_recipients {
        let text = format!(
            "{recipients} are more than the {} of delivery.accept.max_recipients",
            settings.delivery.accept.max_recipients
        );
        reader.problem(&Path::of("edge.max_recipients"), text);
    }
}

/// A signature must still hold when the message leaves the queue at last.
fn lifetimes(settings: &Settings, reader: &mut Reader) {
    let (lifetime, max_age) = (settings.verifier.signature_lifetime, settings.delivery.retry.max_age);
    if lifetime <= max_age {
        let text = format!(
            "signatures that hold for {} run out while mail still waits, which it does for {} (outbound.retry.max_age): make them hold longer",
            domains::duration::format(lifetime),
            domains::duration::format(max_age)
        );
        reader.problem(&Path::of("verifier.signature_lifetime"), text);
    }
}

/// What the operator makes is what the services look for, and nothing runs out while it is replaced.
fn peer_certificates(settings: &Settings, reader: &mut Reader) {
    let made = &settings.operator.peer_certificates;
    if made.enabled && !made.is_sound() {
        let text = "lifetime must be six times propagation at least, and authority_lifetime no shorter than lifetime";
        reader.problem(&Path::of("operator.peer_certificates"), text);
    }
    if let Some(used) = settings.peer_tls.as_ref().filter(|used| made.enabled && used.domain != made.domain) {
        let text = format!("the services look for names in {}, which is tls.peer.domain", used.domain);
        reader.problem(&Path::of("operator.peer_certificates.domain"), text);
    }
}

fn endpoints(settings: &Settings, service: &str, wire: &Wire, reader: &mut Reader) {
    let (one, several) = (format!("{service}.endpoint"), format!("{service}.endpoints"));
    let path = if reader.has(&Path::of(&several)) { Path::of(&several) } else { Path::of(&one) };
    if wire.connection_age < SHORTEST_AGE {
        let text = format!(
            "it must be {} at least, so that a connection carries a call",
            domains::duration::format(SHORTEST_AGE)
        );
        reader.problem(&Path::of(&format!("{service}.connection_age")), text);
    }
    for endpoint in &wire.endpoints {
        match endpoint.parse::<hyper::Uri>() {
            Ok(uri) if uri.host().is_some() && uri.port_u16().is_some() => match uri.scheme_str() {
                Some("http") if settings.peer_tls.is_none() => {}
                Some("https") if settings.peer_tls.is_some() => {}
                Some("http") => reader.problem(
                    &path,
                    format!(
                        "{endpoint} asks for plain text, which no service with tls.peer takes: write https://"
                    ),
                ),
                Some("https") => reader.problem(
                    &path,
                    format!("{endpoint} asks for TLS: set tls.peer with certificate, key and authority"),
                ),
                _ => reader.problem(&path, format!("{endpoint} must begin with http:// or https://")),
            },
            _ => {
                let text =
                    format!("{endpoint:?} is not a URL with host and port, such as http://{service}:9091");
                reader.problem(&path, text);
            }
        }
    }
}
