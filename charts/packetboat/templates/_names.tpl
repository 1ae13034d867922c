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
