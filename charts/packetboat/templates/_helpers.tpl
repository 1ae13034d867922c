{{- define "packetboat.fullname" -}}
{{- if contains "packetboat" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-packetboat" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "packetboat.selector" -}}
app.kubernetes.io/name: packetboat
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "packetboat.labels" -}}
{{ include "packetboat.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "packetboat.domainsNamespace" -}}
{{ .Values.domains.namespace | default .Release.Namespace }}
{{- end }}

{{- define "packetboat.peerSecret" -}}
{{- if .Values.peerTLS.certManager.enabled }}{{ include "packetboat.fullname" . }}-peer{{ else }}{{ .Values.peerTLS.existingSecret }}{{ end }}
{{- end }}

{{/* The configuration file, the same for all roles: each takes from it what it needs. */}}
{{- define "packetboat.config" -}}
{{- $name := include "packetboat.fullname" . }}
{{- $peer := include "packetboat.peerSecret" . }}
{{- $scheme := ternary "https" "http" (ne $peer "") }}
{{- $config := dict
  "hostname" .Values.hostname
  "data_dir" "/data"
  "admin" (dict "address" "0.0.0.0:8025")
  "verifier" (dict "endpoint" (printf "%s://%s-verifier:9091" $scheme $name) "listen" "0.0.0.0:9091")
  "delivery" (dict "endpoint" (printf "%s://%s-delivery:9092" $scheme $name) "listen" "0.0.0.0:9092")
}}
{{- $kubernetes := dict }}
{{- if not .Values.domains.clusterWide }}{{ $_ := set $kubernetes "namespace" (include "packetboat.domainsNamespace" .) }}{{ end }}
{{- $_ := set $config "domains" (dict "kubernetes" $kubernetes) }}
{{- $_ := set $config "operator" (dict "lease_namespace" .Release.Namespace "lease_name" (printf "%s-operator" $name)) }}
{{- with .Values.dns.servers }}{{ $_ := set $config "dns" (dict "servers" .) }}{{ end }}
{{- $listeners := list (dict "name" "mx" "kind" "mx" "address" "0.0.0.0:2525") }}
{{- if .Values.edge.submission.enabled }}
{{- $listeners = append $listeners (dict "name" "submission" "kind" "submission" "address" "0.0.0.0:5587") }}
{{- $listeners = append $listeners (dict "name" "submissions" "kind" "submission" "address" "0.0.0.0:4465" "tls" "implicit") }}
{{- end }}
{{- with .Values.edge.proxyProtocol.trusted }}
{{- $listeners = append $listeners (dict "name" "mx-proxied" "kind" "mx" "address" "0.0.0.0:12525" "proxy_protocol" (dict "trusted" .)) }}
{{- end }}
{{- $_ := set $config "listeners" $listeners }}
{{- $tls := dict }}
{{- if .Values.edge.tlsSecret }}{{ $_ := set $tls "certificate" "/tls/tls.crt" }}{{ $_ := set $tls "key" "/tls/tls.key" }}{{ end }}
{{- if $peer }}{{ $_ := set $tls "peer" (dict "certificate" "/peer/tls.crt" "key" "/peer/tls.key" "authority" "/peer/ca.crt") }}{{ end }}
{{- if $tls }}{{ $_ := set $config "tls" $tls }}{{ end }}
{{- $redis := dict "shards" .Values.redis.shards "replicas" .Values.redis.replicas }}
{{- $_ := set $redis "url" (ternary (printf "redis://%s-redis:6379" $name) .Values.redis.url .Values.redis.embedded.enabled) }}
{{- $_ := set $config "queue" (dict "backend" "redis" "redis" $redis) }}
{{- $telemetry := dict "log_format" .Values.telemetry.logFormat }}
{{- with .Values.telemetry.otlp }}{{ $_ := set $telemetry "otlp" . }}{{ end }}
{{- $_ := set $config "telemetry" $telemetry }}
{{- toYaml (mergeOverwrite $config .Values.config) }}
{{- end }}

{{/* A container's security: nothing that it does not need. */}}
{{- define "packetboat.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "packetboat.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* A role as a Deployment: root, role, values, ports (name to number), token (needs the Kubernetes API). */}}
{{- define "packetboat.deployment" -}}
{{- $name := include "packetboat.fullname" .root }}
{{- $peer := include "packetboat.peerSecret" .root }}
{{- $grpc := or (eq .role "edge") (eq .role "verifier") (eq .role "delivery") }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}-{{ .role }}
  labels: {{- include "packetboat.labels" . | nindent 4 }}
spec:
  {{- $scaled := and (hasKey .values "autoscaling") .values.autoscaling.enabled }}
  {{- if not $scaled }}
  replicas: {{ .values.replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  strategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector:
    matchLabels: {{- include "packetboat.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "packetboat.labels" . | nindent 8 }}
      annotations:
        checksum/config: {{ include "packetboat.config" .root | sha256sum }}
    spec:
      serviceAccountName: {{ $name }}-{{ .role }}
      automountServiceAccountToken: true
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
      securityContext: {{- include "packetboat.podSecurity" .root | nindent 8 }}
      topologySpreadConstraints:
        {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
        - maxSkew: 1
          topologyKey: {{ $key }}
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "packetboat.selector" $ | nindent 14 }}
        {{- end }}
      containers:
        - name: {{ .role }}
          image: "{{ .root.Values.image.repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}"
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: [{{ .role }}, --config, /etc/packetboat/packetboat.yaml]
          securityContext: {{- include "packetboat.containerSecurity" .root | nindent 12 }}
          {{- if eq .role "delivery" }}
          env:
            - name: PACKETBOAT_DELIVERY__WORKER
              valueFrom: {fieldRef: {fieldPath: metadata.name}}
            {{- with .root.Values.redis.existingSecret }}
            - name: PACKETBOAT_QUEUE__REDIS__URL
              valueFrom: {secretKeyRef: {name: {{ . }}, key: url}}
            {{- end }}
          {{- end }}
          ports:
            - {name: admin, containerPort: 8025}
            {{- range $port, $number := .ports }}
            - {name: {{ $port }}, containerPort: {{ $number }}}
            {{- end }}
          startupProbe:
            httpGet: {path: /healthz, port: admin}
            periodSeconds: 2
            failureThreshold: 60
          readinessProbe:
            httpGet: {path: /readyz, port: admin}
            periodSeconds: 5
            timeoutSeconds: 3
          livenessProbe:
            httpGet: {path: /healthz, port: admin}
            periodSeconds: 10
            timeoutSeconds: 3
          {{- if hasKey .values "preStopSeconds" }}
          lifecycle:
            preStop: {sleep: {seconds: {{ .values.preStopSeconds }}}}
          {{- end }}
          resources: {{- toYaml .values.resources | nindent 12 }}
          volumeMounts:
            - {name: config, mountPath: /etc/packetboat, readOnly: true}
            - {name: data, mountPath: /data}
            {{- if and (eq .role "edge") .root.Values.edge.tlsSecret }}
            - {name: tls, mountPath: /tls, readOnly: true}
            {{- end }}
            {{- if and $peer $grpc }}
            - {name: peer, mountPath: /peer, readOnly: true}
            {{- end }}
      volumes:
        - {name: config, configMap: {name: {{ $name }}}}
        - {name: data, emptyDir: {}}
        {{- if and (eq .role "edge") .root.Values.edge.tlsSecret }}
        - {name: tls, secret: {secretName: {{ .root.Values.edge.tlsSecret }}, defaultMode: 288}}
        {{- end }}
        {{- if and $peer $grpc }}
        - {name: peer, secret: {secretName: {{ $peer }}, defaultMode: 288}}
        {{- end }}
      {{- with .values.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
{{- if $scaled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ $name }}-{{ .role }}
  labels: {{- include "packetboat.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $name }}-{{ .role }}}
  minReplicas: {{ .values.autoscaling.minReplicas }}
  maxReplicas: {{ .values.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ .values.autoscaling.cpu }}}}
{{- end }}
{{- if .root.Values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}-{{ .role }}
  labels: {{- include "packetboat.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "packetboat.selector" . | nindent 6 }}
{{- end }}
{{- end }}
