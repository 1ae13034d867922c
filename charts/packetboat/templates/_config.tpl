{{/* The configuration file, the same for all roles: each takes from it what it needs. What depends on the namespace or
is secret comes by environment variables. */}}
{{- define "packetboat.config" -}}
{{- $name := include "packetboat.fullname" . }}
{{- $peer := include "packetboat.peerSecret" (dict "root" . "role" "edge") }}
{{- $scheme := ternary "https" "http" (ne $peer "") }}
{{- $bind := include "packetboat.bind" . }}
{{- $config := dict
  "hostname" .Values.hostname
  "data_dir" "/data"
  "admin" (dict "address" (printf "%s:8025" $bind))
  "verifier" (dict "endpoint" (printf "%s://%s-verifier:9091" $scheme $name) "listen" (printf "%s:9091" $bind))
  "delivery" (dict "endpoint" (printf "%s://%s-delivery:9092" $scheme $name) "listen" (printf "%s:9092" $bind))
  "listeners" (include "packetboat.listeners" . | fromYamlArray)
  "domains" (include "packetboat.domains" . | fromYaml)
  "queue" (include "packetboat.queue" . | fromYaml)
}}
{{- $operator := dict "lease_name" (printf "%s-operator" $name) }}
{{- if and .Values.redis.embedded.enabled (not .Values.redis.embedded.existingSecret) }}
{{- $_ := set $operator "redis_password_secret" (include "packetboat.redisSecret" .) }}
{{- end }}
{{- if eq (include "packetboat.peerMaker" . | trim) "operator" }}
{{- $_ := set $operator "peer_certificates" (dict "enabled" true "secret_prefix" (printf "%s-peer" $name) "domain" .Values.peerTLS.domain) }}
{{- end }}
{{- $_ := set $config "operator" $operator }}
{{- with .Values.mtaSts }}
{{- if .enabled }}
{{- $certificates := list }}
{{- range .certificates }}{{ $certificates = append $certificates (dict "certificate" (printf "/mta-sts/%s/tls.crt" .) "key" (printf "/mta-sts/%s/tls.key" .)) }}{{ end }}
{{- $_ := set $config "mta_sts" (dict "listen" (printf "%s:8443" $bind) "plain" .plain) }}
{{- if .plain }}{{ $_ := set $config.mta_sts "max_connections_per_client" 1000 }}{{ else }}{{ $_ := set $config.mta_sts "certificates" $certificates }}{{ end }}
{{- end }}
{{- end }}
{{- with .Values.dns.servers }}{{ $_ := set $config "dns" (dict "servers" .) }}{{ end }}
{{- /* What is under way may go on until shortly before the pod is killed: calls and the admin server end, too. */}}
{{- $edge := dict "drain" (printf "%ds" (sub .Values.edge.terminationGracePeriodSeconds (add .Values.edge.preStopSeconds 15) | max 1)) }}
{{- if .Values.edge.privateClientsExpected }}{{ $_ := set $edge "private_clients_transactions" 0 }}{{ end }}
{{- $_ := set $config "edge" $edge }}
{{- $drain := sub .Values.delivery.terminationGracePeriodSeconds (add .Values.delivery.preStopSeconds 45) | max 1 }}
{{- $_ := set $config.delivery "dispatch" (dict "drain" (printf "%ds" $drain)) }}
{{- $tls := dict }}
{{- if .Values.edge.tlsSecret }}{{ $_ := set $tls "certificate" "/tls/tls.crt" }}{{ $_ := set $tls "key" "/tls/tls.key" }}{{ end }}
{{- if $peer }}{{ $_ := set $tls "peer" (dict "certificate" "/peer/tls.crt" "key" "/peer/tls.key" "authority" "/peer/ca.crt" "domain" .Values.peerTLS.domain) }}{{ end }}
{{- if $tls }}{{ $_ := set $config "tls" $tls }}{{ end }}
{{- $telemetry := dict "log_format" .Values.telemetry.logFormat "sample_ratio" .Values.telemetry.sampleRatio }}
{{- with .Values.telemetry.otlp }}{{ $_ := set $telemetry "otlp" . }}{{ end }}
{{- range $kind := list "metrics" "logs" }}{{ if get $.Values.telemetry $kind }}{{ $_ := set $telemetry $kind true }}{{ end }}{{ end }}
{{- $_ := set $config "telemetry" $telemetry }}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.config)) }}
{{- end }}

{{- define "packetboat.domains" -}}
{{- $namespaces := .Values.domains.namespaces }}
{{- if eq (len $namespaces) 1 -}}
kubernetes: {namespace: {{ first $namespaces }}}
{{- else if $namespaces -}}
kubernetes: {namespaces: {{ toJson $namespaces }}}
{{- else -}}
kubernetes: {}
{{- end }}
{{- end }}

