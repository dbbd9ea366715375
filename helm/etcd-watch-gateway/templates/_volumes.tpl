{{- /* The volumes of the files that the environment names. */ -}}
{{- define "gateway.volumes" -}}
{{- if include "gateway.hasWorkers" . }}
- name: tmp
  emptyDir:
    sizeLimit: 1Mi
{{- end }}
{{- with .Values.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- end }}
{{- with .Values.tls.clientCaSecret }}
- name: tls-client-ca
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- with .Values.token }}
{{- if .existingSecret }}
- name: token
  secret:
    secretName: {{ .existingSecret | quote }}
    defaultMode: 0440
    items:
      - key: {{ .key | quote }}
        path: token
{{- end }}
{{- end }}
{{- with include "gateway.accessSources" . | trim }}
- name: access
  projected:
    defaultMode: 0440
    sources: {{- . | nindent 6 }}
{{- end }}
{{- if .Values.upstream.urls }}
{{- with .Values.upstream.caSecret }}
- name: upstream-ca
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- with .Values.upstream.clientCertificateSecret }}
- name: upstream-tls
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- end }}
{{- with .Values.upstream.tokenSecret }}
- name: upstream-token
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - key: {{ $.Values.upstream.tokenKey | quote }}
        path: token
{{- end }}
{{- else }}
{{- with .Values.etcd.tls }}
{{- if .existingSecret }}
- name: etcd-tls
  secret:
    secretName: {{ .existingSecret | quote }}
    defaultMode: 0440
    items:
      - key: ca.crt
        path: ca.crt
      {{- if .clientCertificate }}
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
      {{- end }}
{{- end }}
{{- end }}
{{- with .Values.etcd.auth.existingSecret }}
- name: etcd-auth
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - key: password
        path: password
{{- end }}
{{- end }}
{{- end -}}

{{- /* Each volume's folder has the volume's name. Whole folders: Kubernetes does not update a single file (subPath). */ -}}
{{- define "gateway.volumeMounts" -}}
{{- range include "gateway.volumes" . | fromYamlArray }}
- name: {{ .name }}
  {{- if hasKey . "emptyDir" }}
  mountPath: /tmp  # the socket between the hub and its workers
  {{- else }}
  mountPath: /etc/etcd-watch-gateway/{{ .name }}
  readOnly: true
  {{- end }}
{{- end }}
{{- end -}}
