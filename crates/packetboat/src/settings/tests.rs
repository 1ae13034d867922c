use super::*;

const GOOD: &str = "\
hostname: mx.example.test
domains: {folder: domains}
listeners:
  - {name: mx, kind: mx, address: \"127.0.0.1:2525\"}
";

/// What is wrong with a file under these variables, without the file's name.
fn problems(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    match load(text, variables) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.0.iter().map(|problem| problem.to_string().replace("FILE:", "")).collect(),
    }
}

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, Problems> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("packetboat.yaml");
    std::fs::write(&file, text).unwrap();
    let variables = variables.iter().map(|(name, text)| (OsString::from(name), OsString::from(text)));
    Settings::load_with(&file, variables).map_err(|mut problems| {
        problems.0.iter_mut().for_each(|problem| problem.file = "FILE".into());
        problems
    })
}

#[test]
fn the_whole_of_the_documented_file_is_read() {
    let text = r#"
hostname: MX.example.test
data_dir: ./data
domains: {folder: ./domains}
dns: {servers: ["127.0.0.1:5300"]}
listeners:
  - {name: mx, kind: mx, address: "127.0.0.1:2525"}
  - {name: mx-proxied, kind: mx, address: "127.0.0.1:2526", proxy_protocol: {trusted: ["127.0.0.0/8"]}}
  - {name: submission, kind: submission, address: "127.0.0.1:5587"}
  - {name: submissions, kind: submission, address: "127.0.0.1:4465", tls: implicit}
edge: {command_timeout: 3s}
tls: {certificate: cert.pem, key: key.pem, peer: {certificate: p.pem, key: p.key, authority: /ca.pem}}
queue:
  backend: redis
  redis: {url: "redis://127.0.0.1:6379", shards: 8, replicas: 1}
  spool: inline
outbound:
  port: 2500
  allow_loopback: true
  retry: {initial: 1m, max_interval: 1h, max_age: 24h}
verifier: {endpoint: "https://verifier:9091", listen: "0.0.0.0:9091", on_temperror: deliver}
delivery: {endpoints: ["https://delivery:9092"], listen: "0.0.0.0:9092", dispatch: {concurrency: 7}}
admin: {address: "127.0.0.1:8026"}
telemetry: {otlp: "http://127.0.0.1:4317", log_format: json}
"#;
    let settings = load(text, &[]).unwrap();
    let base = settings.delivery.base_folder.clone();
    assert_eq!(settings.hostname, "mx.example.test");
    assert_eq!(settings.data_dir, base.join("./data"));
    assert_eq!(settings.domains, DomainSource::Folder(base.join("./domains")));
    assert_eq!(settings.tls.certificate, Some(base.join("cert.pem")));
    let peer = settings.peer_tls.unwrap();
    assert_eq!((peer.certificate, peer.authority), (base.join("p.pem"), "/ca.pem".into()));
    assert_eq!(settings.listeners.len(), 4);
    assert!(settings.listeners[3].implicit_tls && !settings.listeners[2].implicit_tls);
    assert!(settings.listeners[1].proxies[0].contains("127.8.9.1".parse().unwrap()));
    assert_eq!(settings.edge.command_timeout.as_secs(), 3);
    assert_eq!(settings.queue.redis.shards, 8);
    assert_eq!((settings.outbound.port, settings.outbound.hostname.as_str()), (2500, "mx.example.test"));
    assert_eq!(settings.delivery.retry.max_age.as_secs(), 86_400);
    assert_eq!((settings.delivery.dispatch.concurrency, &settings.delivery.base_folder), (7, &base));
    assert_eq!(settings.verifier.authserv_id, "mx.example.test");
    assert_eq!(settings.verifier.auth.dns_servers, settings.dns.servers);
    assert_eq!(settings.verifier_wire.endpoints, ["https://verifier:9091"]);
    assert_eq!(settings.delivery_wire.endpoints, ["https://delivery:9092"]);
    assert_eq!(settings.admin.port(), 8026);
}

#[test]
fn little_is_enough() {
    let settings = load(GOOD, &[]).unwrap();
    assert_eq!(settings.admin, ADMIN);
    assert_eq!(settings.queue.backend, Backend::Embedded);
    settings.require(Role::All).unwrap();
    assert_eq!(settings.lacks(Role::Edge), ["verifier.endpoint", "delivery.endpoint"]);
    assert_eq!(settings.lacks(Role::Verifier), ["verifier.listen"]);
    assert_eq!(settings.lacks(Role::Delivery), ["delivery.listen", "verifier.endpoint"]);
    let missing = settings.require(Role::Verifier).unwrap_err().to_string();
    assert!(missing.contains("verifier.listen: the role verifier needs this key"), "{missing}");
}

