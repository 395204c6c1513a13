{{/* Names and labels. A name stays short enough for what Kubernetes hangs on it. */}}
{{- define "vecsync.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "vecsync.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vecsync.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "vecsync.selector" . }}
{{- end }}

{{- define "vecsync.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "vecsync.name" .) }}
{{- end }}

{{/* The roles that have pods: one does everything without brokers. */}}
{{- define "vecsync.components" -}}
{{- if not .Values.kafka.brokers }}single{{ else }}capture embed{{ if .Values.qdrant.host }} index{{ end }} serve{{ end }}
{{- end }}

{{/* Who answers searches. */}}
{{- define "vecsync.server" -}}
{{ if .Values.kafka.brokers }}serve{{ else }}single{{ end }}
{{- end }}
