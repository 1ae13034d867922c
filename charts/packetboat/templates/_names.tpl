{{- define "packetboat.fullname" -}}
{{- if contains "packetboat" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-packetboat" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* What selects the pods of a role: root, role. */}}
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

{{/* These labels, and those that the values add: root, role, more. What selects pods stays as it is. */}}
{{- define "packetboat.labelsWith" -}}
{{ toYaml (mergeOverwrite (include "packetboat.labels" . | fromYaml) (deepCopy .more) (include "packetboat.selector" . | fromYaml)) }}
{{- end }}

{{/* The address that listeners listen on, as it stands before a port. */}}
{{- define "packetboat.bind" -}}
{{- ternary (printf "[%s]" .Values.bindAddress) .Values.bindAddress (contains ":" .Values.bindAddress) }}
{{- end }}

{{/* The port of a URL: url, default. */}}
{{- define "packetboat.port" -}}
{{- regexFind ":[0-9]+$" (urlParse .url).host | trimPrefix ":" | default .default }}
{{- end }}

{{/* The addresses of a Service: IPv4, IPv6 or both. */}}
{{- define "packetboat.families" -}}
{{- with .Values.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.ipFamilies }}
ipFamilies: {{ toJson . }}
{{- end }}
{{- end }}

{{/* How a Service is reached from outside: root, service (its values). */}}
{{- define "packetboat.exposure" -}}
{{- $service := .service -}}
type: {{ $service.type }}
{{- include "packetboat.families" .root }}
{{- if ne $service.type "ClusterIP" }}
externalTrafficPolicy: {{ $service.externalTrafficPolicy }}
{{- end }}
{{- if eq $service.type "LoadBalancer" }}
{{- with $service.loadBalancerIP }}
loadBalancerIP: {{ . }}
{{- end }}
{{- with $service.loadBalancerClass }}
loadBalancerClass: {{ . }}
{{- end }}
{{- with $service.loadBalancerSourceRanges }}
loadBalancerSourceRanges: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The namespaces whose MailDomains are followed, as JSON. */}}
{{- define "packetboat.namespaces" -}}
{{ toJson (.Values.domains.namespaces | default (list .Release.Namespace)) }}
{{- end }}

{{- define "packetboat.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Who makes the certificates between services: existing (they are there), cert-manager or operator; nobody. */}}
{{- define "packetboat.peerMaker" -}}
{{- $peer := .Values.peerTLS }}
{{- if $peer.existingSecrets.edge }}existing
{{- else if $peer.certManager.enabled }}cert-manager
{{- else if and $peer.operator.enabled .Values.operator.enabled }}operator
{{- end }}
{{- end }}

{{/* The Secret with the certificate that a role shows to the other services: root, role. Nothing without TLS. */}}
{{- define "packetboat.peerSecret" -}}
{{- $maker := include "packetboat.peerMaker" .root | trim }}
{{- if or (not $maker) (not (has .role (list "edge" "verifier" "delivery"))) }}
{{- else if eq $maker "existing" }}{{ get .root.Values.peerTLS.existingSecrets .role }}
{{- else }}{{ include "packetboat.fullname" .root }}-peer-{{ .role }}
{{- end }}
{{- end }}

{{/* The values of a role. */}}
{{- define "packetboat.valuesKey" -}}
{{- ternary "mtaSts" . (eq . "mta-sts") }}
{{- end }}

{{/* The Secret with the password of the embedded Redis. */}}
{{- define "packetboat.redisSecret" -}}
{{ .Values.redis.embedded.existingSecret | default (printf "%s-redis-password" (include "packetboat.fullname" .)) }}
{{- end }}
