{{- /* The fields of the pod's spec that the chart sets, or has a value for. */ -}}
{{- define "gateway.podFields" -}}
["affinity","automountServiceAccountToken","containers","enableServiceLinks","imagePullSecrets","initContainers","nodeSelector","priorityClassName","securityContext","serviceAccountName","terminationGracePeriodSeconds","tolerations","topologySpreadConstraints","volumes"]
{{- end -}}

{{- /* What the values add must not say twice what the chart says. */ -}}
{{- define "gateway.checkExtras" -}}
{{- range $field := include "gateway.podFields" . | fromJsonArray -}}
{{- if hasKey $.Values.extraPodSpec $field -}}
{{- fail (printf "extraPodSpec must not set %s: the chart sets it, or has a value for it" $field) -}}
{{- end -}}
{{- end -}}
{{- $own := include "gateway.ownLabels" . | fromYaml -}}
{{- range $values := list "commonLabels" "podLabels" -}}
{{- range $label, $_ := index $.Values $values -}}
{{- if hasKey $own $label -}}
{{- fail (printf "%s must not set %s: the chart sets it" $values $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $named := list -}}
{{- range concat (include "gateway.volumes" . | fromYamlArray) .Values.extraVolumes -}}
{{- if has .name $named -}}
{{- fail (printf "extraVolumes must not have %s: there is a volume of this name" .name) -}}
{{- end -}}
{{- $named = append $named .name -}}
{{- end -}}
{{- range .Values.extraVolumeMounts -}}
{{- if not (has .name $named) -}}
{{- fail (printf "extraVolumeMounts names %s, and there is no such volume; add it to extraVolumes" .name) -}}
{{- end -}}
{{- end -}}
{{- $named = list "gateway" -}}
{{- range concat .Values.extraContainers .Values.extraInitContainers -}}
{{- if has .name $named -}}
{{- fail (printf "extraContainers must not have %s: there is a container of this name" .name) -}}
{{- end -}}
{{- $named = append $named .name -}}
{{- end -}}
{{- end -}}
