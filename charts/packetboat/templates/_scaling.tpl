{{/* Pods go one by one: each hands back its leases, or ends its sessions. */}}
{{- define "packetboat.scaleBehavior" -}}
scaleDown:
  stabilizationWindowSeconds: 300
  policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end }}

{{/* A role's HorizontalPodAutoscaler: root, role, values. */}}
{{- define "packetboat.autoscaler" -}}
{{- with .values.autoscaling }}
{{- if .enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "packetboat.fullname" $.root }}-{{ $.role }}
  labels: {{- include "packetboat.labels" $ | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "packetboat.fullname" $.root }}-{{ $.role }}}
  minReplicas: {{ .minReplicas }}
  maxReplicas: {{ .maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ .cpu }}}}
    {{- if dig "queueAge" "enabled" false . }}
    - type: External
      external:
        metric:
          name: {{ .queueAge.metric }}
          selector: {matchLabels: {namespace: {{ $.root.Release.Namespace }}}}
        target: {type: Value, value: {{ .queueAge.target | quote }}}
    {{- end }}
  behavior: {{- include "packetboat.scaleBehavior" . | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}
