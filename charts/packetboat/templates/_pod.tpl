{{/* A container's security: nothing that it does not need. */}}
{{- define "packetboat.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "packetboat.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Over nodes and zones, as far as there are several: root, role. */}}
{{- define "packetboat.spread" -}}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels: {{- include "packetboat.selector" $ | nindent 6 }}
{{- end }}
{{- end }}

{{/* Where pods may run: what a component's values say. */}}
{{- define "packetboat.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The environment of a role: root, role, values. What extraEnv names is given once, as it says, in its own place, so
that what refers to it still finds it. */}}
{{- define "packetboat.environment" -}}
{{- $extra := dict }}
{{- range .values.extraEnv }}{{ $_ := set $extra .name . }}{{ end }}
{{- $all := list }}
{{- range include "packetboat.ownEnvironment" . | fromYamlArray }}
{{- $all = append $all (get $extra .name | default .) }}
{{- $_ := unset $extra .name }}
{{- end }}
{{- range .values.extraEnv }}
{{- if hasKey $extra .name }}{{ $all = append $all . }}{{ end }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{- define "packetboat.ownEnvironment" -}}
{{- /* For commands by `kubectl exec`, too. */}}
- {name: PACKETBOAT_CONFIG, value: /etc/packetboat/packetboat.yaml}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
{{- /* By these a collector tells the pods of a role apart. */}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: service.instance.id=$(POD_UID),k8s.pod.name=$(POD_NAME),k8s.pod.uid=$(POD_UID),k8s.namespace.name=$(POD_NAMESPACE)
{{- $domains := .root.Values.domains }}
{{- if not (or $domains.clusterWide $domains.namespaces) }}
- name: PACKETBOAT_DOMAINS__KUBERNETES__NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- end }}
{{- if eq .role "operator" }}
- name: PACKETBOAT_OPERATOR__LEASE_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- end }}
{{- if eq .role "delivery" }}
- name: PACKETBOAT_DELIVERY__WORKER
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- include "packetboat.redisEnvironment" .root }}
{{- end }}
{{- end }}

{{/* The volumes of a role: those of the mounts below. */}}
{{- define "packetboat.volumes" -}}
{{- $peer := include "packetboat.peerSecret" . }}
- {name: config, configMap: {name: {{ include "packetboat.fullname" .root }}}}
- {name: data, emptyDir: {}}
{{- if and (eq .role "edge") .root.Values.edge.tlsSecret }}
- {name: tls, secret: {secretName: {{ .root.Values.edge.tlsSecret }}, defaultMode: 288}}
{{- end }}
{{- if $peer }}
- name: peer
  secret:
    secretName: {{ $peer }}
    defaultMode: 288
    # Until somebody has made them, the pod waits.
    items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}, {key: ca.crt, path: ca.crt}]
{{- end }}
{{- if eq .role "mta-sts" }}
{{- range $index, $secret := .values.certificates }}
- {name: certificate-{{ $index }}, secret: {secretName: {{ $secret }}, defaultMode: 288}}
{{- end }}
{{- end }}
{{- if and (eq .role "delivery") .root.Values.redis.tls.secret }}
- {name: redis-tls, secret: {secretName: {{ .root.Values.redis.tls.secret }}, defaultMode: 288}}
{{- end }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "packetboat.mounts" -}}
{{- $peer := include "packetboat.peerSecret" . }}
- {name: config, mountPath: /etc/packetboat, readOnly: true}
- {name: data, mountPath: /data}
{{- if and (eq .role "edge") .root.Values.edge.tlsSecret }}
- {name: tls, mountPath: /tls, readOnly: true}
{{- end }}
{{- if $peer }}
- {name: peer, mountPath: /peer, readOnly: true}
{{- end }}
{{- if eq .role "mta-sts" }}
{{- range $index, $secret := .values.certificates }}
- {name: certificate-{{ $index }}, mountPath: /mta-sts/{{ $secret }}, readOnly: true}
{{- end }}
{{- end }}
{{- if and (eq .role "delivery") .root.Values.redis.tls.secret }}
- {name: redis-tls, mountPath: /redis-tls, readOnly: true}
{{- end }}
{{- with .values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A role as a Deployment with its PodDisruptionBudget: root, role, values, ports (name to number). */}}
{{- define "packetboat.deployment" -}}
{{- $name := include "packetboat.fullname" .root }}
{{- $scaled := or (dig "autoscaling" "enabled" false .values) (dig "keda" "enabled" false .values) }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}-{{ .role }}
  labels: {{- include "packetboat.labels" . | nindent 4 }}
spec:
  {{- if not $scaled }}
  replicas: {{ .values.replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  strategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector:
    matchLabels: {{- include "packetboat.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "packetboat.labelsWith" (dict "root" .root "role" .role "more" .values.podLabels) | nindent 8 }}
      {{- $checksum := dict "checksum/config" (include "packetboat.config" .root | sha256sum) }}
      annotations: {{- toYaml (merge $checksum (deepCopy .values.podAnnotations)) | nindent 8 }}
    spec:
      serviceAccountName: {{ $name }}-{{ .role }}
      automountServiceAccountToken: true
      enableServiceLinks: false
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with include "packetboat.placement" .values }}
      {{- . | nindent 6 }}
      {{- end }}
      terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
      securityContext: {{- include "packetboat.podSecurity" .root | nindent 8 }}
      topologySpreadConstraints: {{- include "packetboat.spread" . | trim | nindent 8 }}
      containers:
        - name: {{ .role }}
          image: {{ include "packetboat.image" .root | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: [{{ .role }}]
          securityContext: {{- include "packetboat.containerSecurity" .root | nindent 12 }}
          env: {{- include "packetboat.environment" . | nindent 12 }}
          {{- if and (eq .role "delivery") .root.Values.spool.existingSecret }}
          envFrom: [{secretRef: {name: {{ .root.Values.spool.existingSecret }}}}]
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
          {{- with .values.preStopSeconds }}
          lifecycle:
            preStop: {sleep: {seconds: {{ . }}}}
          {{- end }}
          resources: {{- toYaml .values.resources | nindent 12 }}
          volumeMounts: {{- include "packetboat.mounts" . | trim | nindent 12 }}
      volumes: {{- include "packetboat.volumes" . | trim | nindent 8 }}
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

{{/* A headless Service for gRPC: each client sees every pod, and spreads its calls over them. root, role, port. */}}
{{- define "packetboat.headless" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "packetboat.fullname" .root }}-{{ .role }}
  labels: {{- include "packetboat.labels" . | nindent 4 }}
spec:
  clusterIP: None
  {{- with include "packetboat.families" .root | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  selector: {{- include "packetboat.selector" . | nindent 4 }}
  ports:
    - {name: grpc, port: {{ .port }}, targetPort: grpc}
{{- end }}