#[test]
fn each_fault_is_told_with_its_place() {
    let table = [
        ("listenerz: []\n", "5:1: listenerz: there is no such key; did you mean listeners?"),
        ("outbound: {ports: 25}\n", "5:12: outbound.ports: there is no such key; did you mean port?"),
        (
            "outbound: {rety: {initial: 5m}}\n",
            "5:12: outbound.rety: there is no such key; did you mean retry?",
        ),
        ("verifier: {endpont: x}\n", "5:12: verifier.endpont: there is no such key; did you mean endpoint?"),
        (
            "outbound:\n  port: many\n",
            "6:9: outbound.port: a whole number is wanted here, and not string \"many\"",
        ),
        (
            "queue: {backend: postgres}\n",
            "5:18: queue.backend: \"postgres\" is not known here: write embedded or redis",
        ),
        ("admin: {address: localhost}\n", "5:18: admin.address: invalid socket address syntax"),
        (
            "queue: {backend: redis, redis: {url: \"redis://h\"}, spool: {object_store: {url: s3}}}\n",
            "queue.spool.object_store.url: write s3://bucket/prefix",
        ),
        ("queue: {backend: redis}\n", "5:1: queue.redis.url: the backend redis needs the server's URL"),
        ("delivery: {retry: {initial: 5m}}\n", "5:12: delivery.retry: write this under outbound.retry"),
        ("delivery: {dispatch: {batch: 0}}\n", "5:23: delivery.dispatch.batch: it must be at least 1"),
        (
            "verifier: {endpoint: verifier}\n",
            "5:12: verifier.endpoint: \"verifier\" is not a URL with host and port",
        ),
        ("verifier: {endpoint: \"https://v:1\"}\n", "5:12: verifier.endpoint: https://v:1 asks for TLS"),
        (
            "tls: {peer: {certificate: a, key: b, authority: c}}\nverifier: {endpoint: \"http://v:1\"}\n",
            "6:12: verifier.endpoint: http://v:1 asks for plain text",
        ),
        ("delivery: {connection_age: 10ms}\n", "5:12: delivery.connection_age: it must be 100ms at least"),
        (
            "operator: {peer_certificates: {enabled: true, lifetime: 1h, propagation: 15m}}\n",
            "5:12: operator.peer_certificates: lifetime must be six times propagation",
        ),
        (
            "verifier: {signature_lifetime: 100h}\n",
            "5:12: verifier.signature_lifetime: signatures that hold for 100h",
        ),
        (
            "outbound: {retry: {max_age: 200h}}\n",
            "verifier.signature_lifetime: signatures that hold for 168h",
        ),
        (
            "edge: {max_message_bytes: 200000000}\n",
            "5:8: edge.max_message_bytes: 200000000 octets are more than",
        ),
        ("tls: {certificate: a.pem}\n", "5:1: tls: certificate and key go together"),
        ("tls: {peer: {certificate: a, key: b}}\n", "5:7: tls.peer.authority: the key is missing"),
        ("telemetry: {log_filter: \"=,=\"}\n", "5:1: telemetry: telemetry.log_filter"),
        (
            "verifier: {listen: \"127.0.0.1:2525\"}\n",
            "5:12: verifier.listen: 127.0.0.1:2525 is taken by the listener mx",
        ),
        ("  - {name: mx, kind: mx, address: \"127.0.0.1:1\"}\n", "5:6: listeners[1].name: another listener"),
        (
            "  - {name: a, kind: mx, address: \"127.0.0.1:2525\"}\n",
            "5:25: listeners[1].address: 127.0.0.1:2525 is taken",
        ),
        ("  - {name: a, kind: mx}\n", "5:5: listeners[1].address: the key is missing"),
        (
            "  - {name: a, kind: mx, address: \"127.0.0.1:1\", proxy_protocol: {}}\n",
            "5:49: listeners[1].proxy_protocol: list the networks",
        ),
        (
            "  - {name: a, kind: mx, address: \"127.0.0.1:1\", proxy_protocol: {trusted: [x]}}\n",
            "5:76: listeners[1].proxy_protocol.trusted[0]: \"x\" is not a network",
        ),
        (
            "  - {name: a, kind: pop3, address: \"127.0.0.1:1\"}\n",
            "5:21: listeners[1].kind: \"pop3\" is not known here",
        ),
        ("dns: [\n", "5:6: unclosed bracket"),
    ];
    let mut wrong = Vec::new();
    for (lines, expected) in table {
        let found = problems(&format!("{GOOD}{lines}"), &[]);
        if found.len() != 1 || !found[0].contains(expected) {
            wrong.push(format!("{lines}{found:#?}\nwanted: {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn all_faults_are_told_at_once() {
    let text = "hostname: not a name\nlisteners: 5\ndns: {attempts: x, timeout: 5, serverz: []}\nadmn: {}\nqueue: {backend: 1}\n";
    let found = problems(text, &[]);
    for key in [
        "hostname",
        "listeners",
        "dns.attempts",
        "dns.timeout",
        "dns.serverz",
        "admn",
        "queue.backend",
        "domains",
    ] {
        assert!(found.iter().any(|line| line.contains(&format!(" {key}: "))), "{key} in {found:#?}");
    }
}

#[test]
fn mail_domains_come_from_one_place() {
    let found = problems("hostname: a.test\ndomains: {kubernetes: {}, folder: d}\n", &[]);
    assert!(found[0].contains("either from a folder or from Kubernetes"), "{found:?}");
    let found = problems("hostname: a.test\n", &[]);
    assert!(found[0].contains("domains: {kubernetes: {}} in a cluster"), "{found:?}");
    let found = problems("hostname: a.test\ndomains: {kubernetes: {namespaces: []}}\n", &[]);
    assert!(found[0].contains("name at least one namespace"), "{found:?}");
    let found = problems("hostname: a.test\ndomains: {kubernetes: {namespaces: [a], namespace: b}}\n", &[]);
    assert!(found[0].contains("not both"), "{found:?}");
    let source = |text: &str| {
        load(&format!("hostname: a.test\ndomains: {{kubernetes: {text}}}\n"), &[]).unwrap().domains
    };
    let these = |names: &[&str]| {
        DomainSource::Kubernetes(Namespaces::These(names.iter().map(|&name| name.to_owned()).collect()))
    };
    assert_eq!(source("{}"), DomainSource::Kubernetes(Namespaces::All));
    assert_eq!(source("{namespace: mail}"), these(&["mail"]));
    assert_eq!(source("{namespaces: [b, a, b]}"), these(&["a", "b"]));
}

#[test]
fn variables_win_over_the_file() {
    let variables = [
        ("PACKETBOAT_OUTBOUND__RETRY__INITIAL", "30s"),
        ("PACKETBOAT_DNS__SERVERS", "[\"127.0.0.1:5300\"]"),
        ("PACKETBOAT_HOSTNAME", "other.example.test"),
        ("PACKETBOAT_LISTENERS__0__ADDRESS", "127.0.0.1:25"),
        ("PACKETBOAT_EDGE__MAX_SESSIONS", "5"),
    ];
    let settings = load(GOOD, &variables).unwrap();
    assert_eq!(settings.delivery.retry.initial.as_secs(), 30);
    assert_eq!(settings.dns.servers.len(), 1);
    assert_eq!(settings.hostname, "other.example.test");
    assert_eq!(settings.listeners[0].address.port(), 25);
    assert_eq!(settings.edge.max_sessions, 5);
}

#[test]
fn faults_in_variables_name_the_variable() {
    let table = [
        (
            "PACKETBOAT_OUTBOUND__PORT",
            "x",
            "environment variable PACKETBOAT_OUTBOUND__PORT: outbound.port: a whole number",
        ),
        (
            "PACKETBOAT_OUTBOUND__PROT",
            "1",
            "environment variable PACKETBOAT_OUTBOUND__PROT: outbound.prot: there is no such key; did you mean port?",
        ),
        (
            "PACKETBOAT_HOSTNMAE",
            "x",
            "environment variable PACKETBOAT_HOSTNMAE: hostnmae: there is no such key; did you mean hostname?",
        ),
        ("PACKETBOAT_NOTHING__LIKE", "x", "nothing.like: there is no such key"),
    ];
    for (name, value, expected) in table {
        let found = problems(GOOD, &[(name, value)]);
        assert!(found.len() == 1 && found[0].contains(expected), "{found:?}\nwanted: {expected}");
    }
}

#[test]
fn variables_of_others_are_passed_over() {
    let others = [
        ("PACKETBOAT_SERVICE_HOST", "10.0.0.1"),
        ("PACKETBOAT_PORT_25_TCP", "tcp://10.0.0.1:25"),
        ("PACKETBOAT_BIN", "/bin/packetboat"),
        ("PACKETBOAT_CONFIG", "packetboat.yaml"),
    ];
    assert_eq!(problems(GOOD, &others), Vec::<String>::new());
}

#[test]
fn passwords_are_not_told() {
    let found = problems(&format!("{GOOD}queue: \"redis://:sesame@host\"\n"), &[]);
    assert!(found.len() == 1 && !found[0].contains("sesame"), "{found:?}");
    let found = problems(GOOD, &[("PACKETBOAT_QUEUE__REDIS__SHARDS", "redis://:sesame@host")]);
    assert!(found.len() == 1 && !found[0].contains("sesame"), "{found:?}");
}
