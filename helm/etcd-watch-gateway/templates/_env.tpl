{{- /* Whether the gateway has workers: "set" by settings.workers or extraEnv, or by a CPU "limit", as many as it allows. */ -}}
{{- define "gateway.hasWorkers" -}}
{{- $settings := .Values.settings | default dict }}
{{- if not (kindIs "invalid" $settings.workers) }}
{{- if ne (toString $settings.workers) "1" }}set{{ end }}
{{- else if dig "limits" "cpu" "" (.Values.resources | default dict) }}limit
{{- else }}
{{- range .Values.extraEnv }}{{ if eq (upper .name) "GATEWAY_WORKERS" }}set{{ end }}{{ end }}
{{- end }}
{{- end -}}

{{- /* The environment that the chart sets. extraEnv must not have any of these names. */ -}}
{{- define "gateway.env" -}}
- name: GATEWAY_HOST
  value: {{ .Values.host | quote }}
- name: GATEWAY_PORT
  value: "8080"
{{- if gt (int .Values.adminPort) 0 }}
- name: GATEWAY_ADMIN_PORT
  value: {{ int .Values.adminPort | quote }}
{{- end }}
{{- if .Values.upstream.urls }}
- name: GATEWAY_UPSTREAM
  value: {{ join "," .Values.upstream.urls | quote }}
{{- with .Values.upstream.caSecret }}
- name: GATEWAY_UPSTREAM_CACERT
  value: /etc/etcd-watch-gateway/upstream-ca/ca.crt
{{- end }}
{{- with .Values.upstream.clientCertificateSecret }}
- name: GATEWAY_UPSTREAM_CERT
  value: /etc/etcd-watch-gateway/upstream-tls/tls.crt
- name: GATEWAY_UPSTREAM_KEY
  value: /etc/etcd-watch-gateway/upstream-tls/tls.key
{{- end }}
{{- with .Values.upstream.tokenSecret }}
- name: GATEWAY_UPSTREAM_TOKEN_FILE
  value: /etc/etcd-watch-gateway/upstream-token/token
{{- end }}
{{- else }}
- name: GATEWAY_ETCD
  value: {{ join "," .Values.etcd.endpoints | quote }}
{{- with .Values.etcd.tls }}
{{- if .existingSecret }}
- name: GATEWAY_ETCD_CACERT
  value: /etc/etcd-watch-gateway/etcd-tls/ca.crt
{{- end }}
{{- if .clientCertificate }}
- name: GATEWAY_ETCD_CERT
  value: /etc/etcd-watch-gateway/etcd-tls/tls.crt
- name: GATEWAY_ETCD_KEY
  value: /etc/etcd-watch-gateway/etcd-tls/tls.key
{{- end }}
{{- end }}
{{- with .Values.etcd.auth.existingSecret }}
- name: GATEWAY_ETCD_USER
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: username
- name: GATEWAY_ETCD_PASSWORD_FILE
  value: /etc/etcd-watch-gateway/etcd-auth/password
{{- end }}
{{- end }}
{{- with .Values.tls }}
{{- if .existingSecret }}
- name: GATEWAY_TLS_CERT
  value: /etc/etcd-watch-gateway/tls/tls.crt
- name: GATEWAY_TLS_KEY
  value: /etc/etcd-watch-gateway/tls/tls.key
{{- end }}
{{- if .clientCaSecret }}
- name: GATEWAY_TLS_CLIENT_CA
  value: /etc/etcd-watch-gateway/tls-client-ca/ca.crt
{{- end }}
{{- end }}
- name: GATEWAY_ALLOW_PREFIXES
  value: {{ join "," .Values.allowPrefixes | quote }}
{{- with .Values.pin }}
- name: GATEWAY_PIN
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.gzipPrefixes }}
- name: GATEWAY_GZIP_PREFIXES
  value: {{ join "," . | quote }}
{{- end }}
{{- if .Values.token.existingSecret }}
- name: GATEWAY_TOKEN_FILE
  value: /etc/etcd-watch-gateway/token/token
{{- end }}
{{- range $variable, $file := include "gateway.accessFiles" . | fromJson }}
- name: {{ $variable }}
  value: /etc/etcd-watch-gateway/access/{{ $file }}
{{- end }}
{{- with .Values.trustedProxies }}
- name: GATEWAY_TRUSTED_PROXIES
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.corsOrigins }}
- name: GATEWAY_CORS_ORIGINS
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.epoch }}
- name: GATEWAY_EPOCH
  value: {{ . | quote }}
{{- end }}
{{- if eq (include "gateway.hasWorkers" .) "limit" }}
- name: GATEWAY_WORKERS
  value: auto
{{- end }}
- name: GATEWAY_DRAIN_WINDOW
  value: {{ int .Values.drainWindowSeconds | quote }}
- name: GATEWAY_DRAIN_TIMEOUT
  value: {{ int .Values.drainTimeoutSeconds | quote }}
{{- range $name, $value := .Values.settings }}
{{- if not (kindIs "invalid" $value) }}
- name: GATEWAY_{{ snakecase $name | upper }}
  value: {{ include "gateway.text" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}
