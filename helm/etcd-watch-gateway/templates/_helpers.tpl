{{- /* The name of the objects. */ -}}
{{- define "gateway.name" -}}
{{- $app := include "gateway.app" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $app .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $app | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "gateway.app" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* Never change these labels: a Deployment's selector is immutable. */ -}}
{{- define "gateway.selector" -}}
app.kubernetes.io/name: {{ include "gateway.app" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "gateway.ownLabels" -}}
{{ include "gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "gateway.chart" . }}
{{- end -}}

{{- define "gateway.labels" -}}
{{- include "gateway.labelsAnd" (list . dict) -}}
{{- end -}}

{{- /* The labels of an object that has further ones. Takes a list: the root, the further labels. */ -}}
{{- define "gateway.labelsAnd" -}}
{{- $root := index . 0 -}}
{{- toYaml (merge (include "gateway.ownLabels" $root | fromYaml) (deepCopy (index . 1)) $root.Values.commonLabels) -}}
{{- end -}}

{{- define "gateway.chart" -}}
{{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "gateway.host" -}}
{{ include "gateway.name" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "gateway.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.existingSecret "") -}}
{{- end -}}

{{- define "gateway.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "gateway.podSecurity" -}}
{{- $context := .Values.podSecurityContext | default (dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault")) -}}
securityContext: {{- include "gateway.securityContext" $context | trim | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with include "gateway.serviceAccount" . }}
serviceAccountName: {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* A security context without nulls. Helm reads numbers as floats, and would write 1000680000 as 1.00068e+09. */ -}}
{{- define "gateway.securityContext" -}}
{{- range $name, $value := . }}
{{- if kindIs "float64" $value }}
{{ $name }}: {{ int64 $value }}
{{- else if eq $name "supplementalGroups" }}
{{ $name }}: [{{ range $index, $group := $value }}{{ if $index }}, {{ end }}{{ int64 $group }}{{ end }}]
{{- else if not (kindIs "invalid" $value) }}
{{ dict $name $value | toYaml }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "gateway.serviceAccount" -}}
{{- with .Values.serviceAccount -}}
{{- if .create -}}{{ .name | default (include "gateway.name" $) }}{{- else -}}{{ .name }}{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The nodes on which pods may run. */ -}}
{{- define "gateway.placement" -}}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
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

{{- /* Checks that the schema cannot express: required choices, and values that must fit together. */ -}}
{{- define "gateway.check" -}}
{{- if not .Values.allowPrefixes -}}
{{- fail "allowPrefixes is required: set the prefixes of etcd that everyone who reaches the Service may read, like --set 'allowPrefixes={/svc/}'; [\"\"] in a values file allows every key" -}}
{{- end -}}
{{- $https := 0 -}}
{{- range .Values.etcd.endpoints -}}{{- if hasPrefix "https://" . -}}{{- $https = add1 $https -}}{{- end -}}{{- end -}}
{{- if and $https (ne (int $https) (len .Values.etcd.endpoints)) -}}
{{- fail "etcd.endpoints must not mix https:// and http://" -}}
{{- end -}}
{{- if and .Values.etcd.tls.existingSecret (not $https) -}}
{{- fail "etcd.tls.existingSecret needs https:// endpoints" -}}
{{- end -}}
{{- if and .Values.etcd.tls.clientCertificate (not .Values.etcd.tls.existingSecret) -}}
{{- fail "etcd.tls.clientCertificate needs etcd.tls.existingSecret, the Secret with the certificate" -}}
{{- end -}}
{{- $schemes := list -}}
{{- range .Values.upstream.urls -}}{{- $schemes = append $schemes (splitList ":" . | first) -}}{{- end -}}
{{- if gt (len (uniq $schemes)) 1 -}}
{{- fail "upstream.urls must not mix https:// and http://" -}}
{{- end -}}
{{- if and (or .Values.upstream.caSecret .Values.upstream.clientCertificateSecret .Values.upstream.tokenSecret) (not .Values.upstream.urls) -}}
{{- fail "upstream.urls is required with upstream.caSecret, upstream.clientCertificateSecret and upstream.tokenSecret" -}}
{{- end -}}
{{- if and .Values.tls.clientCaSecret (not .Values.tls.existingSecret) -}}
{{- fail "tls.clientCaSecret needs tls.existingSecret, the Secret with the gateway's own certificate" -}}
{{- end -}}
{{- if and .Values.tls.clientCaSecret (eq (int .Values.adminPort) 0) -}}
{{- fail "tls.clientCaSecret needs an adminPort: the kubelet's probes cannot send a client certificate" -}}
{{- end -}}
{{- include "gateway.checkAccess" . -}}
{{- if eq (int .Values.adminPort) 8080 -}}
{{- fail "adminPort must not be 8080, the gateway's public port; choose another port" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts is required with ingress.enabled: without a host, the Ingress would match its paths for every host" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs is required with httpRoute.enabled: without a parent, no Gateway serves the route" -}}
{{- end -}}
{{- if or (has .Values.host (list "::1" "localhost")) (hasPrefix "127." .Values.host) -}}
{{- fail (printf "host must not be %s: neither the kubelet's probes nor clients reach a loopback address of the pod; leave it empty" .Values.host) -}}
{{- end -}}
{{- with .Values.podDisruptionBudget -}}
{{- $fewest := ternary $.Values.autoscaling.minReplicas $.Values.replicas $.Values.autoscaling.enabled -}}
{{- /* Kubernetes rounds a share up: 75% of three pods are all three. */ -}}
{{- $stay := int .minAvailable -}}
{{- if kindIs "string" .minAvailable -}}
{{- $stay = div (add 99 (mul (trimSuffix "%" .minAvailable | int) (int $fewest))) 100 | int -}}
{{- end -}}
{{- if and .enabled (gt (int $fewest) 1) (ge $stay (int $fewest)) -}}
{{- fail (printf "podDisruptionBudget.minAvailable (%v of %d pods: %d) must be below the number of replicas: otherwise no node with a pod could be drained" .minAvailable (int $fewest) $stay) -}}
{{- end -}}
{{- end -}}
{{- with .Values.strategy -}}
{{- $moves := list -}}
{{- range .rollingUpdate -}}{{- if not (has (toString .) (list "0" "0%" "00%")) -}}{{- $moves = append $moves . -}}{{- end -}}{{- end -}}
{{- if and (eq .type "RollingUpdate") .rollingUpdate (not $moves) -}}
{{- fail "strategy.rollingUpdate.maxSurge and maxUnavailable must not both be 0: no pod could be replaced" -}}
{{- end -}}
{{- end -}}
{{- with .Values.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas (%d) must not be above autoscaling.maxReplicas (%d)" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- $named := list -}}
{{- $twice := list -}}
{{- range fromYamlArray (include "gateway.env" .) -}}{{- $named = append $named .name -}}{{- end -}}
{{- range .Values.extraEnv -}}
{{- /* The gateway reads GATEWAY_PORT and gateway_port as one variable; for all others the case matters. */ -}}
{{- $name := ternary (upper .name) .name (hasPrefix "GATEWAY_" (upper .name)) -}}
{{- if has $name $named -}}
{{- $twice = append $twice .name -}}
{{- end -}}
{{- $named = append $named $name -}}
{{- end -}}
{{- if $twice -}}
{{- fail (printf "extraEnv must not set %s: the chart already sets it (use the chart's value), or extraEnv has it twice; a pod must not have two variables with one name" (join ", " $twice)) -}}
{{- end -}}
{{- include "gateway.checkExtras" . -}}
{{- $needed := add .Values.preStopSeconds .Values.drainWindowSeconds .Values.drainTimeoutSeconds -}}
{{- if le (int .Values.terminationGracePeriodSeconds) (int $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds (%d) must be more than preStopSeconds + drainWindowSeconds + drainTimeoutSeconds (%d); otherwise the kubelet kills the pod before its streams are closed" (int .Values.terminationGracePeriodSeconds) (int $needed)) -}}
{{- end -}}
{{- end -}}

{{- /* A value as text. Helm reads numbers as floats, and would write 268435456 as 2.68435456e+08. */ -}}
{{- define "gateway.text" -}}
{{- if kindIs "string" . -}}{{ . }}{{- else if kindIs "slice" . -}}{{ join "," . }}{{- else -}}{{ int64 . }}{{- end -}}
{{- end -}}

{{- /* The first allowed prefix, for a URL inside single quotes. Most characters are percent-encoded already. */ -}}
{{- define "gateway.example" -}}
{{- first .Values.allowPrefixes | replace "'" "%27" | replace "&" "%26" | replace "#" "%23" | replace "+" "%2B" | replace " " "%20" -}}
{{- end -}}

{{- /* The ports of etcd.endpoints, or of the upstream, without duplicates. */ -}}
{{- define "gateway.etcdPorts" -}}
{{- $ports := list -}}
{{- range .Values.upstream.urls | default .Values.etcd.endpoints -}}{{- $ports = append $ports (splitList ":" . | last | int) -}}{{- end -}}
{{- toJson (uniq $ports) -}}
{{- end -}}

{{- /* The port of the issuer's keys, if settings.jwtJwks is a URL; else empty. */ -}}
{{- define "gateway.issuerPort" -}}
{{- $url := urlParse (.Values.settings.jwtJwks | default "") -}}
{{- if has $url.scheme (list "http" "https") -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}
{{- end -}}

{{- /* Whether there is a `helm test` pod: "true", or empty. The pod has no client certificate. */ -}}
{{- define "gateway.hasTest" -}}
{{- if and .Values.helmTest.enabled (not .Values.tls.clientCaSecret) -}}true{{- end -}}
{{- end -}}

{{- /* Labels of the `helm test` pod. Not the gateway's selector: otherwise the Service would send clients to this pod. */ -}}
{{- define "gateway.tester" -}}
app.kubernetes.io/name: {{ include "gateway.app" . | trunc 58 | trimSuffix "-" }}-test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- /* Matchers of this release's series. By default, the labels that the operator adds for a ServiceMonitor. */ -}}
{{- define "gateway.series" -}}
{{- .Values.prometheusRule.selector | default (printf "namespace=%q,service=%q" .Release.Namespace (include "gateway.name" .)) -}}
{{- end -}}

{{- /* The annotation with the URL of an alert's entry: the runbook's headings are the alerts' names. Takes a list: the root, the name. */ -}}
{{- define "gateway.runbook" -}}
{{- with (index . 0).Values.prometheusRule.runbookUrl -}}
runbook_url: {{ printf "%s#%s" . (lower (index $ 1)) | quote }}
{{- end -}}
{{- end -}}
