{{- define "gateway.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- /* Never changed: a Deployment's selector cannot be. */ -}}
{{- define "gateway.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "gateway.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end -}}

{{- /* What the schema cannot say: a choice that must be made, and numbers that must fit each other. */ -}}
{{- define "gateway.check" -}}
{{- if not .Values.allowPrefixes -}}
{{- fail "allowPrefixes is required: the prefixes of etcd that everyone who reaches the Service may read, like --set 'allowPrefixes={/svc/}'; [\"\"] in a values file is every key, on purpose" -}}
{{- end -}}
{{- $https := 0 -}}
{{- range .Values.etcd.endpoints -}}{{- if hasPrefix "https://" . -}}{{- $https = add1 $https -}}{{- end -}}{{- end -}}
{{- if and $https (ne (int $https) (len .Values.etcd.endpoints)) -}}
{{- fail "etcd.endpoints must be all https:// or all http://" -}}
{{- end -}}
{{- if and .Values.etcd.tls.existingSecret (not $https) -}}
{{- fail "etcd.tls.existingSecret needs https:// endpoints" -}}
{{- end -}}
{{- if and .Values.etcd.tls.clientCertificate (not .Values.etcd.tls.existingSecret) -}}
{{- fail "etcd.tls.clientCertificate needs etcd.tls.existingSecret, which holds it" -}}
{{- end -}}
{{- if eq (int .Values.adminPort) 8080 -}}
{{- fail "adminPort must not be 8080, the port that the gateway serves on" -}}
{{- end -}}
{{- $needed := add .Values.preStopSeconds .Values.drainWindowSeconds .Values.drainTimeoutSeconds -}}
{{- if le (int .Values.terminationGracePeriodSeconds) (int $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds (%d) must be more than preStopSeconds + drainWindowSeconds + drainTimeoutSeconds (%d), or streams are cut while they are being closed" (int .Values.terminationGracePeriodSeconds) (int $needed)) -}}
{{- end -}}
{{- end -}}

{{- /* Helm reads numbers as floats: 268435456 would be written 2.68435456e+08. */ -}}
{{- define "gateway.text" -}}
{{- if kindIs "string" . -}}{{ . }}{{- else -}}{{ int64 . }}{{- end -}}
{{- end -}}

{{- /* The first allowed prefix as it goes into a URL inside single quotes; it is percent-encoded already, mostly. */ -}}
{{- define "gateway.example" -}}
{{- first .Values.allowPrefixes | replace "'" "%27" | replace "&" "%26" | replace "#" "%23" | replace "+" "%2B" | replace " " "%20" -}}
{{- end -}}

{{- /* Matchers of this release's series; service and namespace are what the operator writes for a ServiceMonitor. */ -}}
{{- define "gateway.series" -}}
{{- .Values.prometheusRule.selector | default (printf "namespace=%q,service=%q" .Release.Namespace (include "gateway.name" .)) -}}
{{- end -}}

{{- /* The annotation that leads to an alert's entry; headings of the runbook are the names. Given a list: the root, the name. */ -}}
{{- define "gateway.runbook" -}}
{{- with (index . 0).Values.prometheusRule.runbookUrl -}}
runbook_url: {{ printf "%s#%s" . (lower (index $ 1)) | quote }}
{{- end -}}
{{- end -}}
