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
helm.sh/chart: {{ include "gateway.chart" . }}
{{- end -}}

{{- define "gateway.chart" -}}
{{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "gateway.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "gateway.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  {{- range $name, $value := .Values.podSecurityContext }}
  {{- if not (kindIs "invalid" $value) }}
  {{ $name }}: {{ int64 $value }}
  {{- end }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "gateway.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Where pods may run. */ -}}
{{- define "gateway.placement" -}}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
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
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts is required with ingress.enabled: without a host the Ingress would take /v1/kv and /v1/watch of every name" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs is required with httpRoute.enabled: without a gateway nobody takes the route" -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas (%d) must not be above autoscaling.maxReplicas (%d)" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- $named := list -}}
{{- range fromYamlArray (include "gateway.env" .) -}}{{- $named = append $named .name -}}{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name $named -}}
{{- fail (printf "extraEnv names %s, which the chart sets already, or twice: use the chart's value for it, as a pod must not have two of a name" .name) -}}
{{- end -}}
{{- $named = append $named .name -}}
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

{{- /* The ports of etcd.endpoints, each once. */ -}}
{{- define "gateway.etcdPorts" -}}
{{- $ports := list -}}
{{- range .Values.etcd.endpoints -}}{{- $ports = append $ports (splitList ":" . | last | int) -}}{{- end -}}
{{- toJson (uniq $ports) -}}
{{- end -}}

{{- /* The pod of `helm test`: not the gateway's selector, or the Service would send clients to it. */ -}}
{{- define "gateway.tester" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
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