{{- define "packetboat.listeners" -}}
{{- $bind := include "packetboat.bind" . }}
- {name: mx, kind: mx, address: "{{ $bind }}:2525"}
{{- if .Values.edge.submission.enabled }}
- {name: submission, kind: submission, address: "{{ $bind }}:5587"}
- {name: submissions, kind: submission, address: "{{ $bind }}:4465", tls: implicit}
{{- end }}
{{- with .Values.edge.proxyProtocol.trusted }}
- {name: mx-proxied, kind: mx, address: "{{ $bind }}:12525", proxy_protocol: {trusted: {{ toJson . }}}}
{{- if $.Values.edge.submission.enabled }}
- {name: submission-proxied, kind: submission, address: "{{ $bind }}:10587", proxy_protocol: {trusted: {{ toJson . }}}}
- {name: submissions-proxied, kind: submission, address: "{{ $bind }}:10465", tls: implicit, proxy_protocol: {trusted: {{ toJson . }}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "packetboat.queue" -}}
{{- $redis := .Values.redis }}
backend: redis
redis:
  shards: {{ $redis.shards }}
  replicas: {{ $redis.replicas }}
  {{- if $redis.embedded.enabled }}
  url: redis://{{ include "packetboat.fullname" . }}-redis:6379
  # As long as the startup probe waits: on a first day Redis waits for its volume, and its image.
  startup_timeout: 110s
  {{- else if $redis.sentinel.urls }}
  sentinel:
    urls: {{ toJson $redis.sentinel.urls }}
    master: {{ $redis.sentinel.master }}
    {{- if $redis.sentinel.tls }}
    primary: rediss://primary
    {{- end }}
  {{- else if $redis.cluster }}
  cluster: {{ toJson $redis.cluster }}
  {{- else if $redis.url }}
  url: {{ $redis.url | quote }}
  {{- end }}
  {{- if $redis.tls.secret }}
  tls:
    ca_file: /redis-tls/ca.crt
    {{- if $redis.tls.clientCertificate }}
    certificate_file: /redis-tls/tls.crt
    key_file: /redis-tls/tls.key
    {{- end }}
  {{- end }}
{{- with .Values.spool.url }}
spool:
  object_store: {{ toJson (mergeOverwrite (dict "url" . "options" $.Values.spool.options) (deepCopy $.Values.spool.settings)) }}
{{- end }}
{{- end }}

{{/* The environment of the delivery service: how it logs in at Redis. Kubernetes puts the values of variables that stand
before in the place of $(NAME). */}}
{{- define "packetboat.redisEnvironment" -}}
{{- $redis := .Values.redis }}
{{- if $redis.embedded.enabled }}
- name: REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "packetboat.redisSecret" . }}, key: password}}
- name: PACKETBOAT_QUEUE__REDIS__URL
  value: redis://delivery:$(REDIS_PASSWORD)@{{ include "packetboat.fullname" . }}-redis:6379
{{- else if $redis.existingSecret }}
- name: PACKETBOAT_QUEUE__REDIS__URL
  valueFrom: {secretKeyRef: {name: {{ $redis.existingSecret }}, key: url}}
{{- else }}
{{- $user := printf "://%s:$(REDIS_PASSWORD)@" $redis.auth.username }}
{{- with $redis.auth.existingSecret }}
- name: REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $redis.auth.passwordKey }}}}
{{- if $redis.sentinel.urls }}
- name: PACKETBOAT_QUEUE__REDIS__SENTINEL__PRIMARY
  value: {{ printf "%s%sprimary" (ternary "rediss" "redis" $redis.sentinel.tls) $user | quote }}
{{- else if $redis.cluster }}
- name: PACKETBOAT_QUEUE__REDIS__CLUSTER
  value: {{ toRawJson $redis.cluster | replace "://" $user | quote }}
{{- else }}
- name: PACKETBOAT_QUEUE__REDIS__URL
  value: {{ $redis.url | replace "://" $user | quote }}
{{- end }}
{{- end }}
{{- with $redis.auth.sentinelSecret }}
- name: SENTINEL_USERNAME
  valueFrom: {secretKeyRef: {name: {{ . }}, key: username}}
