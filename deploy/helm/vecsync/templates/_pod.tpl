{{/* A pod of one role. Called with root, component and volume: how its data directory is kept ("" for no longer than the pod). */}}
{{- define "vecsync.pod" -}}
{{- $values := .root.Values -}}
{{- $own := index $values .component -}}
{{- $database := or (has .component (list "single" "capture")) (and (eq .component "serve") $values.serve.verify) -}}
{{- $kafka := ne .component "single" -}}
{{- $qdrant := and $values.qdrant.host (has .component (list "single" "index" "serve")) -}}
{{- $scheme := ternary "HTTPS" "HTTP" (ne $values.tls.secretName "") -}}
metadata:
  labels:
    {{- include "vecsync.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
  annotations:
    checksum/pipeline: {{ $values.pipeline | sha256sum }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "vecsync.serviceAccount" .root }}
  automountServiceAccountToken: false
  # Kubernetes would name this release's services in settings of ours.
  enableServiceLinks: false
  # It drains for 15 s at most.
  terminationGracePeriodSeconds: 30
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  # A machine that goes takes as few of them along as can be.
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "vecsync.selector" .root | nindent 10 }}
          app.kubernetes.io/component: {{ .component }}
  {{- with $values.tls.hostname }}
  hostAliases:
    - ip: 127.0.0.1
      hostnames: [{{ . | quote }}]
  {{- end }}
  containers:
    - name: vecsync
      image: {{ if $values.image.digest }}{{ printf "%s@%s" $values.image.repository $values.image.digest }}{{ else }}{{ printf "%s:%s" $values.image.repository ($values.image.tag | default .root.Chart.AppVersion) }}{{ end }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args: [run{{ if ne .component "single" }}, --role, {{ .component }}{{ end }}]
      env:
        {{- include "vecsync.env" (dict "root" .root "database" $database "kafka" $kafka "qdrant" $qdrant) | nindent 8 }}
      ports:
        - {name: http, containerPort: 8000, protocol: TCP}
      startupProbe:
        httpGet: {path: {{ ternary "/health/started/" "/health/live/" (eq .component "serve") }}, port: http, scheme: {{ $scheme }}}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ if eq .component "serve" }}{{ mul $values.serve.startupMinutes 12 }}{{ else }}120{{ end }}
      readinessProbe:
        httpGet: {path: /health/ready/, port: http, scheme: {{ $scheme }}}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 3
      livenessProbe:
        httpGet: {path: /health/live/, port: http, scheme: {{ $scheme }}}
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 6
      resources:
        {{- toYaml $own.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: data, mountPath: /data}
        - {name: tmp, mountPath: /tmp}
        - {name: pipeline, mountPath: /etc/vecsync/pipeline.toml, subPath: pipeline.toml, readOnly: true}
        {{- if and $database $values.source.caSecret.name }}
        - {name: source-ca, mountPath: /run/secrets/source, readOnly: true}
        {{- end }}
        {{- if and $kafka $values.kafka.caSecret.name }}
        - {name: kafka-ca, mountPath: /run/secrets/kafka, readOnly: true}
        {{- end }}
        {{- if $values.apiKeysSecret.name }}
        - {name: api-keys, mountPath: /run/secrets/api-keys, readOnly: true}
        {{- end }}
        {{- if $values.tls.secretName }}
        - {name: tls, mountPath: /run/secrets/tls, readOnly: true}
        {{- end }}
  volumes:
    {{- if not .volume }}
    - name: data
      emptyDir: {}
    {{- end }}
    - name: tmp
      emptyDir: {}
    - name: pipeline
      configMap:
        name: {{ include "vecsync.name" .root }}
    {{- if $database }}
    {{- include "vecsync.secretVolume" (list "source-ca" $values.source.caSecret.name $values.source.caSecret.key "ca.crt") | nindent 4 }}
    {{- end }}
    {{- if $kafka }}
    {{- include "vecsync.secretVolume" (list "kafka-ca" $values.kafka.caSecret.name $values.kafka.caSecret.key "ca.crt") | nindent 4 }}
    {{- end }}
    {{- include "vecsync.secretVolume" (list "api-keys" $values.apiKeysSecret.name $values.apiKeysSecret.key "keys") | nindent 4 }}
    {{- with $values.tls.secretName }}
    - name: tls
      secret: {secretName: {{ . }}, defaultMode: 0440}
    {{- end }}
{{- end }}

{{/* One key of a Secret as a file that our group may read, where a Secret is named: volume, Secret, key, file. */}}
{{- define "vecsync.secretVolume" -}}
{{- if index . 1 -}}
- name: {{ index . 0 }}
  secret:
    secretName: {{ index . 1 }}
    defaultMode: 0440
    items: [{key: {{ index . 2 }}, path: {{ index . 3 }}}]
{{- end }}
{{- end }}

{{/* A setting whose value a Secret has: name, Secret, key. */}}
{{- define "vecsync.fromSecret" -}}
{{- if index . 1 }}
- name: {{ index . 0 }}
  valueFrom: {secretKeyRef: {name: {{ index . 1 }}, key: {{ index . 2 }}}}
{{- end }}
{{- end }}

{{/* A setting that is given: name, value. */}}
{{- define "vecsync.plain" -}}
{{- if index . 1 }}
- {name: {{ index . 0 }}, value: {{ index . 1 | quote }}}
{{- end }}
{{- end }}

{{/* The settings of a pod that has to do with the database, the brokers, Qdrant. */}}
{{- define "vecsync.env" -}}
{{- $values := .root.Values -}}
# As the image has them.
- {name: VECSYNC_DATA_DIR, value: /data}
- {name: VECSYNC_LISTEN, value: "0.0.0.0:8000"}
- {name: VECSYNC_PIPELINE, value: /etc/vecsync/pipeline.toml}
- {name: VECSYNC_LOG_FORMAT, value: json}
{{- with $values.source }}{{ if $.database }}
{{- include "vecsync.fromSecret" (list "DATABASE_URL" .urlSecret.name .urlSecret.key) }}
{{- include "vecsync.fromSecret" (list "PGPASSWORD" .passwordSecret.name .passwordSecret.key) }}
{{- include "vecsync.plain" (list "PGSSLROOTCERT" (ternary "/run/secrets/source/ca.crt" "" (ne .caSecret.name ""))) }}
{{- end }}{{ end }}
{{- with $values.kafka }}{{ if $.kafka }}
{{- include "vecsync.plain" (list "KAFKA_BROKERS" .brokers) }}
{{- include "vecsync.plain" (list "KAFKA_SECURITY_PROTOCOL" .securityProtocol) }}
{{- include "vecsync.plain" (list "KAFKA_SASL_MECHANISM" .saslMechanism) }}
{{- include "vecsync.fromSecret" (list "KAFKA_SASL_USERNAME" .loginSecret.name .loginSecret.usernameKey) }}
{{- include "vecsync.fromSecret" (list "KAFKA_SASL_PASSWORD" .loginSecret.name .loginSecret.passwordKey) }}
{{- include "vecsync.plain" (list "KAFKA_SSL_CA_LOCATION" (ternary "/run/secrets/kafka/ca.crt" "" (ne .caSecret.name ""))) }}
- {name: VECSYNC_TOPIC_PARTITIONS, value: {{ .partitions | quote }}}
- {name: VECSYNC_TOPIC_REPLICATION, value: {{ .replication | quote }}}
{{- end }}{{ end }}
{{- with $values.qdrant }}{{ if $.qdrant }}
{{- include "vecsync.plain" (list "QDRANT_HOST" .host) }}
- {name: QDRANT_PORT, value: {{ .port | quote }}}
- {name: QDRANT_GRPC_PORT, value: {{ .grpcPort | quote }}}
- {name: QDRANT_TLS, value: {{ .tls | quote }}}
{{- include "vecsync.fromSecret" (list "QDRANT_API_KEY" .keySecret.name .keySecret.key) }}
{{- end }}{{ end }}
{{- include "vecsync.plain" (list "VECSYNC_API_KEYS_FILE" (ternary "/run/secrets/api-keys/keys" "" (ne $values.apiKeysSecret.name ""))) }}
{{- with $values.tls }}{{ if .secretName }}
- {name: VECSYNC_TLS_CERT, value: /run/secrets/tls/tls.crt}
- {name: VECSYNC_TLS_KEY, value: /run/secrets/tls/tls.key}
{{- with .hostname }}
- {name: VECSYNC_URL, value: {{ printf "https://%s:8000" . | quote }}}
{{- end }}
{{- end }}{{ end }}
{{- range $name, $value := $values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