- name: SENTINEL_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ . }}, key: password}}
- name: PACKETBOAT_QUEUE__REDIS__SENTINEL__URLS
  value: {{ toRawJson $redis.sentinel.urls | replace "://" "://$(SENTINEL_USERNAME):$(SENTINEL_PASSWORD)@" | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* What cannot be told by the schema: settings that need each other. */}}
{{- define "packetboat.check" -}}
{{- $redis := .Values.redis }}
{{- $places := list }}
{{- if $redis.embedded.enabled }}{{ $places = append $places "redis.embedded.enabled" }}{{ end }}
{{- if or $redis.url $redis.existingSecret }}{{ $places = append $places "redis.url or redis.existingSecret" }}{{ end }}
{{- if and $redis.url $redis.existingSecret }}
{{- fail "the Secret holds the whole URL of Redis: keep one of redis.url and redis.existingSecret" }}
{{- end }}
{{- if $redis.cluster }}{{ $places = append $places "redis.cluster" }}{{ end }}
{{- if $redis.sentinel.urls }}{{ $places = append $places "redis.sentinel" }}{{ end }}
{{- $own := dig "queue" "redis" dict .Values.config }}
{{- if and (not $places) (not $own) }}
{{- fail "no Redis: set redis.url or redis.existingSecret, redis.cluster, redis.sentinel, or redis.embedded.enabled" }}
{{- end }}
{{- if gt (len $places) 1 }}
{{- fail (printf "the queue is in one Redis: keep one of %s" (join " and " $places)) }}
{{- end }}
{{- if and $redis.sentinel.urls (not $redis.sentinel.master) }}
{{- fail "redis.sentinel.master is missing: the name under which the Sentinels know the primary" }}
{{- end }}
{{- if and $redis.embedded.enabled (not $redis.embedded.existingSecret) (not .Values.operator.enabled) }}
{{- fail "without the operator nobody makes the password of the embedded Redis: set redis.embedded.existingSecret" }}
{{- end }}
{{- $peer := .Values.peerTLS }}
{{- $given := list }}
{{- range $role, $secret := $peer.existingSecrets }}{{ if $secret }}{{ $given = append $given $role }}{{ end }}{{ end }}
{{- if and $given $peer.certManager.enabled }}
{{- fail "certificates between services are cert-manager's or yours: keep one of peerTLS.certManager and peerTLS.existingSecrets" }}
{{- end }}
{{- if and $peer.certManager.enabled (not $peer.certManager.issuerRef.name) }}
{{- fail "peerTLS.certManager.issuerRef.name is missing: the issuer that cert-manager asks" }}
{{- end }}
{{- if has (len $given) (list 1 2) }}
{{- fail "peerTLS.existingSecrets needs a Secret for each of edge, verifier and delivery" }}
{{- end }}
{{- range $key := list "edge" "verifier" "delivery" "mtaSts" }}
{{- $role := get $.Values $key }}
{{- if ge (int $role.preStopSeconds) (int $role.terminationGracePeriodSeconds) }}
{{- fail (printf "%s.preStopSeconds is within %s.terminationGracePeriodSeconds, and has to leave something of it: a pod would be killed before it is told to stop" $key $key) }}
{{- end }}
{{- end }}
{{- if and .Values.delivery.keda.enabled .Values.delivery.autoscaling.enabled }}
{{- fail "delivery.keda makes a HorizontalPodAutoscaler itself: keep one of delivery.keda.enabled and delivery.autoscaling.enabled" }}
{{- end }}
{{- if and .Values.delivery.keda.enabled (not .Values.delivery.keda.prometheus.serverAddress) }}
{{- fail "delivery.keda needs delivery.keda.prometheus.serverAddress" }}
{{- end }}
{{- if and .Values.domains.clusterWide .Values.domains.namespaces }}
{{- fail "domains.clusterWide is for all namespaces, domains.namespaces for some: keep one" }}
{{- end }}
{{- with .Values.mtaSts }}
{{- if and .enabled (not .plain) (not .certificates) }}
{{- fail "mtaSts.certificates is missing: Secrets with certificates for mta-sts.DOMAIN; or set mtaSts.plain behind an Ingress that has them" }}
{{- end }}
{{- if and .enabled .plain .certificates }}
{{- fail "mtaSts.plain is without certificates: keep one of mtaSts.plain and mtaSts.certificates" }}
{{- end }}
{{- if and .ingress.enabled (not .plain) }}
{{- fail "mtaSts.ingress is for mtaSts.plain: an Ingress ends TLS" }}
{{- end }}
{{- if and .enabled (or .ingress.enabled $.Values.gateway.mtaSts) (not .hosts) }}
{{- fail "mtaSts.hosts is missing: the hosts that the Ingress or route is for" }}
{{- end }}
{{- end }}
{{- $proxied := .Values.edge.proxyProtocol }}
{{- if and (or $proxied.service.enabled .Values.gateway.proxyProtocol) (not $proxied.trusted) }}
{{- fail "there are no PROXY listeners: list the networks of the proxies in edge.proxyProtocol.trusted" }}
{{- end }}
{{- if and (or .Values.gateway.submission .Values.gateway.submissions) (not .Values.edge.submission.enabled) }}
{{- fail "gateway.submission and gateway.submissions need edge.submission.enabled" }}
{{- end }}
{{- end }}
